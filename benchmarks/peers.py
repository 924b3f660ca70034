"""How many lines, and for how long, does a bot lose in a RECONNECT and in a mass move: ours, tmi.js and TwitchIO?

`serverchange bench peers --channels 300 --json`. Each in its turn, on a platform of its own made from the same seed,
with the same channels, the same chat and an account of the same class: all channels are joined, and what is said is
read; RECONNECT goes to every link, which closes `--close-after` seconds later; then every channel moves to another
cluster at one instant.

- **ours**: one `serverchange reconnector`, its lines read with the SDK. The bench writes the decisions of the mass move
  to `cluster-changes` as the platform moves: what a notice, a lookup and the fold take before that is not in these
  figures (`serverchange bench latency` has it).
- **tmi.js** 1.8.5 and **TwitchIO** 2.10: one client with its own defaults, in a process of its own. Both have their own
  handling of RECONNECT, and their own pace of JOINs whatever the account may do: tmi.js one in 2 s, TwitchIO 20 in
  11 s. TwitchIO reads nothing meanwhile; a channel whose JOIN it has not seen answered within 60 s counts as failed,
  and is not joined again after a RECONNECT: of more than 100 channels it loses some for good.

Neither knows of clusters: tmi.js 0.0.28 emitted `serverchange`, 1.8.5 drops the line. So a bot on it stays where the
channel was and hears nothing; that is measured until `--watch` seconds after the move, and would go on.

The judge is the simulator's ledger: which lines it sent, and when a link of the client was in a channel where that
lived. Only what a client read comes from the client: the numbers of the lines that it told its bot.

- `lines_sent`, `lost`: lines of the phase, and those that the client did not read; `lost_in_room` of them were sent to
  a link of its own.
- `silent_s`: seconds of the phase in which the client was in no room where the channel lives, a channel.
- `still_silent`: channels where it was in none at the phase's end.
- `lasted_s`: of the phase. RECONNECT lasts until the client is in every channel again, on one link each, or joins no
  more (`unfinished` says so), and at least `--watch` seconds.
- `load_average`: of the machine, as the contender began.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

sys.path.insert(0, str(Path(__file__).parent))

from fleet import ACCOUNT, AWS, MAIN, measure, simulator_settings
from fleet import Options as FleetOptions
from fleet_judge import Phase, find_losses, silence_in, silent_spells, violations
from fleet_world import LOOK_S, Decisions, Platform, Reader, ShardProcess, line_number, shard_environment, wait_quiet

from serverchange.adapters.settings import Settings

PEERS: Final = Path(__file__).parents[1] / "tests" / "peers"

LINE_BYTES_MAX: Final = 1024 * 1024
"""Of what a client tells in one line."""

CLIENT_STOP_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured.

    Attributes:
        lines_per_second: in all channels together, from when all are joined.
        tier: class of the account.
        close_s: bounds of the delay between RECONNECT and the link's end.
        overlap_s: of our handovers.
        watch_s: how long the mass move is watched, and RECONNECT at least.
        stall_s: no channel was joined for so long: the others never will be. No client pauses for longer than 11 s.
        quiet_s: nothing was read for so long after the last line: nothing more will be.
    """

    channels: int = 300
    lines_per_second: float = 150.0
    seed: int = 1
    tier: str = "verified"
    close_s: tuple[float, float] = (5.0, 10.0)
    overlap_s: float = 20.0
    watch_s: float = 60.0
    stall_s: float = 60.0
    quiet_s: float = 5.0


class Client(Protocol):
    """A bot under test.

    Attributes:
        read: channel → numbers of the lines that it gave to its reader.
        count: how many those were.
        duplicates: lines given again.
    """

    read: Mapping[str, Collection[int]]
    count: int
    duplicates: int

    async def join(self, channels: Sequence[str]) -> None:
        """Let it join these channels, which live on `MAIN`."""

    async def follow(self, channels: Sequence[str]) -> None:
        """The channels live on `AWS` now; whoever is told of decisions is told."""


