"""What becomes of every chat line while a fleet joins, is told to reconnect, is deployed, and follows a mass move?

`serverchange bench fleet --channels 20000 --processes 3 --json`. One embedded Kafka and PostgreSQL, the simulated
platform, and shards as processes of their own, all with one verified account: 2,000 JOINs in 10 s. Every line is
numbered, and every channel has some. One after the other: all channels are joined; RECONNECT comes in waves that the
budget can absorb; every process is deployed anew, one at a time; all channels move at once; RECONNECT to all at once.

The judges are the simulator's ledger and the SDK's reader of `chat-lines`, never our own counters:

- `lost`: lines sent to a link of ours and not read; and, while RECONNECT comes in waves, while processes are deployed
  and between the phases, every line that was not read.
- `missed_before_join`: lines of the mass move and of the RECONNECT to all that came while a channel waited for the
  budget; `missed_minimum` is what no fleet could have avoided: the busiest channels first, a whole window's JOINs at
  its first moment.
- `join_ratio`, `move_ratio`: seconds taken, divided by channels / 2,000 x 10 s.
- `restart_join_ratio`: JOINs of the whole rolling restart, divided by the channels.
- `rebalances`: how often Kafka's group moved partitions about during the rolling restart.
- `handover_ms`: from RECONNECT to the JOIN on another link, while it comes in waves.
- `kb_per_channel`: what the processes grow by, from no channel to all of them with chat.

`--accounts 20` has 2,000 channels on 20 ordinary accounts of 100 channels each, which the platform enforces: every
place is needed. An account may send 20 JOINs in 10 s then, which no RECONNECT of a link of 90 channels leaves time for,
so there are no waves.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg

sys.path.insert(0, str(Path(__file__).parent))

from fleet_flood import measure_flood
from fleet_judge import (
    Losses,
    Phase,
    bound_s,
    find_losses,
    handover_times,
    joins_in,
    last_hearing,
    missed_minimum,
    move_times,
    quantiles_ms,
    violations,
)
from fleet_world import Decisions, Platform, Reader, ShardProcess, resident_bytes, shard_environment

from serverchange.adapters.kafka.topics import apply_topics
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.settings import Settings
from serverchange.cli.output import quiet_logs

MAIN, AWS = "main", "aws"
ACCOUNT: Final = "bot"

WINDOW_S: Final = 10.0
JOINS: Final = {"verified": 2_000, "ordinary": 20}
WAVE_CHANNELS: Final = 1_800
SLACK_S: Final = 180.0
"""On top of thrice its bound, before a phase is given up."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured.

    Attributes:
        accounts: one verified one without a limit of channels, or so many ordinary ones with it.
        channels_per_account: that limit; the platform's since 2024.
        close_s: bounds of the delay between RECONNECT and the link's end.
        overlap_s: of each handover.
        wave_interval_s: between waves of RECONNECT.
        calm_s: between two phases; longer than a window, so that each begins with the whole budget.
    """

    channels: int = 20_000
    processes: int = 3
    accounts: int = 1
    channels_per_account: int = 100
    lines_per_second: float = 2_500.0
    seed: int = 1
    channels_per_link: int = 90
    close_s: tuple[float, float] = (5.0, 60.0)
    overlap_s: float = 20.0
    wave_interval_s: float = 11.0
    calm_s: float = 12.5

    @property
    def limited(self) -> bool:
        """Whether accounts are ordinary ones, with a limit of channels."""
        return self.accounts > 1

    @property
    def account_class(self) -> str:
        """Class of every account."""
        return "ordinary" if self.limited else "verified"

    @property
    def joins(self) -> int:
        """JOINs in a window, of all accounts together."""
        return self.accounts * JOINS[self.account_class]

    @property
    def logins(self) -> tuple[str, ...]:
        """Names of the accounts."""
        return tuple(f"{ACCOUNT}_{number}" for number in range(1, self.accounts + 1)) if self.limited else (ACCOUNT,)

    @property
    def wave_channels(self) -> int:
        """How many channels are told to reconnect at once: what the budget can absorb, and at least three waves."""
        return max(self.channels_per_link, min(WAVE_CHANNELS, self.channels // 3))


@dataclass(slots=True)
class Run:
    """One run under way."""

    options: Options
    platform: Platform
    shards: list[ShardProcess]
    reader: Reader
    decisions: Decisions
    tell: Callable[[str], None]
    phases: list[Phase] = field(default_factory=list)
    empty_bytes: int = 0
    full_bytes: int = 0
    rebalances: int = 0
    unfinished: list[str] = field(default_factory=list)

    async def phase(self, name: str, work: Callable[[], Awaitable[None]], *, whole: bool = False) -> Phase:
        """Do a part of the run, wait until every channel is at rest, and remember when it was."""
        await self.platform.refresh()
        began = time.monotonic()
        await work()
        limit_s = 3 * bound_s(self.options.channels, count=self.options.joins, window_s=WINDOW_S) + SLACK_S
        if not await self.platform.wait_at_rest(limit_s):
            self.unfinished.append(name)
        phase = Phase(name, began, time.monotonic(), whole=whole)
        self.phases.append(phase)
        missing = len(self.platform.unjoined())
        self.tell(f"{name}: {phase.ended - began:.1f} s, {missing} unjoined, {self.reader.count} lines read")
        await asyncio.sleep(self.options.calm_s)
        return phase

    async def join_all(self) -> None:
        """Track every channel."""
        records = self.decisions.prepare(self.platform.home, MAIN, 1)
        await asyncio.to_thread(self.decisions.publish, records)

    async def reconnect_in_waves(self) -> None:
        """RECONNECT to so many links at a time as the budget can absorb."""
        links = len({link for links in self.platform.joined.values() for link in links})
        a_wave = max(1, self.options.wave_channels // self.options.channels_per_link)
        waves = -(-links // a_wave)
        await self.platform.post("reconnect", waves=waves, wave_interval_s=self.options.wave_interval_s)
        await asyncio.sleep((waves - 1) * self.options.wave_interval_s + 1)

    async def restart_all(self) -> None:
        """Deploy every process anew, one after the other: the successor takes over from a predecessor that drains."""
        for number, before in enumerate(self.shards):
            stayed = [shard for shard in self.shards if shard is not before]
            sizes = {shard.name: shard.log.stat().st_size for shard in stayed}
            before.terminate()
            after = ShardProcess(before.name, before.environment, before.log.with_name(f"{before.name}-next.log"))
            await after.start()
            await after.ready()
            code = await before.process.wait()
            if code != 0:
                self.unfinished.append(f"{before.name} ended with {code}")
            self.shards[number] = after
            told = [shard.count("partitions.assigned", sizes[shard.name]) for shard in stayed]
            self.rebalances += max(told, default=0)
            await self.platform.refresh()

    async def move_all(self) -> None:
        """Let every channel live elsewhere, at one instant, and decide so."""
        records = self.decisions.prepare(self.platform.home, AWS, 2)
        await self.platform.post("move", cluster=AWS, force=True)
        await asyncio.to_thread(self.decisions.publish, records)

    async def reconnect_all(self) -> None:
        """RECONNECT to every link at one instant."""
        await self.platform.post("reconnect")


def simulator_settings(options: Options, **changes: Any) -> dict[str, Any]:
    """Return a platform where every channel has chat, on `main`, and nothing happens by itself."""
    return {
        "seed": options.seed,
        "channels": options.channels,
        "event_channels": 0,
        "group_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 0,
        "chat_in_offline_channels": True,
        "clearchat_share": 0.002,
        "accounts": [
            {"login": login, "token": f"{login}-token", "tier": options.account_class} for login in options.logins
        ],
        "channel_limit": options.channels_per_account if options.limited else None,
        "reconnect_min_s": options.close_s[0],
        "reconnect_max_s": options.close_s[1],
        **changes,
    }


@asynccontextmanager
async def world(options: Options, settings: Settings, folder: Path, tell: Callable[[str], None]) -> AsyncIterator[Run]:
    """Start platform, shards and reader on this Kafka and this PostgreSQL."""
    platform = Platform(folder / "platform", simulator_settings(options))
    async with platform.running():
        environment = shard_environment(
            settings,
            platform,
            options.logins,
            RECONNECTOR_CHANNELS_PER_ACCOUNT=str(options.channels_per_account if options.limited else 0),
            RECONNECTOR_CHANNELS_PER_LINK=str(options.channels_per_link),
            RECONNECTOR_OVERLAP_S=str(options.overlap_s),
        )
        shards = [
            ShardProcess(f"shard-{number}", environment, folder / f"shard-{number}.log")
            for number in range(1, options.processes + 1)
        ]
        reader, decisions = Reader(settings.kafka), Decisions(settings.kafka)
        run = Run(options, platform, shards, reader, decisions, tell)
        try:
            for shard in shards:
                await shard.start()
            for shard in shards:
                await shard.ready()
            yield run
        finally:
            for shard in run.shards:
                await shard.end()
            reader.close()
            decisions.close()


async def play(run: Run) -> dict[str, Any]:
    """Play every phase and return the figures."""
    run.empty_bytes = resident_bytes(run.shards)
    join = await run.phase("join", run.join_all)
    await run.platform.post("chat-rate", lines_per_second=run.options.lines_per_second)
    await asyncio.sleep(2)
    run.full_bytes = resident_bytes(run.shards)
    waves = None if run.options.limited else await run.phase("waves", run.reconnect_in_waves, whole=True)
    restart = await run.phase("restart", run.restart_all, whole=True)
    move = await run.phase("move", run.move_all)
    storm = await run.phase("storm", run.reconnect_all)
    await run.platform.post("chat-rate", lines_per_second=0)
    await run.reader.wait_quiet()
    await run.platform.refresh()
    return await figures(run, join=join, waves=waves, restart=restart, move=move, storm=storm)


async def figures(
    run: Run, *, join: Phase, waves: Phase | None, restart: Phase, move: Phase, storm: Phase
) -> dict[str, Any]:
    """Judge the run."""
    lines = [line async for line in run.platform.lines()]
    losses = find_losses(lines, run.phases, run.reader.read)
    entries, channels = run.platform.entries, run.options.channels
    bound = bound_s(channels, count=run.options.joins, window_s=WINDOW_S)
    joined, moved = joins_in(entries, join), joins_in(entries, move)
    minimum = {
        phase.name: missed_minimum(
            [line for line in lines if phase.began <= line[2] < phase.ended],
            leaves,
            min(leaves.values(), default=phase.began) if phase is move else phase.began,
            count=run.options.joins,
            window_s=WINDOW_S,
        )
        for phase, leaves in ((move, move_times(entries, move)), (storm, last_hearing(entries, storm)))
    }
    missed = {phase.name: losses.unjoined[phase.name] for phase in (move, storm)}
    spoken_s = lines[-1][2] - lines[0][2] if lines else 1.0
    for name in losses.sent:
        run.tell(
            f"{name}: sent {losses.sent[name]}, sent to us and not read {losses.confirmed[name]}, "
            f"sent while we were not there {losses.unjoined[name]}"
        )
    for example in losses.examples[:5]:
        run.tell(f"lost: {example}")
    return {
        "channels": channels,
        "processes": run.options.processes,
        "accounts": run.options.accounts,
        "lines_sent": len(lines),
        "lost": lost(losses, run.phases),
        "missed_before_join": sum(missed.values()),
        "missed_minimum": sum(minimum.values()),
        "missed_by_phase": {name: [missed[name], minimum[name]] for name in missed},
        "duplicates": run.reader.duplicates,
        "copies_dropped_by_reader": run.reader.repeated,
        "budget_violations": violations(entries),
        "unjoined_channels": len(run.platform.unjoined()),
        "join_ratio": round((max(joined, default=join.ended) - join.began) / bound, 3),
        "move_ratio": round((max(moved, default=move.ended) - move.began) / bound, 3),
        "restart_join_ratio": round(len(joins_in(entries, restart)) / channels, 3),
        "rebalances": run.rebalances,
        "sent_lines_per_s": round(len(lines) / spoken_s),
        "kb_per_channel": round((run.full_bytes - run.empty_bytes) / channels / 1024, 1),
        "handover_ms": quantiles_ms([] if waves is None else handover_times(entries, waves)),
        "unfinished": run.unfinished,
    }


def lost(losses: Losses, phases: list[Phase]) -> int:
    """Return the lines that the fleet is to blame for."""
    whole = sum(losses.unjoined[phase.name] for phase in phases if phase.whole)
    return losses.confirmed.total() + whole + losses.unjoined["rest"]


async def run_fleet(options: Options, settings: Settings, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure on this Kafka and this PostgreSQL, whose topics and tables are there and empty."""
    async with world(options, settings, folder, tell) as run:
        return await play(run)


