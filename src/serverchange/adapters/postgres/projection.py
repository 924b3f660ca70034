"""The projection's tables as typed functions: channel states, changes, dead letters, and the position in the log.

`channel_state` is at every instant the fold of `channel-events` up to `log_position`: whoever writes holds the row
lock of `log_position` (`lock_positions`) from before the first read to the commit. Readers that follow the log from
a snapshot take both in one transaction (`load_states`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from psycopg import IsolationLevel
from psycopg.rows import TupleRow

from serverchange.adapters.postgres.array_literals import flag_array, number_array, text_array
from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries
from serverchange.events import ChangeKind, Channel, ChannelKind
from serverchange.tracker.channel_state import Change, ChannelState, Status, Wanting

_SQL: Final = queries("projection")

_STATUS: Final = {status.value: status for status in Status}
_KIND: Final = {kind.value: kind for kind in ChannelKind}
_WANTING_CACHED: Final = 4_096
"""Distinct sets of services and labels kept decoded: a fleet has dozens, a channel's own account makes thousands."""


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where the projection of one partition stands.

    Attributes:
        topic_id: of the topic that was folded; a re-created topic has another.
        position: the next offset to fold.
        last_sha256: of the last record folded (`record_sha256`), None before any.
        last_offset: where that record stands; holes may lie behind it.
        appended_ms: append time of that record.
        rules_version: of the rules that made the tables.
        generation: raised when a rebuild by other rules changed rows.
        published: lower bound of what the outbox has published, an offset of the log.
        caught_up_at: the last moment when the tables were seen at the log's end.
    """

    partition: int
    topic_id: str
    position: int
    last_sha256: bytes | None
    last_offset: int | None
    appended_ms: int
    rules_version: int
    generation: int
    published: int
    caught_up_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A record of the log that was no event; `sqlstate` where PostgreSQL refused it, which is a bug of ours."""

    topic_id: str
    partition: int
    offset: int
    topic: str
    reason: str
    key: bytes | None
    value: bytes | None
    appended_ms: int
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A change with the generation it belongs to, the record that decided it and that record's trace, if any."""

    change: Change
    generation: int
    partition: int
    offset: int
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class HoleRow:
    """Offsets from `first_offset` up to (without) `next_offset` that held no record."""

    partition: int
    first_offset: int
    next_offset: int
    kind: str


@lru_cache(maxsize=_WANTING_CACHED)
def parse_wanting(text: str) -> tuple[Wanting, ...]:
    """Return the services that want a channel, from the column's JSON."""
    return tuple(Wanting(service, tuple(labels), account) for service, labels, account in json.loads(text))


@lru_cache(maxsize=_WANTING_CACHED)
def dump_wanting(wanting: tuple[Wanting, ...]) -> str:
    """Return the column's JSON: `[[service, [label, ...], account], ...]`."""
    return json.dumps([[one.service, one.labels, one.account] for one in wanting])


@lru_cache(maxsize=_WANTING_CACHED)
def _labels_of(wanting: tuple[Wanting, ...]) -> str:
    return " ".join(sorted({label for one in wanting for label in one.labels}))


def parse_state(row: TupleRow) -> tuple[int, ChannelState]:
    """Return (partition, state) of a row of `load_channels` or `load_partitions`."""
    evidence: str = row[18]
    # Positional, in the order of the class: the fold reads a row for every record.
    return row[0], ChannelState(
        row[1],
        row[2],
        row[3],
        _STATUS[row[4]],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        _KIND[row[12]],
        parse_wanting(row[13]),
        row[14],
        row[15],
        row[16],
        row[17],
        tuple(evidence.split(" ")) if evidence else (),
    )


async def create_positions(
    connection: AsyncConnection, partitions: Iterable[int], *, topic_id: str, rules_version: int
) -> None:
    """Make the rows of partitions that nobody has folded, and adopt a re-created topic where nothing was folded."""
    parameters = {"partitions": sorted(partitions), "topic_id": topic_id, "rules_version": rules_version}
    await connection.execute(_SQL["create_positions"], parameters)
    await connection.execute(_SQL["adopt_topic"], parameters)