Contender = Callable[[Platform, Path], AbstractAsyncContextManager[Client]]
"""Makes a client of a platform, whose logs go into a folder."""


class Ours:
    """One shard, the SDK's reader behind it, and the decisions in front of it."""

    def __init__(self, reader: Reader, decisions: Decisions) -> None:
        self._reader = reader
        self._decisions = decisions

    @property
    def read(self) -> Mapping[str, Collection[int]]:
        """What the SDK's reader was given."""
        return self._reader.read

    @property
    def count(self) -> int:
        """How many lines."""
        return self._reader.count

    @property
    def duplicates(self) -> int:
        """How many of them again."""
        return self._reader.duplicates

    async def join(self, channels: Sequence[str]) -> None:
        """Decide that the channels live on `MAIN`."""
        await asyncio.to_thread(self._decisions.publish, self._decisions.prepare(channels, MAIN, 1))

    async def follow(self, channels: Sequence[str]) -> None:
        """Decide that the channels live on `AWS`."""
        await asyncio.to_thread(self._decisions.publish, self._decisions.prepare(channels, AWS, 2))


@asynccontextmanager
async def ours(options: Options, settings: Settings, platform: Platform, folder: Path) -> AsyncIterator[Client]:
    """Start one shard, as production does."""
    environment = shard_environment(settings, platform, [ACCOUNT], RECONNECTOR_OVERLAP_S=str(options.overlap_s))
    shard = ShardProcess("shard-1", environment, folder / "shard-1.log")
    reader, decisions = Reader(settings.kafka), Decisions(settings.kafka)
    try:
        await shard.start()
        await shard.ready()
        yield Ours(reader, decisions)
    finally:
        await shard.end()
        reader.close()
        decisions.close()


