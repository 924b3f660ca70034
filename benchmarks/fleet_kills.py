"""Does a channel ever lose its reader because another process died?

`serverchange bench fleet_kills --kills 50 --seed 1 --json`. Shards are processes of their own; while channels move,
while links are told to reconnect, while a process is deployed anew, or while nothing happens, one of them is killed
with -9 at a random moment. Half of the time a successor of the same name is started at once, else the others take over
first. The simulator's ledger is the judge, from the first JOIN to the last:

- `unexplained`: spells in which no link of ours was in a channel and which no kill began.
- `rejoined_s`: from a kill to the JOIN of each channel that it left without a reader; `late` of them took longer than
  `bound_s`: 15 s until another process has the partition, and 1.15 times what the platform's rate allows at best.
- `two_owners_s`: the longest spell with two links of ours in a channel; `two_owners_bound_s` is what a handover may
  take: the overlap, or the delay after RECONNECT, and a look of the timers.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from fleet import AWS, MAIN, WINDOW_S, Options, Run, measure, world
from fleet_judge import bound_s, owner_spells, quantiles_ms, violations
from fleet_world import LOOK_S, ShardProcess

from serverchange.adapters.settings import Settings

STEPS: Final = ("move", "reconnect", "deploy", "nothing")
MOVED_SHARE: Final = 0.3
DEATH_S: Final = 2.0
"""Within so long after a kill the platform has seen all links of the dead process end."""

TAKEOVER_S: Final = 15.0
REST_TIMEOUT_S: Final = 120.0
TIMERS_S: Final = 2.0


@dataclass(slots=True)
class Killing:
    """A run under way.

    Attributes:
        killed: when processes were killed, by the machine's monotonic clock.
        steps: what was going on then.
        unfinished: what did not come to rest in time.
    """

    run: Run
    random: random.Random
    versions: Counter[str] = field(default_factory=Counter)
    killed: list[float] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    unfinished: list[str] = field(default_factory=list)
    started: int = 0

    async def settle(self, what: str) -> None:
        """Wait until each channel is on one link, where it lives."""
        if not await self.run.platform.wait_at_rest(REST_TIMEOUT_S):
            self.unfinished.append(f"{what}: {len(self.run.platform.unjoined())} unjoined")

    async def share_out(self) -> None:
        """Wait until every process has channels: who has none leaves nobody."""
        deadline = time.monotonic() + REST_TIMEOUT_S
        while not all([await shard.confirmed() for shard in self.run.shards]):
            if time.monotonic() > deadline:
                self.unfinished.append("a process never got a channel")
                return
            await asyncio.sleep(LOOK_S)
        await self.settle("shared out")

    async def start(self, name: str) -> ShardProcess:
        """Start a process of this name."""
        self.started += 1
        log = self.run.shards[0].log.with_name(f"{name}-{self.started}.log")
        shard = ShardProcess(name, self.run.shards[0].environment, log)
        await shard.start()
        return shard

    async def once(self, number: int) -> None:
        """Kill one process in the midst of something, and wait until all is well again."""
        await self.share_out()
        step = self.random.choice(STEPS)
        self.steps[step] += 1
        at_stake = list(range(len(self.run.shards)))
        draining = None
        match step:
            case "move":
                await self.move_some()
            case "reconnect":
                await self.run.platform.post("reconnect", share=0.5)
            case "deploy":
                index = self.random.choice(at_stake)
                draining = self.run.shards[index]
                draining.terminate()
                self.run.shards[index] = await self.start(draining.name)
                at_stake = [index]
            case _:
                pass
        await asyncio.sleep(self.random.uniform(0.0, self.run.options.overlap_s + 1.0))
        index = self.random.choice(at_stake)
        victim = self.run.shards[index]
        if draining is not None and draining.process.returncode is None and self.random.random() < 0.5:
            victim = draining
        self.killed.append(time.monotonic())
        await victim.end()
        if victim is not draining:
            at_once = self.random.random() < 0.5 or draining is not None
            if not at_once:
                await self.settle(f"kill {number} ({step}), taken over")
            self.run.shards[index] = await self.start(victim.name)
        await self.run.shards[index].ready()
        await self.settle(f"kill {number} ({step})")
        if draining is not None and draining.process.returncode is None:
            # It ends by itself once all is given away; to end it here would be a kill that nobody counts.
            async with asyncio.timeout(REST_TIMEOUT_S):
                await draining.process.wait()
        self.run.tell(f"kill {number}: {step}, {victim.name}, at rest after {time.monotonic() - self.killed[-1]:.1f} s")

    async def move_some(self) -> None:
        """Let some channels live on the other cluster, and decide so."""
        channels = sorted(self.run.platform.home)
        for channel in self.random.sample(channels, max(1, round(MOVED_SHARE * len(channels)))):
            target = MAIN if self.run.platform.home[channel] == AWS else AWS
            self.versions[channel] += 1
            await self.run.platform.post("move", channel=channel, cluster=target, force=True)
            self.run.decisions.publish(self.run.decisions.prepare([channel], target, 1 + self.versions[channel]))


async def run_kills(
    options: Options, settings: Settings, folder: Path, tell: Callable[[str], None], *, kills: int
) -> dict[str, Any]:
    """Kill and judge, on this Kafka and this PostgreSQL, whose topics and tables are there and empty."""
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(world(options, settings, folder, tell))
        killing = Killing(run, random.Random(options.seed))
        await run.join_all()
        await killing.settle("join")
        await run.platform.post("chat-rate", lines_per_second=options.lines_per_second)
        for number in range(1, kills + 1):
            await killing.once(number)
        await run.platform.refresh()
        return judge(killing)


def judge(killing: Killing) -> dict[str, Any]:
    """Return the figures."""
    options, entries = killing.run.options, killing.run.platform.entries
    none, several = owner_spells(entries, time.monotonic())
    caused = [
        (spell, at)
        for spell in none
        if (at := next((at for at in killing.killed if at <= spell.began <= at + DEATH_S), None)) is not None
    ]
    explained = {spell for spell, _ in caused}
    unexplained = [spell for spell in none if spell not in explained]
    bound = TAKEOVER_S + 1.15 * bound_s(options.channels, count=options.joins, window_s=WINDOW_S)
    taken = [spell.ended - at for spell, at in caused]
    for spell in unexplained[:5]:
        killing.run.tell(f"unexplained: {spell}")
    quantiles = quantiles_ms(taken)
    return {
        "channels": options.channels,
        "processes": options.processes,
        "seed": options.seed,
        "kills": len(killing.killed),
        "steps": dict(sorted(killing.steps.items())),
        "left_without_reader": len(caused),
        "unexplained": len(unexplained),
        "rejoined_s": {name: round(value / 1000, 2) for name, value in quantiles.items()},
        "bound_s": round(bound, 2),
        "late": sum(one > bound for one in taken),
        "two_owners_s": round(max((spell.lasted_s for spell in several), default=0.0), 2),
        "two_owners_bound_s": max(options.overlap_s, options.close_s[1]) + TIMERS_S,
        "budget_violations": violations(entries),
        "unjoined_channels": len(killing.run.platform.unjoined()),
        "unfinished": killing.unfinished,
    }


def main(argv: list[str]) -> int:
    """Kill, judge and print; 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="serverchange bench fleet_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--channels", type=int, default=300)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", dest="as_json")
    chosen = parser.parse_args(argv)
    options = Options(
        channels=chosen.channels,
        processes=chosen.processes,
        seed=chosen.seed,
        lines_per_second=100.0,
        channels_per_link=20,
        close_s=(3.0, 8.0),
        overlap_s=5.0,
    )
    result = measure(functools.partial(run_kills, options, kills=chosen.kills))
    sys.stdout.write(json.dumps(result, indent=None if chosen.as_json else 2) + "\n")
    broken = ("unexplained", "late", "budget_violations", "unjoined_channels")
    return int(any(result[key] for key in broken) or bool(result["unfinished"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
