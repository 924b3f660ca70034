"""How long until the partitions of a worker that was killed with -9 are folded again by another.

`serverchange bench takeover --kills 20 --json` → `p50_s, p99_s, max_s, kills`. Two workers share the partitions; an
event a partition is appended ten times a second; the time counts from the kill until an event appended after it is
folded on every partition. The victim is started again before the next kill.

`--overlapping 3` has so many of four workers fail while the group still copes with the one before: each is killed or
frozen (SIGSTOP) up to `GAP_MAX_S` after the last. `*_s` count from the last failure, `first_to_end_*_s` from the first.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psycopg
from kafka import KafkaProducer
from materialize import PARTITIONS, Bench, bench_stack, start_materializer, stop_materializer, wait_for_schema
from materialize_workload import make_workload

from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.events import KAFKA_HEADERS
from serverchange.topics import CHANNEL_EVENTS

EVERY_S = 0.1
SETTLED_TIMEOUT_S = 120.0
GAP_MAX_S = 9.0
"""Longer than a session (8 s): the next failure comes before, during and after the rebalance for the one before."""

QUIET_S = 2.0
"""The victim's successor must be a member for so long before the next kill, so that kills do not overlap."""


class _Heartbeats:
    """One event a partition, ten times a second; remembers the newest acknowledged offset of each."""

    def __init__(self, bench: Bench) -> None:
        settings = bench.settings()
        self._producer: KafkaProducer = make_producer(settings.kafka, client_id="heartbeats", linger_ms=0)
        self._topic = topic_name(settings.kafka, CHANNEL_EVENTS)
        self._value = make_workload(1, 1).setup[0]
        self.newest: dict[int, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        key, value = self._value
        while not self._stopping.wait(EVERY_S):
            sent = [
                self._producer.send(self._topic, key=key, value=value, partition=one, headers=list(KAFKA_HEADERS))
                for one in range(PARTITIONS)
            ]
            for one in sent:
                place = one.get(timeout=30)
                self.newest[place.partition] = place.offset

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._producer.close()


def _wait_folded(connection: psycopg.Connection[Any], newest: dict[int, int], revive: Callable[[], None]) -> None:
    deadline = time.monotonic() + SETTLED_TIMEOUT_S
    while time.monotonic() < deadline:
        revive()
        positions = dict(connection.execute("SELECT partition, position FROM log_position").fetchall())
        if all(positions.get(partition, 0) > offset for partition, offset in newest.items()):
            return
        time.sleep(0.02)
    raise TimeoutError(f"no takeover within {SETTLED_TIMEOUT_S:.0f} s")


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="serverchange bench takeover", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many times")
    parser.add_argument("--overlapping", type=int, default=1, metavar="N", help="workers that fail each time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(argv)
    chance = random.Random(options.seed)
    taken: list[float] = []
    in_all: list[float] = []
    with bench_stack() as bench, ExitStack() as ending:
        settings = bench.settings()
        apply_topics(settings.kafka)
        connection = ending.enter_context(psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True))
        workers = [
            start_materializer(settings, bench.folder / f"worker-{number}.log")
            for number in range(options.overlapping + 1)
        ]
        ending.callback(lambda: [stop_materializer(one) for one in workers])
        ended = [0]

        def revive() -> None:
            """Start again, as a supervisor does, what ended by itself."""
            for number, worker in enumerate(workers):
                if number not in victims and worker.poll() is not None:
                    ended[0] += 1
                    workers[number] = start_materializer(settings, bench.folder / f"worker-{number}.log")

        victims: list[int] = []
        wait_for_schema(connection)
        beats = _Heartbeats(bench)
        ending.callback(beats.stop)
        for _ in range(options.kills):
            victims = []
            time.sleep(QUIET_S + chance.random())
            _wait_folded(connection, dict(beats.newest), revive)
            first = time.perf_counter()
            for victim in chance.sample(range(len(workers)), options.overlapping):
                if victims:
                    time.sleep(chance.uniform(0, GAP_MAX_S))
                victims.append(victim)
                freezes = options.overlapping > 1 and chance.random() < 0.5
                workers[victim].send_signal(signal.SIGSTOP if freezes else signal.SIGKILL)
                last = time.perf_counter()
            time.sleep(EVERY_S * 3)  # so that every partition has an event that only a successor can fold
            _wait_folded(connection, dict(beats.newest), revive)
            taken.append(time.perf_counter() - last)
            in_all.append(time.perf_counter() - first)
            for victim in victims:
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = start_materializer(settings, bench.folder / f"worker-{victim}.log")
            time.sleep(8 + chance.random())
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    result = {
        "kills": len(taken),
        "p50_s": round(cuts[49], 2),
        "p99_s": round(cuts[98], 2),
        "max_s": round(max(taken), 2),
        "ended_by_themselves": ended[0],
    }
    if options.overlapping > 1:
        cuts = statistics.quantiles(in_all, n=100, method="inclusive")
        result |= {
            "overlapping": options.overlapping,
            "first_to_end_p50_s": round(cuts[49], 2),
            "first_to_end_max_s": round(max(in_all), 2),
        }
    sys.stdout.write((json.dumps(result) if options.as_json else json.dumps(result, indent=2)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