@dataclass(slots=True)
class Peer:
    """A client library in a process of its own, which tells each message that it reads; see tests/peers."""

    command: Callable[[Sequence[str]], list[str]]
    environment: Mapping[str, str]
    log: Path
    read: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    count: int = 0
    duplicates: int = 0
    _process: asyncio.subprocess.Process | None = None
    _listening: asyncio.Task[None] | None = None

    async def join(self, channels: Sequence[str]) -> None:
        """Start it with these channels, as a bot would."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(channels),
                env=dict(self.environment),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LINE_BYTES_MAX,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(b'{"call": "connect", "args": []}\n')
        self._listening = asyncio.create_task(self._listen(self._process))

    async def follow(self, channels: Sequence[str]) -> None:
        """Nothing: it knows of no cluster."""

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            told = json.loads(line)
            if told.get("event") != "chat" or (number := line_number(told["args"][2])) is None:
                continue
            numbers = self.read[told["args"][0].removeprefix("#")]
            self.duplicates += number in numbers
            numbers.add(number)
            self.count += 1

    async def end(self) -> None:
        """End it."""
        if self._process is not None and self._listening is not None:
            if self._process.returncode is None:
                self._process.kill()
            async with asyncio.timeout(CLIENT_STOP_S):
                await self._process.wait()
                await self._listening


def _token(platform: Platform) -> str:
    (account,) = platform.addresses.accounts
    return account.token


def _websocket(platform: Platform) -> str:
    return next(servers.ws for name, servers in platform.addresses.clusters.items() if name == MAIN)


@asynccontextmanager
async def tmi_js(platform: Platform, folder: Path) -> AsyncIterator[Client]:
    """A bot on tmi.js 1.8.5, with its defaults."""
    sys.path.insert(0, str(PEERS))
    from node_packages import NODE, install_node_packages  # noqa: PLC0415  (asks for Node only where it is wanted)

    modules = install_node_packages()
    host, port = _websocket(platform).split(":")

    def command(channels: Sequence[str]) -> list[str]:
        client = {
            "connection": {"server": host, "port": int(port), "secure": False},
            "identity": {"username": ACCOUNT, "password": f"oauth:{_token(platform)}"},
            "channels": list(channels),
        }
        return [str(NODE), str(PEERS / "tmi_client.cjs"), "tmi.js", json.dumps(client)]

    peer = Peer(command, {**os.environ, "NODE_PATH": str(modules)}, folder / "tmi.js.log")
    try:
        yield peer
    finally:
        await peer.end()


@asynccontextmanager
async def twitchio(platform: Platform, folder: Path) -> AsyncIterator[Client]:
    """A bot on TwitchIO 2.10, with its defaults."""

    def command(channels: Sequence[str]) -> list[str]:
        client = {
            "websocket_url": f"ws://{_websocket(platform)}",
            "api_url": platform.addresses.api_url,
            "token": _token(platform),
            "channels": list(channels),
        }
        return [sys.executable, "-P", str(PEERS / "twitchio_client.py"), json.dumps(client)]

    peer = Peer(command, os.environ, folder / "twitchio.log")
    try:
        yield peer
    finally:
        await peer.end()


NAMES: Final = ("ours", "tmi.js", "twitchio")


def make_contender(name: str, options: Options, settings: Settings) -> Contender:
    """Return one of `NAMES`."""
    return {"ours": functools.partial(ours, options, settings), "tmi.js": tmi_js, "twitchio": twitchio}[name]


@dataclass(slots=True)
class Bout:
    """One client on its platform.

    Attributes:
        homes: where each channel lived at first.
        unfinished: what did not come to rest in time.
    """

    options: Options
    platform: Platform
    client: Client
    tell: Callable[[str], None]
    homes: dict[str, str]
    unfinished: list[str] = field(default_factory=list)

    async def watch(self, name: str, least_s: float, *, rest: bool) -> Phase:
        """Wait until all channels are at rest, where asked, and for at least so long."""
        began = time.monotonic()
        if rest and not await self.wait_at_rest():
            self.unfinished.append(f"{name}: {len(self.platform.unjoined())} channels not joined")
        await asyncio.sleep(max(0.0, began + least_s - time.monotonic()))
        await self.platform.refresh()
        phase = Phase(name, began, time.monotonic(), whole=True)
        self.tell(f"{name} {phase.ended - began:.1f} s, {self.client.count} lines read")
        return phase

    async def wait_at_rest(self) -> bool:
        """Wait until each channel is on one link, where it lives; false once it gets no further."""
        stall_s = self.options.stall_s + self.options.close_s[1]
        joins, since = 0, time.monotonic()
        while not await self.platform.wait_at_rest(LOOK_S):
            now_joined = sum(1 for entry in self.platform.entries if entry.kind == "joined")
            if now_joined != joins:
                joins, since = now_joined, time.monotonic()
            elif time.monotonic() - since > stall_s:
                return False
        return True

    async def catch_up(self) -> None:
        """Wait until the client has read what is said first: TwitchIO reads nothing before its last JOIN's pause."""
        deadline = time.monotonic() + self.options.stall_s
        said = 0
        while not said or self.client.count < said:
            said = said or (await self.platform.get("status"))["lines_sent"]
            if time.monotonic() > deadline:
                self.unfinished.append(f"catch up: {self.client.count} of {said} lines read")
                return
            await asyncio.sleep(LOOK_S)

    async def play(self) -> dict[str, Any]:
        """Let the client join, be told to reconnect, and be left behind by a mass move; return the figures."""
        options, platform, channels = self.options, self.platform, list(self.homes)
        load = os.getloadavg()[0]
        await self.client.join(channels)
        joining = await self.watch("join", 0.0, rest=True)
        await platform.post("chat-rate", lines_per_second=options.lines_per_second)
        await self.catch_up()
        await platform.post("reconnect")
        reconnect = await self.watch("reconnect", options.watch_s, rest=True)
        await platform.post("move", cluster=AWS, force=True)
        await self.client.follow(channels)
        move = await self.watch("move", options.watch_s, rest=False)
        await platform.post("chat-rate", lines_per_second=0)
        await wait_quiet(lambda: self.client.count, quiet_s=options.quiet_s)
        return {
            "load_average": round(load, 1),
            "joined_s": round(joining.ended - joining.began, 1),
            **await self.judge([reconnect, move]),
            "duplicates": self.client.duplicates,
            "budget_violations": violations(platform.entries),
            "unfinished": self.unfinished,
        }

    async def judge(self, phases: Sequence[Phase]) -> dict[str, Any]:
        """Return the figures of each phase, by the ledger."""
        losses = find_losses([line async for line in self.platform.lines()], phases, self.client.read)
        spells = silent_spells(self.platform.entries, self.homes, phases[-1].ended)
        return {
            phase.name: {
                "lasted_s": round(phase.ended - phase.began, 1),
                "lines_sent": losses.sent[phase.name],
                "lost": losses.confirmed[phase.name] + losses.unjoined[phase.name],
                "lost_in_room": losses.confirmed[phase.name],
                "silent_s": {
                    "mean": round((silent := silence_in(spells, phase)).total() / len(self.homes), 2),
                    "max": round(max(silent.values(), default=0.0), 2),
                },
                "still_silent": sum(spell.began < phase.ended <= spell.ended for spell in spells),
            }
            for phase in phases
        }


