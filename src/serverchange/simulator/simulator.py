"""The simulator put together: the world moves on by time, chat flows, ports are open.

`Simulator` runs in the event loop of whoever starts it; `run` is a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from serverchange.events import Channel, ChannelKind, Cluster
from serverchange.simulator.addresses import AccountToken, Addresses, ClusterAddresses
from serverchange.simulator.certificates import issue_server_certificate
from serverchange.simulator.clock import ScaledClock
from serverchange.simulator.control import Control
from serverchange.simulator.faults import FaultPlan, Faults
from serverchange.simulator.http_server import HttpServer
from serverchange.simulator.ledger import EntryKind, Ledger
from serverchange.simulator.link import Link
from serverchange.simulator.listeners import Listeners
from serverchange.simulator.network import Network
from serverchange.simulator.platform_api import PlatformApi
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.world import Happening, LaggingView, Moved, OrderRefusedError, WentLive, World

MINUTE_S: Final = 60.0

WATCH_INTERVAL_S: Final = 0.5
"""How often links are looked at for PING and timeouts."""

LINES_BEHIND_MAX_S: Final = 1.0
"""Lines that fell due during a longer pause of the process are dropped, not sent in one burst."""


class Simulator:
    """The chat platform in a box.

    Use it as an async context manager, or call `start` and `stop`. Its methods are the control interface's; they
    must be called from the event loop in which it was started.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        """Make the channels; nothing runs and no port is open before `start`."""
        self.settings = settings or SimulatorSettings()
        self.world = World(self.settings)
        self.ledger = Ledger(time.monotonic, time.time, self.settings.ledger_lines_max)
        self.clock = ScaledClock(time.monotonic, self.settings.time_scale)
        self._chance = random.Random(f"{self.settings.seed}/chat")  # noqa: S311  (small talk)
        self.faults = FaultPlan(random.Random(f"{self.settings.seed}/faults").random)  # noqa: S311  (as above)
        self.view = LaggingView(
            self.settings.seed,
            self.settings.api_replicas,
            self.settings.api_lag_mean_minutes * MINUTE_S,
            self.settings.api_lag_max_minutes * MINUTE_S,
        )
        self.lines_per_second = self.settings.lines_per_second
        self._tasks: list[asyncio.Task[None]] = []
        self._folder: Path | None = None
        self._talkers: tuple[Sequence[Channel], Sequence[float]] | None = None
        self.control = Control(self)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def addresses(self) -> Addresses:
        """Where everything can be reached; after `start`."""
        return Addresses(
            api_url=self._api_server.url,
            control_url=self._control_server.url,
            ca_file=str(self._certificate.ca_file),
            clusters={
                cluster: ClusterAddresses(**self.listeners.addresses(cluster)) for cluster in self.world.clusters
            },
            accounts=tuple(
                AccountToken(login=account.login, token=account.token.get_secret_value(), tier=account.tier)
                for account in self.settings.accounts
            ),
        )

    async def start(self) -> None:
        """Open every port, then let time begin.

        Raises:
            OSError: a port that the settings name is taken.
        """
        settings = self.settings
        self._folder = settings.data_dir or Path(tempfile.mkdtemp(prefix="serverchange-simulator-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._certificate = issue_server_certificate(self._folder, settings.host)
        self.listeners = Listeners(settings.host, self._certificate.context)
        self.network = Network(
            settings,
            self.world,
            self.ledger,
            self.faults,
            monotonic=time.monotonic,
            server_of=lambda cluster: self.listeners.addresses(cluster)[settings.api_servers_transport],
        )
        self.api = PlatformApi(settings, self.world, self.view, self.listeners, self.faults, now_s=self.clock.now_s)
        self._api_server, self._control_server = HttpServer(self.api.answer), HttpServer(self.control.answer)
        for cluster in self.world.clusters:
            await self.listeners.open(cluster, self.network)
        await self._api_server.start(settings.host, settings.api_port)
        await self._control_server.start(settings.host, settings.control_port)
        self.clock = ScaledClock(time.monotonic, settings.time_scale)
        self._tell(self.world.advance(0.0))
        self._tasks = [asyncio.create_task(self._talk()), asyncio.create_task(self._watch())]

    async def run_until(self, stopped: asyncio.Event) -> None:
        """Return when `stopped` is set; raise what ended the simulator's own work before that."""
        stopping = asyncio.create_task(stopped.wait())
        done, _ = await asyncio.wait({stopping, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Close every link and port."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in list(self.network.links.values()):
            self.network.close_link(link, "the simulator stops")
        self.listeners.close()
        self.control.stop()
        await self._api_server.stop()
        await self._control_server.stop()
        if self.settings.data_dir is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # What the control interface can do.

    def move(self, channel: Channel, cluster: Cluster, *, force: bool = False) -> Moved:
        """Move a channel now.

        Raises:
            OrderRefusedError: see `World.move`.
        """
        move = self.world.move(channel, cluster, self.clock.now_s(), force=force)
        self._tell([move])
        return move

    def move_all(self, cluster: Cluster, *, force: bool = False) -> int:
        """Move every channel that lives elsewhere, in one instant; return how many. Group channels stay.

        Raises:
            OrderRefusedError: there is no such cluster, or a channel is live and not forced; nothing is moved then.
        """
        here = self.world.cluster_of
        movable = [
            profile.name
            for profile in self.world.profiles.values()
            if profile.kind is not ChannelKind.GROUP and here[profile.name] != cluster
        ]
        if not force and (live := next((name for name in movable if name in self.world.live), None)):
            raise OrderRefusedError(f"{live} is live; channels move only while they do not stream")
        for channel in movable:
            self.move(channel, cluster, force=force)
        return len(movable)

    def set_live(self, channel: Channel, live: bool) -> None:
        """Make a channel stream or not, from now on whatever its habits.

        Raises:
            OrderRefusedError: there is no such channel.
        """
        happening = self.world.set_live(channel, live, self.clock.now_s())
        if happening is not None:
            self._tell([happening])

    def say(self, channel: Channel, count: int = 1, text: str | None = None) -> tuple[int, int]:
        """Send numbered lines now, whether the channel is live or not; return the first and the last number.

        Raises:
            OrderRefusedError: there is no such channel.
        """
        if channel not in self.world.profiles:
            raise OrderRefusedError(f"there is no channel {channel!r}")
        numbers = [self.network.send_numbered(channel, text) for _ in range(count)]
        self.ledger.notify()
        return numbers[0], numbers[-1]

    def set_time_scale(self, scale: float) -> None:
        """Let simulated time run at another pace from now on."""
        self.clock.set_scale(scale)

    def start_script(self) -> None:
        """Begin the migration script, or go on with it."""
        self.world.script.start(self.clock.now_s())

    def pause_script(self) -> None:
        """Hold the migration script."""
        self.world.script.pause(self.clock.now_s())

    def set_faults(self, faults: Faults) -> None:
        """Replace the faults that are on."""
        self.faults.replace(faults)
        self.network.heed_faults()

    def links(
        self, *, link: int | None = None, cluster: Cluster | None = None, account: str | None = None
    ) -> list[Link]:
        """Return the open, logged-in links that match, the oldest first."""
        return [
            candidate
            for candidate in self.network.links.values()
            if candidate.account is not None
            and link in {None, candidate.number}
            and cluster in {None, candidate.cluster}
            and account in {None, candidate.account}
        ]

    def reconnect(self, links: Iterable[Link], close_after_s: float | None = None) -> None:
        """Send RECONNECT to these links; each closes 5-60 s later, by the settings, unless told."""
        for link in links:
            self.network.reconnect(link, close_after_s)

    def drop(self, links: Iterable[Link], *, abort: bool = True) -> None:
        """Cut these links."""
        for link in links:
            self.network.close_link(link, "fault: dropped", abort=abort)

    async def change_servers(
        self, cluster: Cluster, *, renew: bool = False, dead: int | None = None, shut: bool = False
    ) -> None:
        """Change a cluster's servers: new ports, dead entries in its list, or all ports shut while still listed.

        Raises:
            OrderRefusedError: there is no such cluster.
        """
        if cluster not in self.world.clusters:
            raise OrderRefusedError(f"there is no cluster {cluster!r}")
        if shut:
            self.listeners.shut(cluster)
        if renew:
            await self.listeners.open(cluster, self.network)
        if dead is not None:
            self.listeners.set_dead(cluster, dead)

    # What goes on by itself.

    def _tell(self, happenings: Iterable[Happening]) -> None:
        """Let everyone know what happened: the API's replicas, those joined, the ledger."""
        for happening in happenings:
            channel = happening.channel
            if isinstance(happening, Moved):
                self.view.record(happening)
                self.ledger.record(
                    EntryKind.MOVED,
                    channel=channel,
                    cluster=happening.cluster,
                    previous=happening.previous,
                    detail=happening.step,
                )
                self.network.announce_move(happening)
            else:
                kind = EntryKind.WENT_LIVE if isinstance(happening, WentLive) else EntryKind.WENT_OFFLINE
                self.ledger.record(kind, channel=channel, cluster=self.world.cluster_of[channel])
            self._talkers = None

    async def _talk(self) -> None:
        """Move the world on and send the lines that are due, once a tick."""
        tick_s = self.settings.chat_tick_s
        last_s = time.monotonic()
        owed = 0.0
        while True:
            await asyncio.sleep(tick_s)
            self._tell(self.world.advance(self.clock.now_s()))
            now_s = time.monotonic()
            owed += self.lines_per_second * min(now_s - last_s, LINES_BEHIND_MAX_S)
            last_s = now_s
            due = int(owed)
            owed -= due
            self._send_due(due)
            self.network.release_held()

    def _send_due(self, count: int) -> None:
        if count == 0:
            return
        if self._talkers is None:
            self._talkers = self._find_talkers()
        names, weights = self._talkers
        if not names:
            return
        share = self.settings.clearchat_share
        for channel in self._chance.choices(names, cum_weights=weights, k=count):
            self.network.send_numbered(channel)
            if share and self._chance.random() < share:
                self.network.send_clearchat(channel, "viewer_000")
        self.ledger.notify()

    def _find_talkers(self) -> tuple[Sequence[Channel], Sequence[float]]:
        """Return the channels that have chat now, and their cumulative weights."""
        names = list(self.world.profiles if self.settings.chat_in_offline_channels else self.world.live)
        return names, list(itertools.accumulate(self.world.profiles[name].weight for name in names))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            self.network.watch_links(time.monotonic())


def run(
    settings: SimulatorSettings | None = None,
    *,
    addresses_file: Path | None = None,
    announce: Callable[[Addresses], None] | None = None,
) -> None:
    """Run a simulator until SIGTERM or SIGINT.

    Args:
        settings: the demo's by default.
        addresses_file: written (whole, by rename) once every port is open.
        announce: called with the addresses then; prints them as one line of JSON by default.
    """
    asyncio.run(_run(settings or SimulatorSettings(), addresses_file, announce or _print_addresses))


def _print_addresses(addresses: Addresses) -> None:
    sys.stdout.write(addresses.model_dump_json() + "\n")
    sys.stdout.flush()


async def _run(settings: SimulatorSettings, addresses_file: Path | None, announce: Callable[[Addresses], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Simulator(settings) as simulator:
        if addresses_file is not None:
            _write_whole(addresses_file, json.loads(simulator.addresses.model_dump_json()))
        announce(simulator.addresses)
        await simulator.run_until(stopped)


def _write_whole(path: Path, content: object) -> None:
    """Write a file so that a reader sees all of it or none."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
