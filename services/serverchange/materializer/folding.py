"""Folds the records of one partition: decoding, the pure rule, and what becomes of a record that is no event.

Shared by the live worker and by `rebuild`, so that both give the same rows. No I/O: states come in as a mapping and
go out in `Fold`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from serverchange.adapters.kafka.log_identity import home_partition
from serverchange.adapters.postgres.projection import ChangeRow, DeadLetterRow
from serverchange.events import ChannelEvent, Rejected, parse_channel_event
from serverchange.tracker.channel_state import ChannelState, fold

REASON_CHARACTERS_MAX: Final = 500
"""A dead letter's reason is for a person; the bytes stand beside it."""


class RefusedByPostgres(Rejected):
    """PostgreSQL could not store what the decoder let through: a bug of ours, kept as a dead letter with its code."""

    def __init__(self, reason: str, sqlstate: str | None) -> None:
        super().__init__(reason)
        self.sqlstate = sqlstate


class Record(Protocol):
    """A record of the log, as aiokafka and kafka-python deliver it."""

    @property
    def offset(self) -> int:
        """Where it stands in its partition."""

    @property
    def timestamp(self) -> int:
        """Append time, milliseconds since 1970."""

    @property
    def key(self) -> bytes | None:
        """The channel, if it is a sound record."""

    @property
    def value(self) -> bytes | None:
        """The event's JSON, if it is a sound record."""


class Decoded(NamedTuple):
    """A record and what it says; `channel` is None where the key cannot name one."""

    record: Record
    channel: str | None
    event: ChannelEvent | Rejected


class PartitionLog(NamedTuple):
    """Whose log is folded: all that a row says of its source."""

    topic: str
    topic_id: str
    partition: int
    partitions: int
    generation: int


@dataclass(slots=True)
class Fold:
    """What folding one partition's records gave.

    Attributes:
        before: the states before the first record.
        states: the states after the last, of the channels touched.
    """

    log: PartitionLog
    before: Mapping[str, ChannelState]
    states: dict[str, ChannelState] = field(default_factory=dict)
    changes: list[ChangeRow] = field(default_factory=list)
    dead_letters: list[DeadLetterRow] = field(default_factory=list)

    def changed_states(self) -> tuple[list[ChannelState], list[tuple[str, int]]]:
        """Return the states that must be written whole, and (channel, seq) of those where nothing else differs."""
        whole, seqs = [], []
        for channel, state in self.states.items():
            before = self.before.get(channel)
            if before is not None and state.differs_only_in_seq(before):
                seqs.append((channel, state.seq))
            else:
                whole.append(state)
        return whole, seqs


def decode_records(records: Iterable[Record]) -> list[Decoded]:
    """Return the records with their events; one that is no event carries the reason (`Rejected`)."""
    decoded = []
    for record in records:
        event: ChannelEvent | Rejected
        try:
            event = parse_channel_event(record.key, record.value)
        except Rejected as rejected:
            # A kept exception keeps its frames, and ours holds `decoded`, which holds the exception: with one bad
            # record in a batch all its events would wait for the collector of cycles.
            rejected.__traceback__ = rejected.__cause__ = rejected.__context__ = None
            decoded.append(Decoded(record, _channel_of_key(record.key), rejected))
        else:
            decoded.append(Decoded(record, event.subject, event))
    return decoded


def _channel_of_key(key: bytes | None) -> str | None:
    """Return the channel that a rejected record counts for: its key, where that could be a channel at all."""
    if key is None or not 1 <= len(key) <= 25 or not key.isascii():
        return None
    text = key.decode("ascii")
    return text if text.replace("_", "a").isalnum() and text == text.lower() else None


def fold_records(
    decoded: Iterable[Decoded],
    log: PartitionLog,
    states: Mapping[str, ChannelState],
    refused: Mapping[int, RefusedByPostgres] | None = None,
) -> Fold:
    """Fold one partition's records, in the order given, onto `states` (which is left alone).

    `refused` names offsets that must become dead letters although they parse: PostgreSQL could not hold them.
    """
    result = Fold(log, states)
    after = result.states
    for record, channel, event in decoded:
        if refused and record.offset in refused:
            event = refused[record.offset]  # noqa: PLW2901  (the reason takes the event's place)
        state = after.get(channel) or states.get(channel) if channel is not None else None
        if state is None and not isinstance(event, Rejected) and _is_misplaced(record, log):
            event = Rejected(  # noqa: PLW2901
                f"the key belongs on partition {home_partition(record.key or b'', log.partitions)}, this is"
                f" {log.partition}: write with Kafka's default (murmur2) partitioner"
            )
        folded = fold(state, event, record.timestamp)
        if folded.state is not None and channel is not None:
            after[channel] = folded.state
        if folded.change is not None:
            traceparent = None if isinstance(event, Rejected) else event.traceparent
            row = ChangeRow(folded.change, log.generation, log.partition, record.offset, traceparent)
            result.changes.append(row)
        if folded.refused is not None:
            result.dead_letters.append(_dead_letter(record, log, folded.refused, event))
    return result


def _is_misplaced(record: Record, log: PartitionLog) -> bool:
    """Whether a channel without a state stands on another partition than its home.

    Two partitions are folded in no fixed order, so records of one channel on both would have no one fold.
    """
    return record.key is not None and home_partition(record.key, log.partitions) != log.partition


def _dead_letter(record: Record, log: PartitionLog, reason: str, event: ChannelEvent | Rejected) -> DeadLetterRow:
    return DeadLetterRow(
        topic_id=log.topic_id,
        partition=log.partition,
        offset=record.offset,
        topic=log.topic,
        reason=reason.replace("\0", "�")[:REASON_CHARACTERS_MAX],
        key=record.key,
        value=record.value,
        appended_ms=record.timestamp,
        sqlstate=getattr(event, "sqlstate", None),
    )