async def load_positions(connection: AsyncConnection, partitions: Iterable[int] | None = None) -> list[LogPosition]:
    """Return the positions of `partitions` (of all when None), in partition order."""
    if partitions is None:
        cursor = await connection.execute(_SQL["load_all_positions"])
    else:
        cursor = await connection.execute(_SQL["load_positions"], {"partitions": sorted(partitions)})
    return [LogPosition(*row) for row in await cursor.fetchall()]


async def lock_positions(connection: AsyncConnection, partitions: Iterable[int]) -> dict[int, LogPosition]:
    """Lock and return the positions of `partitions` until the transaction ends: the right to write their rows.

    Raises:
        psycopg.errors.LockNotAvailable: another worker held one of them for longer than `lock_timeout`.
    """
    cursor = await connection.execute(_SQL["lock_positions"], {"partitions": sorted(partitions)})
    return {row[0]: LogPosition(*row) for row in await cursor.fetchall()}


async def load_channels(connection: AsyncConnection, channels: Sequence[str]) -> dict[int, dict[str, ChannelState]]:
    """Return the states of those `channels` that have one, by partition and channel."""
    found: dict[int, dict[str, ChannelState]] = {}
    if channels:
        cursor = await connection.execute(_SQL["load_channels"], {"channels": text_array(channels)})
        for row in await cursor.fetchall():
            partition, state = parse_state(row)
            found.setdefault(partition, {})[state.channel] = state
    return found


async def load_states(
    connection: AsyncConnection, partitions: Iterable[int]
) -> tuple[list[ChannelState], dict[int, LogPosition]]:
    """Return the states of all channels of `partitions`, and those partitions' positions, as of one instant.

    Both come from one REPEATABLE READ snapshot, so a caller that reads the log from the positions misses nothing
    and folds nothing twice. A partition that nobody has folded yet has no position: read it from offset 0.
    """
    before = connection.isolation_level
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    try:
        async with connection.transaction():
            return await load_states_in(connection, partitions)
    finally:
        await connection.set_isolation_level(before)


async def load_states_in(
    connection: AsyncConnection, partitions: Iterable[int]
) -> tuple[list[ChannelState], dict[int, LogPosition]]:
    """Return what `load_states` does, in the caller's transaction, which settles of what instant."""
    wanted = sorted(partitions)
    positions = await load_positions(connection, wanted)
    cursor = await connection.execute(_SQL["load_partitions"], {"partitions": wanted})
    states = [parse_state(row)[1] for row in await cursor.fetchall()]
    return states, {position.partition: position for position in positions}


async def store_states(connection: AsyncConnection, states: Sequence[tuple[int, ChannelState]]) -> None:
    """Insert or replace the rows of (partition, state) pairs."""
    if states:
        await connection.execute(_SQL["store_channels"], _state_columns(states))


def _state_columns(pairs: Sequence[tuple[int, ChannelState]]) -> list[str]:
    states = [state for _, state in pairs]
    return [
        number_array([partition for partition, _ in pairs]),
        text_array([state.channel for state in states]),
        number_array([state.seq for state in states]),
        number_array([state.known_after for state in states]),
        text_array([state.status.value for state in states]),
        text_array([state.cluster or "" for state in states]),
        text_array([state.left_cluster or "" for state in states]),
        number_array([state.left_at_ms for state in states]),
        flag_array([state.verified for state in states]),
        number_array([state.doubts for state in states]),
        number_array([state.version for state in states]),
        number_array([state.since_ms for state in states]),
        text_array([state.kind.value for state in states]),
        text_array([_labels_of(state.wanting) for state in states]),
        text_array([dump_wanting(state.wanting) for state in states]),
        text_array([state.pinned or "" for state in states]),
        text_array([state.room_id or "" for state in states]),
        number_array([state.penalty for state in states]),
        number_array([state.penalty_at_ms for state in states]),
        text_array([" ".join(state.evidence) for state in states]),
    ]


