"""``serverchange bench lookup_decisions``: decisions a second and bytes a channel of the lookup schedule.

One process tracks a million channels and spends requests as a poller would: every request is answered at once, one
channel in sixteen streams, streams come and go, and now and then somebody has moved. Measured is the processor time
of the schedule alone, its learning from the answers included. A decision is one request chosen; a scan chooses a
hundred channels, so the figure of channels a second is given, too.

    python benchmarks/lookup_decisions.py --channels 1000000 --json
"""

import argparse
import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Sequence
from random import Random
from typing import Any

from serverchange.tracker.lookup_schedule import Lookup, LookupSchedule, ScheduleSettings, StreamsScan

VERIFIED_WITHIN_S, LIVE_ONE_IN = 10_800.0, 16
STREAMS_CHANGE, NEW_STREAM_A_SCAN = 0.1, 3
"""In every tenth scan three channels are found to have begun or ended a stream: about what 14 days show."""


def run(*, channels: int = 1_000_000, decisions: int = 200_000, requests_per_s: float = 100.0) -> dict[str, Any]:
    """Track, spend, measure.

    Args:
        channels: how many are tracked.
        decisions: requests spent while measuring, after as many to warm up.
        requests_per_s: how fast the schedule's clock runs: a request each ``1 / requests_per_s`` seconds.
    """
    names = [f"channel_{number}" for number in range(channels)]
    Random(1).shuffle(names)
    gc.collect()
    tracemalloc.start()
    schedule = _tracking(names)
    schedule.next_request(1.0)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    live = set(names[::LIVE_ONE_IN])
    _spend(schedule, live, decisions // 4, 1.0, requests_per_s)
    spent = _spend(schedule, live, decisions, 1.0 + decisions / 4 / requests_per_s, requests_per_s)
    seconds = spent["ns"] / 1e9
    return {
        "channels": channels,
        "decisions": decisions,
        "lookups": spent["lookups"],
        "scans": spent["scans"],
        "decisions_per_s": round(decisions / seconds),
        "channels_chosen_per_s": round((spent["lookups"] + spent["names"]) / seconds),
        "us_a_decision": round(seconds / decisions * 1e6, 2),
        "bytes_a_channel": round(held_bytes / channels, 1),
        "name_bytes_a_channel": round(sum(map(sys.getsizeof, names[:10_000])) / min(channels, 10_000), 1),
    }


def _tracking(names: Sequence[str]) -> LookupSchedule:
    schedule, random = LookupSchedule(ScheduleSettings(), now_s=0.0), Random(3)
    everyone, partners = frozenset[str](), frozenset({"partner"})
    for number, name in enumerate(names):
        labels = everyone if number % 15 else partners
        verified_at_s = -random.uniform(0.0, VERIFIED_WITHIN_S)
        schedule.track(
            name,
            labels=labels,
            cluster="main",
            verified=True,
            urgent=False,
            now_s=0.0,
            verified_at_s=verified_at_s,
        )
    for name in names[::1_000]:
        schedule.update(name, cluster="aws", verified=True, urgent=False, moved=True, now_s=0.0)
    for name in names[::LIVE_ONE_IN]:
        schedule.heard_live(name, 0.0)
    return schedule


def _spend(
    schedule: LookupSchedule, live: set[str], decisions: int, start_s: float, requests_per_s: float
) -> dict[str, int]:
    """Spend requests and answer them; count nanoseconds of the schedule alone, by processor time."""
    clock, random = time.process_time_ns, Random(7)
    lookups = scans = names = 0
    began = clock()
    outside = 0
    for step in range(decisions):
        now_s = start_s + step / requests_per_s
        request = schedule.next_request(now_s)
        if isinstance(request, Lookup):
            lookups += 1
            moved = step % 500 == 0
            schedule.answered(request.channel, cluster="aws" if moved else "main", changed=moved, now_s=now_s)
        elif isinstance(request, StreamsScan):
            scans += 1
            names += len(request.channels)
            paused = clock()
            found = live.intersection(request.channels)
            if random.random() < STREAMS_CHANGE:
                found.symmetric_difference_update(request.channels[step % 90 : step % 90 + NEW_STREAM_A_SCAN])
            live.difference_update(request.channels)
            live |= found
            outside += clock() - paused
            schedule.scanned(request.channels, found, now_s)
    return {"ns": clock() - began - outside, "lookups": lookups, "scans": scans, "names": names}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="bench lookup_decisions")
    parser.add_argument("--channels", type=int, default=1_000_000)
    parser.add_argument("--decisions", type=int, default=200_000)
    parser.add_argument("--requests-per-second", type=float, default=100.0)
    parser.add_argument("--quick", action="store_true", help="100,000 channels, 40,000 decisions")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    if given.quick:
        given.channels, given.decisions = 100_000, 40_000
    report = run(channels=given.channels, decisions=given.decisions, requests_per_s=given.requests_per_second)
    if given.json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:24}{value:>14,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
