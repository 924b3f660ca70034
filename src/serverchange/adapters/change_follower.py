"""Follows the partitions of `cluster-changes` that the group gives us: first the snapshot, then each change.

A partition is loaded from its beginning; until the end that it had at its assignment is reached nothing is told: an old
record of a compacted topic may be anything but true. From then on every change is told as it comes. Only the highest
(generation, version) of a channel counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serverchange.adapters.kafka.group_follower import (
    Assigned,
    Away,
    CaughtUp,
    Checked,
    Fetched,
    FollowerEvent,
    GroupFollower,
    Membership,
    Mismatched,
    Record,
    Revoked,
)
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import Channel, ClusterChanged, Rejected, parse_change

_log = get_logger("change_follower")


class ChangeHearer(Protocol):
    """What the process makes of partitions and changes. Called in the event loop; must return at once."""

    def partition_assigned(self, partition: int) -> None:
        """The group gave us this partition; its snapshot is being read."""

    def partition_loaded(self, partition: int, snapshot: Mapping[Channel, ClusterChanged]) -> None:
        """The newest change of every channel of the partition."""

    def partition_revoked(self, partition: int) -> None:
        """The group took the partition away; nothing more is told of it."""

    def channel_changed(self, partition: int, change: ClusterChanged) -> None:
        """A newer change of one channel."""


@dataclass(slots=True)
class _Partition:
    ticket: int
    newest: dict[Channel, ClusterChanged] = field(default_factory=dict)
    orders: dict[Channel, tuple[int, int]] = field(default_factory=dict)
    loaded: bool = False


class ChangeFollower:
    """Turns the follower's events into snapshots and changes; run `run` in a task."""

    def __init__(
        self, settings: KafkaSettings, membership: Membership, *, readiness: Readiness, hearer: ChangeHearer
    ) -> None:
        self._hearer = hearer
        self._readiness = readiness
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[FollowerEvent] = asyncio.Queue()  # bounded by the follower's own slots
        self._partitions: dict[int, _Partition] = {}
        self._tickets = 0
        self.follower = GroupFollower(settings, membership, deliver=self._deliver)

    @property
    def partitions(self) -> frozenset[int]:
        """Partitions that the group gave us."""
        return frozenset(self._partitions)

    async def run(self) -> None:
        """Start the thread and serve its events until cancelled; the caller stops the thread."""
        self._readiness.wait_for("assignment", "no partition of cluster-changes has been read yet")
        self.follower.start()
        while True:
            self._handle(await self._events.get())

    def _deliver(self, event: FollowerEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _handle(self, event: FollowerEvent) -> None:
        match event:
            case Assigned(partitions):
                self._begin(partitions)
            case Revoked(partitions):
                self._lose(partitions)
            case Fetched(records):
                for record in records:
                    self._take(record)
                self.follower.taken()
            case CaughtUp(partition, ticket):
                self._finish(partition, ticket)
            case Mismatched():
                self._start_again(event)
            case Checked() | Away():
                self._note_kafka(event)

    def _begin(self, partitions: frozenset[int]) -> None:
        _log.info(LogEvent.PARTITIONS_ASSIGNED, partitions=sorted(partitions))
        for partition in sorted(partitions):
            known = self._partitions[partition] = _Partition(0)
            self._hearer.partition_assigned(partition)
            self._position(partition, known)

    def _lose(self, partitions: frozenset[int]) -> None:
        _log.info(LogEvent.PARTITIONS_REVOKED, partitions=sorted(partitions))
        for partition in sorted(partitions & self.partitions):
            del self._partitions[partition]
            self._hearer.partition_revoked(partition)

    def _start_again(self, mismatch: Mismatched) -> None:
        """The beginning moved on between our question and the seek, as compaction and retention do: ask again."""
        _log.warning(LogEvent.LOG_MISMATCH_FOUND, partition=mismatch.partition, reason=mismatch.reason)
        known = self._partitions.get(mismatch.partition)
        if known is not None and known.ticket == mismatch.ticket:
            self._position(mismatch.partition, known)

    def _note_kafka(self, event: Checked | Away) -> None:
        if isinstance(event, Away):
            self._readiness.wait_for("kafka", event.reason)
            return
        self._readiness.found("kafka")
        if not self._partitions:
            self._readiness.found("assignment")  # more members than partitions: nothing to do is ready

    def _position(self, partition: int, known: _Partition) -> None:
        self._tickets += 1
        known.ticket = self._tickets
        self.follower.position(partition, None, known.ticket)

    def _take(self, record: Record) -> None:
        known = self._partitions.get(record.partition)
        if known is None or known.ticket != record.ticket:
            return
        try:
            change = parse_change(record.key, record.value)
        except Rejected as error:
            _log.error(LogEvent.RECORD_REFUSED, partition=record.partition, offset=record.offset, reason=str(error))
            return
        if change.order <= known.orders.get(change.subject, (0, 0)):
            return
        known.orders[change.subject] = change.order
        if known.loaded:
            self._hearer.channel_changed(record.partition, change)
        else:
            known.newest[change.subject] = change

    def _finish(self, partition: int, ticket: int) -> None:
        known = self._partitions.get(partition)
        if known is None or known.ticket != ticket or known.loaded:
            return
        known.loaded = True
        snapshot, known.newest = known.newest, {}
        self._hearer.partition_loaded(partition, snapshot)
        if all(one.loaded for one in self._partitions.values()):
            self._readiness.found("assignment")
