"""Reads for those who ask where channels are: states with their freshness, pages, history, and how far the fold is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from psycopg.rows import TupleRow

from serverchange.adapters.postgres.array_literals import text_array
from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.projection import parse_wanting
from serverchange.adapters.postgres.sql import queries
from serverchange.events import Channel, Cluster
from serverchange.tracker.channel_state import FLAPPING_ABOVE, PENALTY_HALF_LIFE_MS

_SQL: Final = queries("state")

_FLAPPING: Final = {"flapping_above": FLAPPING_ABOVE, "half_life_ms": float(PENALTY_HALF_LIFE_MS)}

_VERSION_MAX: Final = 2**62
_GENERATION_MAX: Final = 2**31 - 1

ChannelRow = dict[str, Any]
"""The members of `views.ChannelView`: made a hundred thousand at a time, so a dict that goes straight to JSON."""


@dataclass(frozen=True, slots=True)
class ChannelFilter:
    """Which channels a listing has; None lets all pass. Without a `status` untracked channels are left out."""

    cluster: Cluster | None = None
    status: str | None = None
    label: str | None = None
    kind: str | None = None
    verified: bool | None = None
    pinned: bool | None = None
    flapping: bool = False


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One published change and the record of the log that decided it."""

    generation: int
    version: int
    what: str
    previous: Cluster | None
    cluster: Cluster | None
    since: datetime
    labels: tuple[str, ...]
    evidence: tuple[str, ...]
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class PastRow:
    """What the published changes said of a channel at a moment."""

    version: int
    what: str
    previous: Cluster | None
    cluster: Cluster | None
    since: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the fold is.

    Attributes:
        positions: the next offset to fold, by partition.
        caught_up_at: the last moment when every partition was seen complete, None where one never was.
    """

    positions: Mapping[int, int]
    caught_up_at: datetime | None


@dataclass(frozen=True, slots=True)
class Count:
    """Channels of one cluster and status ('' where the cluster is not known)."""

    cluster: str
    status: str
    channels: int
    unverified: int
    flapping: int


def moment_of(milliseconds: int) -> datetime:
    """Return the moment `milliseconds` after 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _channel_row(row: TupleRow) -> ChannelRow:
    return {
        "channel": row[0],
        "status": row[1],
        "cluster": row[2],
        "previous": row[3],
        "verified": row[4],
        "verified_at": row[5],
        "since": moment_of(row[6]) if row[6] else None,
        "version": row[7],
        "kind": row[8],
        "labels": row[9],
        "services": [wanting.service for wanting in parse_wanting(row[10])],
        "pinned": row[11],
        "room_id": row[12],
        "flapping": row[13],
        "evidence": row[14],
    }


async def find_channel(connection: AsyncConnection, channel: Channel, now_ms: int) -> ChannelRow | None:
    """Return what is known of one channel; None: nobody ever tracked it."""
    cursor = await connection.execute(_SQL["find_channel"], {"channel": channel, "now_ms": now_ms, **_FLAPPING})
    row = await cursor.fetchone()
    return None if row is None else _channel_row(row)


async def find_channels(connection: AsyncConnection, channels: Sequence[Channel], now_ms: int) -> list[ChannelRow]:
    """Return those of `channels` that are known, in no particular order."""
    parameters = {"channels": text_array(channels), "now_ms": now_ms, **_FLAPPING}
    cursor = await connection.execute(_SQL["find_channels"], parameters)
    return [_channel_row(row) for row in await cursor.fetchall()]


async def list_channels(
    connection: AsyncConnection, wanted: ChannelFilter, *, after: str, limit: int, now_ms: int
) -> list[ChannelRow]:
    """Return at most `limit` channels behind the name `after`, in order of name (bytes, not a language's order)."""
    name = "list_channels" if wanted.cluster is None else "list_channels_of_cluster"
    parameters = {
        "cluster": wanted.cluster,
        "status": wanted.status,
        "label": wanted.label,
        "kind": wanted.kind,
        "verified": wanted.verified,
        "pinned": wanted.pinned,
        "flapping": wanted.flapping,
        "after": after,
        "limit": limit,
        "now_ms": now_ms,
        **_FLAPPING,
    }
    cursor = await connection.execute(_SQL[name], parameters)
    return [_channel_row(row) for row in await cursor.fetchall()]


async def list_changes_of_channel(
    connection: AsyncConnection, channel: Channel, *, before: tuple[int, int] | None, limit: int
) -> list[HistoryRow]:
    """Return at most `limit` changes older than `before` (version, generation), newest first."""
    version, generation = before or (_VERSION_MAX, _GENERATION_MAX)
    parameters = {"channel": channel, "before_version": version, "before_generation": generation, "limit": limit}
    cursor = await connection.execute(_SQL["list_changes_of_channel"], parameters)
    return [
        HistoryRow(
            generation=row[0],
            version=row[1],
            what=row[2],
            previous=row[3],
            cluster=row[4],
            since=moment_of(row[5]),
            labels=tuple(row[6]),
            evidence=tuple(row[7]),
            partition=row[8],
            offset=row[9],
        )
        for row in await cursor.fetchall()
    ]


async def find_change_at(connection: AsyncConnection, channel: Channel, at_ms: int) -> PastRow | None:
    """Return the newest change of a channel at the append time `at_ms`; None: it had none yet."""
    cursor = await connection.execute(_SQL["find_change_at"], {"channel": channel, "at_ms": at_ms})
    row = await cursor.fetchone()
    if row is None:
        return None
    return PastRow(version=row[0], what=row[1], previous=row[2], cluster=row[3], since=moment_of(row[4]))


async def load_progress(connection: AsyncConnection) -> Progress:
    """Return how far the fold of each partition is."""
    cursor = await connection.execute(_SQL["load_progress"])
    rows = await cursor.fetchall()
    seen = [row[2] for row in rows if row[2] is not None]
    complete = min(seen) if rows and len(seen) == len(rows) else None
    return Progress({row[0]: row[1] for row in rows}, complete)


class VerifiedCounts(NamedTuple):
    """Tracked channels by how long ago a lookup last agreed with the present version, and the longest ago."""

    within_10_minutes: int
    within_an_hour: int
    within_a_day: int
    older: int
    never: int
    oldest: datetime | None


async def count_verification_ages(connection: AsyncConnection, *, now: datetime | None = None) -> VerifiedCounts:
    """Return how old verifications are; joins two tables whole."""
    cursor = await connection.execute(_SQL["count_verification_ages"], {"now": now})
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101  (an aggregate has one row)
    return VerifiedCounts(*row)


async def count_channels(connection: AsyncConnection, now_ms: int) -> list[Count]:
    """Return how many channels each cluster has, by status; one pass over the table (30 ms for 200,000 channels)."""
    cursor = await connection.execute(_SQL["count_channels"], {"now_ms": now_ms, **_FLAPPING})
    return [Count(*row) for row in await cursor.fetchall()]
