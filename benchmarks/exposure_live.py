"""``serverchange bench exposure_live``: do the live services expose what the simulation of the same ledger says?

A real poller and a real materializer follow a migration of the simulated platform, on a real Kafka and PostgreSQL,
its days ``--time-scale`` times faster; nothing announces a move. What they came to believe, and when, is read from
``cluster-changes``. The simulator's ledger of that very run (streams, moves, each replica's lag) then becomes a world
of :mod:`exposure_world`, in which the same rule spends as many requests. One judge counts the exposure of both.
``ratio`` is live ÷ simulated: the services lose nothing of the rule if it is near 1.

    python benchmarks/exposure_live.py --json
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from exposure_play import Manners, Outcome, judge, play
from exposure_policies import RoundRobin
from exposure_world import DAY_S, Move, Scenario, World

from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.projection import load_states
from serverchange.cli.channels import tracked
from serverchange.cli.demo.ledger import History, Platform, SimulatedChannel
from serverchange.cli.demo.reader import read_changes
from serverchange.cli.fleet import Fleet, WriteToken, simulator_environment
from serverchange.events import ChangeKind, Channel, ChannelKind, Cluster
from serverchange.simulator.settings import SimulatorSettings, WrongCluster
from serverchange.simulator.world import LaggingView
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.lookup_schedule import LookupSchedule, ScheduleSettings

PARTITIONS = 12
SERVICES = ("poller", "materializer")
TOKEN = WriteToken("bench", "this-token-opens-the-benchmark-alone")

API_LAG_MINUTES = (0.7, 10.0)
"""Mean and longest lag of an API replica."""
REPEAT_AFTER_S = (0.1, 0.4, 1.0)
"""Real seconds between repeated questions: half a minute to five minutes of a platform that runs 300 times faster."""
DOUBT_WINDOW_S = 600.0
"""Real seconds: the fold's clock is Kafka's, whatever the platform's does."""
LATENCY_S = (0.03, 0.06)
"""Real seconds from a question to the record that tells the change: request, log, fold, outbox; least and mean."""
SIMULATIONS = 5
"""Plays of the same ledger, each with other latencies: its exposure hangs on who is asked a moment too early."""

POLL_S = 0.5
START_TIMEOUT_S = 600.0
SCRIPT_SLACK = 2.5
"""The script waits for streams to end: it may take that much longer than planned."""


@dataclass(frozen=True, slots=True)
class Run:
    """What happened in the live services' run, in the ledger's Unix seconds.

    Attributes:
        channels: as the platform's control interface lists them.
        history: moves and streams.
        beliefs: (when, cluster) of every change that subscribers were told.
        requests: that the platform's API answered between start and end.
        started_s, ended_s: the script's.
        time_scale: the platform's seconds a real second.
    """

    channels: Sequence[SimulatedChannel]
    history: History
    beliefs: Mapping[Channel, Sequence[tuple[float, Cluster]]]
    requests: int
    started_s: float
    ended_s: float
    time_scale: float


def run(
    *,
    channels: int = 3_000,
    days: float = 1.5,
    requests_per_second: float = 30.0,
    time_scale: float = 300.0,
    seed: int = 1,
) -> dict[str, Any]:
    """Let the services follow a migration, simulate its ledger, compare.

    Args:
        channels: of the platform; all are tracked.
        days: of the platform that the whole script takes.
        requests_per_second: the poller's budget in real seconds.
        time_scale: the platform's seconds a real second.
        seed: of the platform.

    Returns:
        What ``--json`` prints.
    """
    settings = SimulatorSettings(
        seed=seed,
        channels=channels,
        time_scale=time_scale,
        script_days=days,
        script_starts_paused=True,
        wrong_cluster=WrongCluster.SILENT,
        api_lag_mean_minutes=API_LAG_MINUTES[0],
        api_lag_max_minutes=API_LAG_MINUTES[1],
        lines_per_second=0.0,
    )
    with tempfile.TemporaryDirectory(prefix="serverchange-exposure-") as folder:
        followed = asyncio.run(_follow(Path(folder), settings, requests_per_second))
    return compare(followed, settings)


