"""Writes many rows at once with COPY: what a rebuild needs, and the live fold never does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from serverchange.adapters.postgres.array_literals import text_array
from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.projection import ChangeRow, DeadLetterRow, dump_wanting
from serverchange.tracker.channel_state import ChannelState

LINES_AT_ONCE: Final = 2_000
"""Lines handed to the driver together: one call for each line costs more than the line."""

COPY_STATES: Final = (
    "COPY channel_state (partition, channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified,"
    " doubts, version, since_ms, kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence) FROM STDIN"
)
COPY_CHANGES: Final = (
    "COPY cluster_change (channel, generation, version, what, previous, cluster, since_ms, kind, labels, account,"
    " evidence, partition, log_offset, traceparent) FROM STDIN"
)
COPY_DEAD_LETTERS: Final = (
    "COPY dead_letter (topic_id, partition, log_offset, topic, reason, sqlstate, key, value, appended_ms) FROM STDIN"
)

_NULL: Final = "\\N"


async def copy_states(connection: AsyncConnection, partition: int, states: Iterable[ChannelState]) -> None:
    """Insert the states of channels that have no row yet."""
    await _copy(connection, COPY_STATES, [_state_line(partition, state) for state in states])


async def copy_changes(connection: AsyncConnection, rows: Iterable[ChangeRow]) -> None:
    """Insert changes."""
    await _copy(connection, COPY_CHANGES, [_change_line(row) for row in rows])


async def copy_dead_letters(connection: AsyncConnection, rows: Iterable[DeadLetterRow]) -> None:
    """Insert dead letters."""
    await _copy(connection, COPY_DEAD_LETTERS, [_dead_letter_line(row) for row in rows])


async def _copy(connection: AsyncConnection, statement: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    async with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for first in range(0, len(lines), LINES_AT_ONCE):
            await copy.write("".join(lines[first : first + LINES_AT_ONCE]))


def _state_line(partition: int, state: ChannelState) -> str:
    labels = sorted({label for wanting in state.wanting for label in wanting.labels})
    return (
        f"{partition}\t{state.channel}\t{state.seq}\t{state.known_after}\t{state.status.value}\t"
        f"{state.cluster or _NULL}\t{state.left_cluster or _NULL}\t{state.left_at_ms}\t{'t' if state.verified else 'f'}"
        f"\t{state.doubts}\t{state.version}\t{state.since_ms}\t{state.kind.value}\t{_escaped(text_array(labels))}\t"
        f"{_escaped(dump_wanting(state.wanting))}\t{state.pinned or _NULL}\t{state.room_id or _NULL}\t"
        f"{state.penalty}\t{state.penalty_at_ms}\t{_escaped(text_array(state.evidence))}\n"
    )


def _change_line(row: ChangeRow) -> str:
    change = row.change
    return (
        f"{change.channel}\t{row.generation}\t{change.version}\t{change.what.value}\t{change.previous or _NULL}\t"
        f"{change.cluster or _NULL}\t{change.since_ms}\t{change.kind.value}\t{_escaped(text_array(change.labels))}\t"
        f"{change.account or _NULL}\t{_escaped(text_array(change.evidence))}\t{row.partition}\t{row.offset}\t"
        f"{row.traceparent or _NULL}\n"
    )


def _dead_letter_line(row: DeadLetterRow) -> str:
    key, value = (_NULL if data is None else f"\\\\x{data.hex()}" for data in (row.key, row.value))
    return (
        f"{row.topic_id}\t{row.partition}\t{row.offset}\t{_escaped(row.topic)}\t{_escaped(row.reason)}\t"
        f"{row.sqlstate or _NULL}\t{key}\t{value}\t{row.appended_ms}\n"
    )


def _escaped(text: str) -> str:
    """Return `text` for COPY's text format (PostgreSQL 18 documentation, COPY, "Text Format")."""
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\t" in text or "\n" in text or "\r" in text:
        text = text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text
