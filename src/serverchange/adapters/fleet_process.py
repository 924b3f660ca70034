"""What every process with a fleet of links runs beside it: tables, changes, figures, a watchdog over the two threads.

Servers and earlier claims are read first, then the changes: the first JOINs go to servers that exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, Protocol

from serverchange.adapters import metrics
from serverchange.adapters.change_follower import ChangeFollower, ChangeHearer
from serverchange.adapters.kafka.group_follower import Membership
from serverchange.adapters.kafka.table_follower import (
    TableEvent,
    TableFollower,
    TableRecord,
    TableRecords,
    TablesAway,
    TablesLoaded,
)
from serverchange.adapters.link_fleet import LinkFleet
from serverchange.adapters.process import ExitCode, Process
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import Topic

WATCH_INTERVAL_S: Final = 1.0

STUCK_AFTER_S: Final = 90.0
"""A follower that did not come round for so long hangs in a call: three times kafka-python's request time-out."""


class FleetOwner(ChangeHearer, Protocol):
    """The process's own part: hears of partitions and changes, and learns from the tables."""

    fleet: LinkFleet

    def take_table_records(self, records: Iterable[TableRecord]) -> None:
        """Learn from records of the tables, in order within a partition."""


class FleetProcess:
    """The two followers of Kafka and what is done with their records. Enter it inside the fleet's own context.

    Args:
        settings: where Kafka is.
        process: told what is missing; ended when a follower hangs.
        membership: in which group `cluster-changes` are followed.
        tables: topics to be read whole.
        owner: whom to tell.
        on_watch: called once a second, with the figures.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        process: Process,
        membership: Membership,
        *,
        tables: Sequence[Topic],
        owner: FleetOwner,
        on_watch: Callable[[], None] | None = None,
    ) -> None:
        self._process = process
        self._owner = owner
        self._on_watch = on_watch
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[TableEvent] = asyncio.Queue()  # bounded by the follower's own slots
        self._loaded = asyncio.Event()
        self._following = False
        self._changes = ChangeFollower(settings, membership, readiness=process.readiness, hearer=owner)
        client_id = f"{membership.client_id}-tables"
        self._tables = TableFollower(settings, tables, client_id=client_id, deliver=self._deliver)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Follow while inside; more tasks may be added to the group, all are cancelled on leaving."""
        self._process.readiness.wait_for("tables", "clusters have not been read yet")
        self._tables.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                working = [
                    tasks.create_task(self._take_tables(), name="tables"),
                    tasks.create_task(self._follow_changes(), name="changes"),
                    tasks.create_task(self._watch(), name="watch"),
                ]
                yield tasks
                for task in working:
                    task.cancel()
        finally:
            self.stop_following(0)
            self._tables.stop(0)

    def stop_following(self, timeout_s: float, *, leave: bool = False) -> None:
        """End the membership; blocks for at most `timeout_s`. The tables are still read.

        With `leave` the group gives the partitions to others at once, instead of waiting for a successor.
        """
        if self._following:
            self._following = False  # nobody is to miss the beat of a thread that was told to end
            self._changes.follower.stop(timeout_s, leave=leave)

    def _deliver(self, event: TableEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _take_tables(self) -> None:
        while True:
            match await self._events.get():
                case TableRecords(records):
                    self._owner.take_table_records(records)
                    self._tables.taken()
                case TablesLoaded():
                    self._loaded.set()
                    self._process.readiness.found("tables")
                case TablesAway(reason):
                    self._process.readiness.wait_for("tables", reason)

    async def _follow_changes(self) -> None:
        await self._loaded.wait()
        self._changes.follower.beat_s = time.monotonic()
        self._following = True
        await self._changes.run()

    async def _watch(self) -> None:
        """Show the figures, and end the process when a follower's thread hangs: a restart is cheap."""
        while True:
            fleet = self._owner.fleet
            metrics.CHANNELS.labels(set="wanted").set(fleet.wanted_count)
            metrics.CHANNELS.labels(set="confirmed").set(fleet.confirmed_count)
            for sides, count in enumerate(fleet.channels_by_sides):
                metrics.CHANNEL_SIDES.labels(sides=str(sides)).set(count)
            metrics.LINKS.labels(state="open").set(fleet.link_count)
            if self._on_watch is not None:
                self._on_watch()
            silent_s = time.monotonic() - self._tables.beat_s
            if self._following and not self._process.stopping.is_set():
                silent_s = max(silent_s, time.monotonic() - self._changes.follower.beat_s)
            if silent_s > STUCK_AFTER_S:
                self._process.fail(ExitCode.NO_PROGRESS, f"a follower of Kafka has been silent for {silent_s:.0f} s")
            await asyncio.sleep(WATCH_INTERVAL_S)
