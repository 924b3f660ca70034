"""Wires a shard: its links, its followers, its budget, and a drain that leaves no channel unread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import psycopg

from serverchange.adapters import metrics
from serverchange.adapters.change_follower import ChangeFollower
from serverchange.adapters.hearsay import Hearsay
from serverchange.adapters.kafka.group_follower import Membership
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.table_follower import (
    TableEvent,
    TableFollower,
    TableRecords,
    TablesAway,
    TablesLoaded,
)
from serverchange.adapters.leased_budget import LeasedBudget
from serverchange.adapters.link_fleet import FleetRules, LinkFleet
from serverchange.adapters.link_setup import ANONYMOUS_ACCOUNT, make_link_rules, make_logins
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.doubts import settled_doubts
from serverchange.adapters.process import ExitCode, Process, run_process
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.adapters.settings import ReconnectorSettings, Settings
from serverchange.reconnector.chat_writer import ChatWriter
from serverchange.reconnector.shard import Shard
from serverchange.topics import CHANNEL_LIVE, CLUSTER_CHANGES, CLUSTERS, SHARD_HOLDINGS
from serverchange.tracker.budget import LIMITS, AccountClass, Kind, what_if
from serverchange.tracker.handover import HandoverLimits

_log = get_logger("reconnector")

GROUP: Final = "reconnectors"

WATCH_INTERVAL_S: Final = 1.0
DOUBTS_INTERVAL_S: Final = 2.0
STUCK_AFTER_S: Final = 90.0
"""A follower that did not come round for so long hangs in a call: three times kafka-python's request time-out."""

DRAIN_FACTOR: Final = 1.2
STOP_S: Final = 3.0
"""What the stop itself may take behind a drain: flush, leave, close."""

STOP_MARGIN_S: Final = 4.5


def main(settings: Settings) -> None:
    """Run the shard until it was told to stop and has given its channels away."""

    async def shard(process: Process) -> None:
        await run_shard(settings, process)

    run_process("reconnector", settings.process, shard)


async def run_shard(settings: Settings, process: Process) -> None:
    """Run until `process.stopping` is set and the drain is over; a part that fails for good ends the process."""
    name, wanted = settings.process.name, settings.reconnector
    link_rules = make_link_rules(settings.platform)
    directory = ServerDirectory(link_rules.hosts, settings.platform.transport, settings.platform.seeds)
    budget = LeasedBudget(
        settings.postgres,
        account=wanted.account or ANONYMOUS_ACCOUNT,
        limits={kind: LIMITS[AccountClass(wanted.account_class), kind] for kind in Kind},
        holder=f"reconnector {name}",
        readiness=process.readiness,
    )
    async with contextlib.AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(EventPublisher(settings.kafka, client_id=f"reconnector-{name}"))
        chat = ChatWriter(publisher, shard=name)
        hearsay = await stack.enter_async_context(
            Hearsay(
                publisher,
                source=f"reconnector/{name}",
                known=lambda: directory.clusters,
                on_doubt=lambda *place: shard.doubt_published(*place),  # noqa: PLW0108  (the shard comes next)
            )
        )
        shard = Shard(name, publisher=publisher, hearsay=hearsay, chat=chat, directory=directory)
        await stack.enter_async_context(budget.running())
        shard.fleet = await stack.enter_async_context(
            LinkFleet(
                FleetRules(wanted.channels_per_link, _handover_limits(wanted)),
                link_rules=link_rules,
                login=make_logins(wanted.account, wanted.token),
                servers=directory,
                budget=budget,
                hearer=shard,
            )
        )
        await _Running(settings, process, shard, chat).run()


def _handover_limits(settings: ReconnectorSettings) -> HandoverLimits:
    return HandoverLimits(overlap_s=settings.overlap_s, confirm_timeout_s=settings.confirm_timeout_s)


def drain_s(settings: ReconnectorSettings, channels: int) -> float:
    """Seconds that a stopping shard keeps its links for a successor: what joining its channels takes, and a fifth."""
    if settings.drain_timeout_s:
        return settings.drain_timeout_s
    answer = what_if(channels, AccountClass(settings.account_class), settings.channels_per_link)
    return DRAIN_FACTOR * max(answer.join_s, answer.paced_s)


