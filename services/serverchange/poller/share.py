"""The channels of this poller's partitions, folded from the projection and the log by the materializer's own rule.

Pure: told of partitions and records, it answers what changed. Channels are asked about only once their partition
has caught up with the end of the log that was taken when it was assigned: before that a lookup would be asked by an
old belief, and would name an `asked_after` that is older than needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from serverchange.adapters.kafka.group_follower import Record
from serverchange.events import Channel, ChannelEvent, ChannelKind, Rejected, parse_channel_event
from serverchange.tracker.channel_state import ChannelState, fold


@dataclass(frozen=True, slots=True)
class Update:
    """What one record did to a channel of a partition that has caught up."""

    before: ChannelState | None
    after: ChannelState
    event: ChannelEvent


@dataclass(slots=True)
class _Held:
    ticket: int
    position: int
    caught_up: bool = False
    channels: set[Channel] = field(default_factory=set)


class Share:
    """Which partitions this poller holds, and the state of every channel in them."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Held] = {}
        self._states: dict[Channel, ChannelState] = {}

    def __len__(self) -> int:
        return len(self._states)

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions taken and not forgotten."""
        return frozenset(self._partitions)

    @property
    def catching_up(self) -> frozenset[int]:
        """The partitions that have not reached the end of the log taken at their assignment."""
        return frozenset(partition for partition, held in self._partitions.items() if not held.caught_up)

    def take(self, partition: int, ticket: int, position: int, states: Iterable[ChannelState]) -> None:
        """Hold `partition` as it stands before offset `position`; records that carry `ticket` go on from there."""
        self.forget(partition)
        held = self._partitions[partition] = _Held(ticket, position)
        for state in states:
            held.channels.add(state.channel)
            self._states[state.channel] = state

    def forget(self, partition: int) -> frozenset[Channel]:
        """Let go of `partition` and return its channels; nothing happens where it is not held."""
        held = self._partitions.pop(partition, None)
        if held is None:
            return frozenset()
        for channel in held.channels:
            self._states.pop(channel, None)
        return frozenset(held.channels)

    def caught_up(self, partition: int, ticket: int) -> Iterator[ChannelState]:
        """Note that `partition` reached its end and return the channels that may be asked about from now on."""
        held = self._partitions.get(partition)
        if held is None or held.ticket != ticket or held.caught_up:
            return iter(())
        held.caught_up = True
        return (self._states[channel] for channel in tuple(held.channels))

    def position(self, partition: int) -> int | None:
        """Return the next offset to fold, or None where the partition is not held."""
        held = self._partitions.get(partition)
        return None if held is None else held.position

    def state(self, channel: Channel) -> ChannelState | None:
        """Return what is known of a channel, or None where it is not ours."""
        return self._states.get(channel)

    def fold(self, record: Record) -> Update | None:
        """Fold one record; returns what changed, once its partition has caught up.

        Records of another ticket or below the position are repeats or strangers and change nothing. Offsets without
        a record hold transaction markers; the log's other holes are the materializer's to refuse.
        """
        held = self._partitions.get(record.partition)
        if held is None or held.ticket != record.ticket or record.offset < held.position:
            return None
        held.position = record.offset + 1
        channel = Channel((record.key or b"").decode("ascii", "replace"))
        event = _parse(record)
        before = self._states.get(channel)
        after = fold(before, event, record.appended_at_ms).state
        if after is None:
            return None
        held.channels.add(channel)
        self._states[channel] = after
        if isinstance(event, Rejected) or not held.caught_up:
            return None
        return Update(before, after, event)


def _parse(record: Record) -> ChannelEvent | Rejected:
    try:
        return parse_channel_event(record.key, record.value)
    except Rejected as refusal:
        return refusal


def may_be_asked(state: ChannelState) -> bool:
    """Whether lookups tell anything about the channel: tracked, not pinned, no group room."""
    return state.tracked and state.pinned is None and state.kind is ChannelKind.CHAT