async def run_all(options: Options, settings: Settings, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Play, and let one shard be flooded with lines after that."""
    return await run_fleet(options, settings, folder, tell) | await measure_flood(settings, folder, tell)


Measurement: TypeAlias = Callable[[Settings, Path, Callable[[str], None]], Coroutine[Any, Any, dict[str, Any]]]
"""Measures on a Kafka and a PostgreSQL, keeps logs in a folder, and tells how far it is."""


def measure(work: Measurement, *, keep: Path | None = None) -> dict[str, Any]:
    """Return what `work` finds on servers of its own, whose topics and tables are there and empty."""
    from materialize import bench_stack  # noqa: PLC0415  (a test brings its own servers)

    quiet_logs()
    with bench_stack() as bench:
        settings = bench.settings()
        apply_topics(settings.kafka)
        with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
            migrate(connection)
        folder = keep or bench.folder / "fleet"
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(work(settings, folder, lambda text: print(text, file=sys.stderr, flush=True)))


def main(argv: list[str]) -> int:
    """Measure and print."""
    usual = Options()
    parser = argparse.ArgumentParser(prog="serverchange bench fleet", description=__doc__)
    parser.add_argument("--channels", type=int, help=f"{usual.channels}, or as many as the accounts may be in")
    parser.add_argument("--accounts", type=int, default=usual.accounts, help="more than one: ordinary ones")
    parser.add_argument("--processes", type=int, default=usual.processes)
    parser.add_argument("--lines-per-second", type=float, default=usual.lines_per_second)
    parser.add_argument("--close-after", type=float, nargs=2, default=usual.close_s, metavar=("MIN_S", "MAX_S"))
    parser.add_argument("--overlap", type=float, default=usual.overlap_s, metavar="S")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--keep", type=Path, help="keep logs in this folder")
    parser.add_argument("--json", action="store_true", dest="as_json")
    chosen = parser.parse_args(argv)
    options = Options(
        channels=chosen.channels
        or (usual.channels if chosen.accounts == 1 else chosen.accounts * usual.channels_per_account),
        processes=chosen.processes,
        accounts=chosen.accounts,
        lines_per_second=chosen.lines_per_second,
        seed=chosen.seed,
        close_s=tuple(chosen.close_after),
        overlap_s=chosen.overlap,
    )
    result = measure(functools.partial(run_all, options), keep=chosen.keep)
    sys.stdout.write(json.dumps(result, indent=None if chosen.as_json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
