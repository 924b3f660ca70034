"""Wires the listener: nameless links, the followers, and the brokers' word on what shards hold."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from kafka.errors import KafkaError

from serverchange.adapters import metrics
from serverchange.adapters.change_follower import ChangeFollower
from serverchange.adapters.hearsay import Hearsay
from serverchange.adapters.kafka.group_assignments import assigned_partitions
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
from serverchange.adapters.process import ExitCode, Process, run_process
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.adapters.settings import Settings
from serverchange.irc_listener.listener import Listener
from serverchange.topics import CHANNEL_LIVE, CLUSTER_CHANGES, CLUSTERS
from serverchange.tracker.budget import LIMITS, AccountClass, Kind
from serverchange.tracker.handover import HandoverLimits

_log = get_logger("irc_listener")

GROUP: Final = "listeners"
SHARDS_GROUP: Final = "reconnectors"

HELD_INTERVAL_S: Final = 3.0
"""How often the brokers are asked what shards hold; each answer costs one small request."""

WATCH_INTERVAL_S: Final = 1.0
STUCK_AFTER_S: Final = 90.0
"""A follower that did not come round for so long hangs in a call: three times kafka-python's request time-out."""

STOP_S: Final = 1.5


def main(settings: Settings) -> None:
    """Run the listener until a signal stops it."""

    async def listen(process: Process) -> None:
        await run_listener(settings, process)

    run_process("irc_listener", settings.process, listen)


async def run_listener(settings: Settings, process: Process) -> None:
    """Run until `process.stopping` is set; a part that fails for good ends the process."""
    name, wanted = settings.process.name, settings.listener
    link_rules = make_link_rules(settings.platform)
    directory = ServerDirectory(link_rules.hosts, settings.platform.transport, settings.platform.seeds)
    budget = LeasedBudget(
        settings.postgres,
        account=ANONYMOUS_ACCOUNT,
        limits={kind: LIMITS[AccountClass(wanted.account_class), kind] for kind in Kind},
        holder=f"irc_listener {name}",
        readiness=process.readiness,
    )
    async with contextlib.AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(EventPublisher(settings.kafka, client_id=f"irc_listener-{name}"))
        hearsay = await stack.enter_async_context(
            Hearsay(publisher, source=f"irc_listener/{name}", known=lambda: directory.clusters)
        )
        listener = Listener(hearsay=hearsay, directory=directory)
        await stack.enter_async_context(budget.running())
        listener.fleet = await stack.enter_async_context(
            LinkFleet(
                FleetRules(wanted.channels_per_link, HandoverLimits(), reads_lines=False),
                link_rules=link_rules,
                login=make_logins("", None),
                servers=directory,
                budget=budget,
                hearer=listener,
            )
        )
        await _Running(settings, process, listener).run()


class _Running:
    """The tasks of a running listener."""

    def __init__(self, settings: Settings, process: Process, listener: Listener) -> None:
        self._settings = settings
        self._process = process
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._client_id = f"irc_listener-{settings.process.name}"
        membership = Membership(CLUSTER_CHANGES, GROUP, self._client_id, instance=settings.process.name)
        self._changes = ChangeFollower(settings.kafka, membership, readiness=process.readiness, hearer=listener)
        self._table_events: asyncio.Queue[TableEvent] = asyncio.Queue()  # bounded by the follower's own slots
        self._tables_loaded = asyncio.Event()
        self._following = False
        self._tables = TableFollower(
            settings.kafka,
            (CLUSTERS, CHANNEL_LIVE),
            client_id=f"{self._client_id}-tables",
            deliver=self._deliver_table_event,
        )

    def _deliver_table_event(self, event: TableEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._table_events.put_nowait, event)

    async def run(self) -> None:
        """Work until the process is told to stop."""
        try:
            await self._work()
        finally:
            if self._following:
                await asyncio.to_thread(self._changes.follower.stop, STOP_S)
            self._tables.stop(0)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tables.start()
            self._process.readiness.wait_for("tables", "clusters have not been read yet")
            working = [
                tasks.create_task(self._take_tables(), name="tables"),
                tasks.create_task(self._follow_changes(), name="changes"),
                tasks.create_task(self._ask_what_is_held(), name="held"),
                tasks.create_task(self._watch(), name="watch"),
            ]
            await self._process.stopping.wait()
            for task in working:
                task.cancel()

    async def _follow_changes(self) -> None:
        await self._tables_loaded.wait()
        self._changes.follower.beat_s = time.monotonic()
        self._following = True
        await self._changes.run()

    async def _take_tables(self) -> None:
        while True:
            match await self._table_events.get():
                case TableRecords(records):
                    self._listener.take_table_records(records)
                    self._tables.taken()
                case TablesLoaded():
                    self._tables_loaded.set()
                    self._process.readiness.found("tables")
                case TablesAway(reason):
                    self._process.readiness.wait_for("tables", reason)

    async def _ask_what_is_held(self) -> None:
        while True:
            try:
                held = await asyncio.to_thread(
                    assigned_partitions,
                    self._settings.kafka,
                    group=SHARDS_GROUP,
                    topic=CLUSTER_CHANGES,
                    client_id=f"{self._client_id}-admin",
                )
            except (KafkaError, OSError) as error:
                # No information: what we hear stays as it is.
                _log.warning(LogEvent.KAFKA_LOST, reason=f"{type(error).__name__}: {error}")
            else:
                self._listener.note_held(held)
            await asyncio.sleep(HELD_INTERVAL_S)

    async def _watch(self) -> None:
        """Show the figures, and end the process when a follower's thread hangs: a restart is cheap."""
        fleet = self._listener.fleet
        while True:
            metrics.CHANNELS.labels(set="wanted").set(fleet.wanted_count)
            metrics.CHANNELS.labels(set="confirmed").set(fleet.confirmed_count)
            metrics.LINKS.labels(state="open").set(fleet.link_count)
            silent_s = time.monotonic() - self._tables.beat_s
            if self._following:
                silent_s = max(silent_s, time.monotonic() - self._changes.follower.beat_s)
            if silent_s > STUCK_AFTER_S:
                self._process.fail(ExitCode.NO_PROGRESS, f"a follower of Kafka has been silent for {silent_s:.0f} s")
            await asyncio.sleep(WATCH_INTERVAL_S)
