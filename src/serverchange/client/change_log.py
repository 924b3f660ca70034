"""The pure core of the SDK's readers: which record is news, what a reader missed, and whether it may go on.

No I/O, no thread, no clock. `ChannelMap` and `Changes` carry records here and results out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serverchange.client.placed import Placed, PlacedParser
from serverchange.events import Channel, Rejected
from serverchange.views import ChangePosition


@dataclass(frozen=True, slots=True)
class Change:
    """One published change.

    Attributes:
        channel: whose.
        placed: what is so from now on.
        missed: versions of this channel that this reader never saw between the one before and this: 0 but where the
            topic was compacted, or records were lost.
    """

    channel: Channel
    placed: Placed
    missed: int = 0


class ChannelTable:
    """The newest change of every channel.

    Attributes:
        channels: by name; read it, never write.
        refused: records that were no change.
        repeated: records that were older than, or the same as, what was known.
    """

    def __init__(self) -> None:
        self.channels: dict[Channel, Placed] = {}
        self.refused = 0
        self.repeated = 0
        self._parser = PlacedParser()

    def load(self, records: Sequence[Any]) -> None:
        """Take records of a snapshot: nobody is told, so nothing but the newest is kept."""
        parse, channels = self._parser.parse, self.channels
        for record in records:
            try:
                channel, placed = parse(record.key, record.value)
            except Rejected:
                self.refused += 1
                continue
            known = channels.get(channel)
            if known is None or known[2:4] < placed[2:4]:  # (generation, version)
                channels[channel] = placed
            else:
                self.repeated += 1

    def apply(self, record: Any) -> tuple[Change, Placed | None] | None:
        """Take one record; return the change and what was so before, or None where it is no news."""
        try:
            channel, placed = self._parser.parse(record.key, record.value)
        except Rejected:
            self.refused += 1
            return None
        before = self.channels.get(channel)
        if before is not None and before.order >= placed.order:
            self.repeated += 1
            return None
        self.channels[channel] = placed
        return Change(channel, placed, _missed(None if before is None else before.order, placed)), before


class ChangeSieve:
    """Lets through what is new to one reader, and keeps its place.

    It remembers (generation, version) of each channel that it saw: 150 bytes a channel.
    """

    def __init__(self) -> None:
        self.refused = 0
        self.repeated = 0
        self._orders: dict[Channel, tuple[int, int]] = {}
        self._parser = PlacedParser()

    def accept(self, record: Any) -> Change | None:
        """Return the change in a record, or None where it is no news to this reader."""
        try:
            channel, placed = self._parser.parse(record.key, record.value)
        except Rejected:
            self.refused += 1
            return None
        known = self._orders.get(channel)
        if known is not None and known >= placed.order:
            self.repeated += 1
            return None
        self._orders[channel] = placed.order
        return Change(channel, placed, _missed(known, placed))


def _missed(known: tuple[int, int] | None, placed: Placed) -> int:
    """Return the versions between the one known and this; a raised generation starts no gap of its own."""
    return 0 if known is None else max(0, placed.version - known[1] - 1)


def why_lost(position: ChangePosition, topic: str, ends: Sequence[int], resumable: Sequence[int]) -> str | None:
    """Return why a reader cannot go on from `position` without loss, or None.

    `ends` and `resumable` are, for each partition, the end and the oldest offset that nothing before was compacted
    away of: the first of the last `RESUME_DAYS` days.
    """
    if position.topic != topic or len(position.offsets) != len(ends):
        return "the position is of another topic"
    for mine, end, oldest in zip(position.offsets, ends, resumable, strict=True):
        if mine > end:
            return "the position is past the end of the topic"
        if mine < oldest:
            return "the position is older than 29 days: changes after it may be compacted away"
    return None