def compare(followed: Run, settings: SimulatorSettings) -> dict[str, Any]:
    """Judge a live run, and simulate its ledger."""
    world = to_world(followed, settings)
    live = Outcome("live")
    judge(world, _live_beliefs(followed, world), live)
    manners = Manners(
        doubt_for_s=DOUBT_WINDOW_S * followed.time_scale,
        latency_s=(LATENCY_S[0] * followed.time_scale, LATENCY_S[1] * followed.time_scale),
    )
    simulated = [
        play(world, _schedule(world, followed.time_scale), "ours", manners=manners, seed=number)
        for number in range(1, SIMULATIONS + 1)
    ]
    in_turn = play(world, RoundRobin(world.names), "round-robin", manners=manners)
    expected_min = statistics.mean(outcome.exposure_min for outcome in simulated)
    return {
        "channels": len(world.names),
        "days": round(world.scenario.days, 3),
        "time_scale": followed.time_scale,
        "seed": settings.seed,
        "requests": followed.requests,
        "moves": len(world.moves),
        "changes": sum(map(len, followed.beliefs.values())),
        "exposures": live.exposed_channels,
        "exposures_simulated": [outcome.exposed_channels for outcome in simulated],
        "exposure_min": round(live.exposure_min, 1),
        "simulated_min": [round(outcome.exposure_min, 1) for outcome in simulated],
        "round_robin_min": round(in_turn.exposure_min, 1),
        "detection_s_p50": round(live.detection_s_p50),
        "detection_s_p50_simulated": round(statistics.median(outcome.detection_s_p50 for outcome in simulated)),
        "ratio": round(live.exposure_min / max(expected_min, 1e-9), 3),
    }


def to_world(followed: Run, settings: SimulatorSettings) -> World:
    """Return the run's truth as a world: its second 0 is the script's start, its names are the chat channels."""
    scale, started_s = followed.time_scale, followed.started_s
    days = (followed.ended_s - started_s) * scale / DAY_S
    requests_per_s = followed.requests / (days * DAY_S)
    names = [one.name for one in followed.channels if one.kind is ChannelKind.CHAT]
    index_of = {name: index for index, name in enumerate(names)}
    labels = {one.name: frozenset(one.labels) for one in followed.channels}
    homes = {one.name: one.home for one in followed.channels}
    scenario = Scenario(channels=len(names), days=days, requests_per_s=requests_per_s, failures=0.0)
    world = World(
        scenario,
        settings.seed,
        names=list(names),
        labels=[labels[name] for name in names],
        homes=[homes[name] for name in names],
        streams=[array("d") for _ in names],
    )
    for stream in sorted(followed.history.streams, key=lambda one: one.from_s):
        if stream.channel in index_of:
            until_s = min(stream.until_s, followed.ended_s + DAY_S)
            times = ((stream.from_s - started_s) * scale, (until_s - started_s) * scale)
            world.streams[index_of[stream.channel]].extend(times)
    view = LaggingView(
        settings.seed, settings.api_replicas, settings.api_lag_mean_minutes * 60, settings.api_lag_max_minutes * 60
    )
    for number, move in enumerate(followed.history.moves, start=1):
        first, second = view.lags_s(move.channel, number)
        at_s = (move.at_s - started_s) * scale
        world.moves.append(Move(at_s, index_of[move.channel], move.cluster, (first, second), noticed=False))
    return world


def _live_beliefs(followed: Run, world: World) -> dict[int, list[tuple[float, str]]]:
    return {
        index: [
            ((at_s - followed.started_s) * followed.time_scale, cluster) for at_s, cluster in followed.beliefs[name]
        ]
        for index, name in enumerate(world.names)
        if name in followed.beliefs
    }


