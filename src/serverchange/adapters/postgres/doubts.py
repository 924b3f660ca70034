"""Which of our doubts a lookup has answered: the fold has passed the doubt, and the channel is verified again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries
from serverchange.events import Channel, Cluster

_SQL: Final = queries("doubts")


@dataclass(frozen=True, slots=True)
class OpenDoubt:
    """A doubt that stands in the log.

    Attributes:
        cluster: where we want the channel to be.
        partition: of `channel-events`.
        offset: of the doubt there.
    """

    channel: Channel
    cluster: Cluster
    partition: int
    offset: int


async def settled_doubts(connection: AsyncConnection, doubts: Sequence[OpenDoubt]) -> list[Channel]:
    """Return the channels whose doubt a later lookup has answered in favour of the wanted cluster.

    Exact without reading the log: the tables are its fold up to `log_position`, a doubt clears `verified`, and only a
    lookup asked after it sets it again.

    Raises:
        psycopg.Error: the database is away; the doubts stay open.
    """
    parameters = {
        "channels": [doubt.channel for doubt in doubts],
        "clusters": [doubt.cluster for doubt in doubts],
        "partitions": [doubt.partition for doubt in doubts],
        "offsets": [doubt.offset for doubt in doubts],
    }
    cursor = await connection.execute(_SQL["settled_doubts"], parameters)
    return [Channel(row[0]) for row in await cursor.fetchall()]
