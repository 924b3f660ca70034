"""When a lookup last agreed with the believed cluster: written in batches by pollers, read by API and pollers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries
from serverchange.events import Channel

_SQL: Final = queries("freshness")


@dataclass(frozen=True, slots=True)
class Fresh:
    """A lookup agreed at `verified_at` with what this version of the channel says."""

    channel: Channel
    version: int
    verified_at: datetime


async def store_freshness(connection: AsyncConnection, batch: Sequence[Fresh]) -> frozenset[Channel]:
    """Store a batch, each channel at most once, and return the channels whose version stands in the tables.

    The others were overtaken by a change, or the materializer has not folded theirs yet. One statement, its own
    transaction.
    """
    if not batch:
        return frozenset()
    cursor = await connection.execute(
        _SQL["store_freshness"],
        {
            "channels": [fresh.channel for fresh in batch],
            "versions": [fresh.version for fresh in batch],
            "moments": [fresh.verified_at for fresh in batch],
        },
    )
    return frozenset(Channel(row[0]) for row in await cursor.fetchall())


async def load_freshness(connection: AsyncConnection, partition: int) -> dict[Channel, datetime]:
    """Return when the channels of `partition` were last verified, where their version still stands."""
    cursor = await connection.execute(_SQL["load_freshness"], {"partition": partition})
    return {Channel(row[0]): row[1] for row in await cursor.fetchall()}