def _schedule(world: World, time_scale: float) -> LookupSchedule:
    """Return the schedule as the poller makes it, with every channel verified at the script's start."""
    repeat_after_s = tuple(spacing_s * time_scale for spacing_s in REPEAT_AFTER_S)
    settings = ScheduleSettings(repeat_after_s=repeat_after_s, retry_failed_after_s=repeat_after_s[0], seed=world.seed)
    schedule = LookupSchedule(settings, now_s=0.0)
    for name, labels, home in zip(world.names, world.labels, world.homes, strict=True):
        schedule.track(name, labels=labels, cluster=home, verified=True, urgent=False, now_s=0.0, verified_at_s=0.0)
    return schedule


async def _follow(folder: Path, settings: SimulatorSettings, requests_per_second: float) -> Run:
    async with Fleet(folder, partitions=PARTITIONS, tell=_say) as fleet:
        await fleet.start_servers()
        addresses = await fleet.start_simulator(settings)
        fleet.add_environment(
            simulator_environment(addresses, account=None)
            | {
                "PLATFORM_REQUESTS_PER_SECOND": f"{requests_per_second:g}",
                "POLLER_TIME_SCALE": f"{settings.time_scale:g}",
                "POLLER_REPEAT_AFTER_S": json.dumps(REPEAT_AFTER_S),
            }
        )
        await fleet.start_services(SERVICES, token=TOKEN)
        platform = Platform(addresses.control_url)
        try:
            return await _migrate(fleet, platform, settings)
        finally:
            await platform.close()


async def _migrate(fleet: Fleet, platform: Platform, settings: SimulatorSettings) -> Run:
    channels = await platform.channels()
    events = [tracked(one.name, "bench", one.labels, one.kind, None) for one in channels]
    async with EventPublisher(fleet.kafka, client_id="bench-exposure") as publisher:
        await publisher.publish_all(CHANNEL_EVENTS, [(event.subject, event.to_record()) for event in events])
    _say(f"{len(channels)} channels are looked up for the first time")
    await _all_verified(fleet, len(channels))
    before = (await platform.status())["api_requests"]
    started_s = time.time()
    await platform.start_script()
    _say("the migration begins")
    deadline = time.monotonic() + SCRIPT_SLACK * settings.script_days * DAY_S / settings.time_scale
    while (status := await platform.status())["script"]["state"] != "done":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the script still waits for {status['script']['waiting']} channels")
        await asyncio.sleep(POLL_S)
    ended_s = time.time()
    history = await platform.history(())
    beliefs: dict[Channel, list[tuple[float, Cluster]]] = {}
    for change in await asyncio.to_thread(read_changes, fleet.kafka):
        if change.cluster is not None and change.what is not ChangeKind.LABELLED and started_s <= change.at_s:
            beliefs.setdefault(change.channel, []).append((change.at_s, change.cluster))
    requests = sum(status["api_requests"].values()) - sum(before.values())
    return Run(channels, history, beliefs, requests, started_s, ended_s, settings.time_scale)


async def _all_verified(fleet: Fleet, count: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    async with await connect(fleet.postgres, application="bench-exposure") as connection:
        while time.monotonic() < deadline:
            states, _ = await load_states(connection, range(PARTITIONS))
            await connection.rollback()
            if len(states) == count and not any(state.needs_lookup for state in states):
                return
            await asyncio.sleep(POLL_S)
    raise TimeoutError(f"not all of {count} channels were verified within {START_TIMEOUT_S:.0f} s")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, follow, compare, print."""
    parser = argparse.ArgumentParser(prog="bench exposure_live")
    parser.add_argument("--channels", type=int, default=3_000)
    parser.add_argument("--days", type=float, default=1.5)
    parser.add_argument("--requests-per-second", type=float, default=30.0)
    parser.add_argument("--time-scale", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    report = run(
        channels=given.channels,
        days=given.days,
        requests_per_second=given.requests_per_second,
        time_scale=given.time_scale,
        seed=given.seed,
    )
    if given.json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:28}{value!s:>16}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