class _Running:
    """The tasks of a running shard."""

    def __init__(self, settings: Settings, process: Process, shard: Shard, chat: ChatWriter) -> None:
        self._settings = settings
        self._process = process
        self._shard = shard
        self._chat = chat
        self._loop = asyncio.get_running_loop()
        name = settings.process.name
        membership = Membership(CLUSTER_CHANGES, GROUP, f"reconnector-{name}", instance=name)
        self._changes = ChangeFollower(settings.kafka, membership, readiness=process.readiness, hearer=shard)
        self._table_events: asyncio.Queue[TableEvent] = asyncio.Queue()  # bounded by the follower's own slots
        self._tables_loaded = asyncio.Event()
        self._following = False
        self._tables = TableFollower(
            settings.kafka,
            (CLUSTERS, CHANNEL_LIVE, SHARD_HOLDINGS),
            client_id=f"reconnector-{name}-tables",
            deliver=self._deliver_table_event,
        )

    def _deliver_table_event(self, event: TableEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._table_events.put_nowait, event)

    async def run(self) -> None:
        """Work until the process is told to stop, then drain and leave."""
        try:
            await self._work()
        finally:
            if self._following:
                self._changes.follower.stop(0)
            self._tables.stop(0)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tables.start()
            self._process.readiness.wait_for("tables", "clusters and holdings have not been read yet")
            working = [
                tasks.create_task(self._take_tables(), name="tables"),
                tasks.create_task(self._follow_changes(), name="changes"),
                tasks.create_task(self._shard.write_holdings(), name="holdings"),
                tasks.create_task(self._chat.run(), name="chat"),
                tasks.create_task(self._watch(), name="watch"),
                tasks.create_task(self._settle_doubts(), name="doubts"),
            ]
            await self._process.stopping.wait()
            await self._drain()
            await self._leave()
            for task in working:
                task.cancel()

    async def _follow_changes(self) -> None:
        # Servers and earlier claims first: then the first JOINs go to servers that exist.
        await self._tables_loaded.wait()
        self._changes.follower.beat_s = time.monotonic()
        self._following = True
        await self._changes.run()

    async def _take_tables(self) -> None:
        while True:
            match await self._table_events.get():
                case TableRecords(records):
                    self._shard.take_table_records(records)
                    self._tables.taken()
                case TablesLoaded():
                    self._tables_loaded.set()
                    self._process.readiness.found("tables")
                case TablesAway(reason):
                    self._process.readiness.wait_for("tables", reason)

    async def _watch(self) -> None:
        """Show the figures, and end the process when a follower's thread hangs: a restart is cheap."""
        fleet = self._shard.fleet
        while True:
            metrics.CHANNELS.labels(set="wanted").set(fleet.wanted_count)
            metrics.CHANNELS.labels(set="confirmed").set(fleet.confirmed_count)
            metrics.LINKS.labels(state="open").set(fleet.link_count)
            self._process.stop_timeout_s = (
                drain_s(self._settings.reconnector, self._shard.channel_count) + STOP_MARGIN_S
            )
            silent_s = time.monotonic() - self._tables.beat_s
            if self._following:
                silent_s = max(silent_s, time.monotonic() - self._changes.follower.beat_s)
            if silent_s > STUCK_AFTER_S and not self._process.stopping.is_set():
                self._process.fail(ExitCode.NO_PROGRESS, f"a follower of Kafka has been silent for {silent_s:.0f} s")
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _settle_doubts(self) -> None:
        """Ask PostgreSQL which doubts a lookup has answered; there are none most of the time."""
        while True:
            await asyncio.sleep(DOUBTS_INTERVAL_S)
            doubts = self._shard.open_doubts()
            if not doubts:
                continue
            try:
                async with await connect(self._settings.postgres, application="reconnector doubts") as connection:
                    for channel in await settled_doubts(connection, doubts):
                        self._shard.fleet.lookup_agreed(channel)
            except psycopg.Error as error:
                _log.warning(LogEvent.POSTGRES_LOST, reason=str(error).strip())

    async def _drain(self) -> None:
        """Stop following, and keep the links until others have all our channels or the time is over."""
        if self._following:
            await asyncio.to_thread(self._changes.follower.stop, STOP_S)
        timeout_s = drain_s(self._settings.reconnector, self._shard.channel_count)
        _log.info(LogEvent.DRAIN_STARTED, channels=self._shard.channel_count, at_most_s=round(timeout_s, 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._shard.is_empty:
                    self._shard.changed.clear()
                    await self._shard.changed.wait()
        _log.info(LogEvent.DRAIN_ENDED, channels_left=self._shard.channel_count)

    async def _leave(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S / 2):
                await self._chat.flush()
        await asyncio.to_thread(self._tables.stop, STOP_S / 2)