async def compete(options: Options, contender: Contender, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Judge one client on a platform of its own."""
    account = {"login": ACCOUNT, "token": "bench-token", "tier": options.tier}
    world = simulator_settings(
        FleetOptions(channels=options.channels, seed=options.seed, close_s=options.close_s), accounts=[account]
    )
    platform = Platform(folder / "platform", world)
    async with platform.running(), contender(platform, folder) as client:
        bout = Bout(options, platform, client, lambda text: tell(f"{folder.name}: {text}"), dict(platform.home))
        return await bout.play()


async def run_peers(
    options: Options,
    settings: Settings,
    folder: Path,
    tell: Callable[[str], None],
    *,
    names: Sequence[str] = NAMES,
) -> dict[str, Any]:
    """Measure one after the other, on this Kafka and this PostgreSQL, whose topics and tables are there and empty."""
    found = {
        name: await compete(options, make_contender(name, options, settings), folder / name, tell) for name in names
    }
    return {
        "channels": options.channels,
        "lines_per_second": options.lines_per_second,
        "account_class": options.tier,
        "seed": options.seed,
        "close_after_s": list(options.close_s),
        "watch_s": options.watch_s,
        "contenders": found,
    }


def main(argv: list[str]) -> int:
    """Measure and print; 1 if ours lost a line in the RECONNECT."""
    usual = Options()
    parser = argparse.ArgumentParser(
        prog="serverchange bench peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=usual.channels)
    parser.add_argument("--lines-per-second", type=float, default=usual.lines_per_second)
    parser.add_argument("--account-class", choices=("ordinary", "known", "verified"), default=usual.tier)
    parser.add_argument("--close-after", type=float, nargs=2, default=usual.close_s, metavar=("MIN_S", "MAX_S"))
    parser.add_argument("--watch", type=float, default=usual.watch_s, metavar="S")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES)
    parser.add_argument("--keep", type=Path, help="keep logs in this folder")
    parser.add_argument("--json", action="store_true", dest="as_json")
    chosen = parser.parse_args(argv)
    options = Options(
        channels=chosen.channels,
        lines_per_second=chosen.lines_per_second,
        tier=chosen.account_class,
        close_s=tuple(chosen.close_after),
        watch_s=chosen.watch,
        seed=chosen.seed,
    )
    result = measure(functools.partial(run_peers, options, names=chosen.only), keep=chosen.keep)
    sys.stdout.write(json.dumps(result, indent=None if chosen.as_json else 2) + "\n")
    own = result["contenders"].get("ours")
    return int(own is not None and own["reconnect"]["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