async def store_seqs(connection: AsyncConnection, seqs: Sequence[tuple[str, int]]) -> None:
    """Set the seq of channels whose records altered nothing else."""
    if seqs:
        channels, numbers = zip(*seqs, strict=True)
        parameters = {"channels": text_array(channels), "seqs": number_array(numbers)}
        await connection.execute(_SQL["store_seqs"], parameters)


async def store_changes(connection: AsyncConnection, rows: Sequence[ChangeRow]) -> None:
    """Append changes; a version that exists already is a bug and raises."""
    if not rows:
        return
    changes = [row.change for row in rows]
    columns = [
        text_array([change.channel for change in changes]),
        number_array([row.generation for row in rows]),
        number_array([change.version for change in changes]),
        text_array([change.what.value for change in changes]),
        text_array([change.previous or "" for change in changes]),
        text_array([change.cluster or "" for change in changes]),
        number_array([change.since_ms for change in changes]),
        text_array([change.kind.value for change in changes]),
        text_array([" ".join(change.labels) for change in changes]),
        text_array([change.account or "" for change in changes]),
        text_array([" ".join(change.evidence) for change in changes]),
        number_array([row.partition for row in rows]),
        number_array([row.offset for row in rows]),
        text_array([row.traceparent or "" for row in rows]),
    ]
    await connection.execute(_SQL["store_changes"], columns)


async def store_dead_letters(connection: AsyncConnection, rows: Sequence[DeadLetterRow]) -> None:
    """Append dead letters."""
    if not rows:
        return
    parameters = [
        (
            row.topic_id,
            row.partition,
            row.offset,
            row.topic,
            row.reason,
            row.sqlstate,
            row.key,
            row.value,
            row.appended_ms,
        )
        for row in rows
    ]
    async with connection.cursor() as cursor:
        await cursor.executemany(_SQL["store_dead_letter"], parameters)


async def store_hole(connection: AsyncConnection, hole: HoleRow, now: datetime) -> None:
    """Note offsets that held no record."""
    parameters = {
        "partition": hole.partition,
        "first_offset": hole.first_offset,
        "next_offset": hole.next_offset,
        "kind": hole.kind,
        "now": now,
    }
    await connection.execute(_SQL["store_hole"], parameters)


async def store_positions(
    connection: AsyncConnection, positions: Iterable[tuple[int, int, bytes | None, int | None, int]]
) -> None:
    """Move (partition, position, last_sha256, last_offset, appended_ms) forward; the caller holds the locks."""
    columns = [list(column) for column in zip(*positions, strict=True)]
    if columns:
        await connection.execute(_SQL["store_positions"], columns)


async def store_caught_up(connection: AsyncConnection, ends: dict[int, int], now: datetime) -> None:
    """Note that partitions whose position is at or above the given end were complete at `now`."""
    partitions = sorted(ends)
    parameters = {"partitions": partitions, "ends": [ends[partition] for partition in partitions], "now": now}
    await connection.execute(_SQL["store_caught_up"], parameters)


@dataclass(frozen=True, slots=True)
class OutboxWork:
    """What one partition's outbox knows from the tables.

    Attributes:
        published: lower bound of what is published, an offset of the log.
        newest: the last offset that left something to publish, None where nothing ever did.
        republish: a rebuild left changes to publish once more.
    """

    partition: int
    generation: int
    published: int
    newest: int | None
    republish: bool


async def load_outbox_work(connection: AsyncConnection, partitions: Iterable[int]) -> list[OutboxWork]:
    """Return the outbox's view of each partition."""
    cursor = await connection.execute(_SQL["load_outbox_work"], {"partitions": sorted(partitions)})
    return [OutboxWork(*row) for row in await cursor.fetchall()]


