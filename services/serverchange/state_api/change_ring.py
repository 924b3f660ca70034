"""The newest changes in memory, and the cursors by which streams read them.

Streams pull: nothing is queued for a client, so a thousand slow ones cost no memory. A cursor that fell behind the
ring, or that resumes from before it, is told so and reads Kafka until it is back in the ring. No I/O here.

Every change has its frame (Server-Sent Events, WHATWG HTML standard, section 9.2) made once, with an id that holds
the ring's vector of offsets behind it. A cursor that resumes in the middle, from a vector that the ring never had,
gives ids from its own vector until both agree: so no id ever claims a change that its reader has not got.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from serverchange.events import ClusterChanged
from serverchange.views import ChangePosition, format_change_id, parse_change_id

RING_CHANGES: Final = 20_000
"""Changes kept, about 20 MB: two weeks' migration of 200,000 channels makes 600 an hour, a mass move 20,000 at once."""


class BehindRingError(Exception):
    """The changes that a cursor wants next are no longer (or not yet) in memory: read them from Kafka."""


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes a stream has; an empty set lets all pass.

    Attributes:
        clusters: a change passes that leads to one of them or away from it.
    """

    channels: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    clusters: frozenset[str] = frozenset()

    def matches(self, change: ReceivedChange) -> bool:
        """Return whether the stream has this change."""
        event = change.event
        data = event.data
        if self.channels and event.subject not in self.channels:
            return False
        if self.labels and self.labels.isdisjoint(data.labels):
            return False
        return not self.clusters or data.cluster in self.clusters or data.previous in self.clusters


@dataclass(frozen=True, slots=True)
class ReceivedChange:
    """A change where it stands on `cluster-changes`; `value` is the record's bytes, on one line.

    `published_ms` is when its publisher's clock says that it was published, milliseconds since 1970.
    """

    partition: int
    offset: int
    event: ClusterChanged
    value: bytes
    published_ms: int | None = None

    @property
    def published_after_ms(self) -> int | None:
        """From the append of the deciding record until this was published; by two clocks, so never below 0."""
        if self.published_ms is None:
            return None
        return max(0, self.published_ms - round(self.event.data.since.timestamp() * 1000))


@dataclass(frozen=True, slots=True)
class _Entry:
    change: ReceivedChange
    id: str
    frame: bytes


def change_frame(change_id: str, value: bytes) -> bytes:
    """Return the Server-Sent Event of one change."""
    return b"id: %s\nevent: change\ndata: %s\n\n" % (change_id.encode(), value)


class ChangeRing:
    """The newest `capacity` changes of one incarnation of the topic, in the order in which they were read."""

    def __init__(self, start: ChangePosition, *, capacity: int = RING_CHANGES) -> None:
        self.topic = start.topic
        self.tail = list(start.offsets)
        """The vector before the oldest change kept."""
        self._offsets = list(start.offsets)
        self._entries: list[_Entry | None] = [None] * capacity
        self.first = 0
        self.next = 0
        self.newest_id = format_change_id(self.topic, self._offsets)

    @property
    def position(self) -> ChangePosition:
        """The vector behind the newest change."""
        return ChangePosition(self.topic, tuple(self._offsets))

    def append(self, change: ReceivedChange) -> None:
        """Take the next change; the oldest makes room for it."""
        self._offsets[change.partition] = change.offset + 1
        self.newest_id = format_change_id(self.topic, self._offsets)
        slot = self.next % len(self._entries)
        oldest = self._entries[slot]
        if oldest is not None:
            self.tail[oldest.change.partition] = oldest.change.offset + 1
            self.first += 1
        self._entries[slot] = _Entry(change, self.newest_id, change_frame(self.newest_id, change.value))
        self.next += 1

    def pass_markers(self, offsets: Iterable[int]) -> None:
        """Move the vector over offsets that hold no record (commit markers), where it lies behind `offsets`."""
        self._offsets = [max(mine, theirs) for mine, theirs in zip(self._offsets, offsets, strict=True)]
        self.newest_id = format_change_id(self.topic, self._offsets)

    def entries(self, since: int, limit: int) -> Iterator[_Entry]:
        """Yield at most `limit` entries from number `since`; the caller made sure that they are kept."""
        for number in range(since, min(self.next, since + limit)):
            entry = self._entries[number % len(self._entries)]
            if entry is None:
                raise AssertionError(f"entry {number} is outside {self.first}..{self.next}")
            yield entry


class ChangeCursor:
    """Where one stream is in the ring. Make one by `at_end` or `resume`."""

    def __init__(self, ring: ChangeRing, number: int, position: ChangePosition, ahead: set[int]) -> None:
        self.ring = ring
        self._number = number
        self._last_id = format_change_id(position.topic, position.offsets)
        self._offsets = list(position.offsets)
        self._ahead = ahead

    @classmethod
    def at_end(cls, ring: ChangeRing) -> ChangeCursor:
        """Return a cursor that will see what comes from now on."""
        return cls(ring, ring.next, ring.position, set())

    @classmethod
    def resume(cls, ring: ChangeRing, position: ChangePosition) -> ChangeCursor:
        """Return a cursor that will see what came after `position`.

        Raises:
            BehindRingError: something after it is no longer in memory.
        """
        if position == ring.position:
            return cls.at_end(ring)
        if any(mine < tail for mine, tail in zip(position.offsets, ring.tail, strict=True)):
            raise BehindRingError
        ahead = {partition for partition, mine in enumerate(position.offsets) if mine > ring.tail[partition]}
        return cls(ring, ring.first, position, ahead)

    @property
    def position(self) -> ChangePosition:
        """The place behind all that was taken."""
        if self._ahead:
            return ChangePosition(self.ring.topic, tuple(self._offsets))
        return parse_change_id(self._last_id)

    @property
    def at_newest(self) -> bool:
        """Whether nothing waits."""
        return self._number == self.ring.next

    def take(self, wanted: ChangeFilter, limit: int) -> list[bytes]:
        """Return the frames of those among the next `limit` changes that `wanted` lets pass.

        Raises:
            BehindRingError: the next change left the ring; go on from `position` through Kafka.
        """
        if self._number < self.ring.first:
            raise BehindRingError
        frames = []
        for entry in self.ring.entries(self._number, limit):
            self._number += 1
            frame = self._step(entry) if self._ahead else entry.frame
            self._last_id = entry.id if not self._ahead else self._last_id
            if frame is not None and wanted.matches(entry.change):
                frames.append(frame)
        if self._ahead and self.at_newest:
            self._join_ring()
        return frames

    def _step(self, entry: _Entry) -> bytes | None:
        """Return the entry's frame with an id of this cursor's own vector; None: its reader has it already."""
        change = entry.change
        had = change.offset < self._offsets[change.partition]
        if change.offset + 1 >= self._offsets[change.partition]:
            self._ahead.discard(change.partition)
            self._offsets[change.partition] = change.offset + 1
        if had:
            return None
        return change_frame(format_change_id(self.ring.topic, self._offsets), change.value)

    def _join_ring(self) -> None:
        """Stop counting for oneself where only commit markers, which no record follows yet, held the vectors apart."""
        position = self.ring.position
        if all(mine <= theirs for mine, theirs in zip(self._offsets, position.offsets, strict=True)):
            self._ahead.clear()
            self._last_id = format_change_id(position.topic, position.offsets)