async def load_unpublished_changes(
    connection: AsyncConnection, partition: int, since_offset: int, before_offset: int, limit: int
) -> list[ChangeRow]:
    """Return at most `limit` changes decided in `since_offset <= offset < before_offset`, in log order."""
    cursor = await connection.execute(
        _SQL["load_unpublished_changes"], _outbox_range(partition, since_offset, before_offset, limit)
    )
    return [_parse_change(row, partition) for row in await cursor.fetchall()]


def _outbox_range(partition: int, since_offset: int, before_offset: int, limit: int) -> dict[str, Any]:
    return {"partition": partition, "since_offset": since_offset, "before_offset": before_offset, "limit": limit}


def _parse_change(row: TupleRow, partition: int) -> ChangeRow:
    change = Change(
        channel=Channel(row[0]),
        what=ChangeKind(row[3]),
        previous=row[4],
        cluster=row[5],
        version=row[2],
        since_ms=row[6],
        kind=_KIND[row[7]],
        labels=tuple(row[8]),
        account=row[9],
        evidence=tuple(row[10]),
    )
    return ChangeRow(change, generation=row[1], partition=partition, offset=row[11], traceparent=row[12])


async def load_republications(connection: AsyncConnection, partition: int, limit: int) -> list[ChangeRow]:
    """Return at most `limit` changes that a rebuild altered and that must be published once more."""
    cursor = await connection.execute(_SQL["load_republications"], {"partition": partition, "limit": limit})
    return [_parse_change(row, partition) for row in await cursor.fetchall()]


async def load_newest_published(connection: AsyncConnection, partition: int) -> dict[str, tuple[int, int]]:
    """Return (generation, version) of the newest change of each channel, of those that are surely published."""
    cursor = await connection.execute(_SQL["load_newest_published"], {"partition": partition})
    return {channel: (generation, version) for channel, generation, version in await cursor.fetchall()}


async def store_republications(connection: AsyncConnection, partition: int, versions: dict[str, int]) -> None:
    """Ask the outbox to publish that version of each channel once more."""
    parameters = {"partition": partition, "channels": list(versions), "versions": list(versions.values())}
    await connection.execute(_SQL["store_republications"], parameters)


async def delete_republications(connection: AsyncConnection, partition: int, channels: Sequence[str]) -> None:
    """Forget what was published once more."""
    await connection.execute(_SQL["delete_republications"], {"partition": partition, "channels": list(channels)})


async def load_refused(connection: AsyncConnection, topic_id: str) -> dict[int, dict[int, tuple[str, str]]]:
    """Return (reason, SQLSTATE) of the records PostgreSQL refused, by partition and offset."""
    cursor = await connection.execute(_SQL["load_refused"], {"topic_id": topic_id})
    found: dict[int, dict[int, tuple[str, str]]] = {}
    for partition, offset, reason, sqlstate in await cursor.fetchall():
        found.setdefault(partition, {})[offset] = (reason, sqlstate)
    return found


async def load_unpublished_dead_letters(
    connection: AsyncConnection, partition: int, since_offset: int, before_offset: int, limit: int
) -> list[DeadLetterRow]:
    """Return at most `limit` dead letters of that range, in log order."""
    cursor = await connection.execute(
        _SQL["load_unpublished_dead_letters"], _outbox_range(partition, since_offset, before_offset, limit)
    )
    return [
        DeadLetterRow(
            topic_id=row[0],
            partition=partition,
            offset=row[1],
            topic=row[2],
            reason=row[3],
            sqlstate=row[4],
            key=row[5],
            value=row[6],
            appended_ms=row[7],
        )
        for row in await cursor.fetchall()
    ]


async def store_published(connection: AsyncConnection, partition: int, published: int) -> None:
    """Raise the lower bound of what is published, for the case that Kafka forgets the outbox group's offset."""
    await connection.execute(_SQL["store_published"], {"partition": partition, "published": published})
