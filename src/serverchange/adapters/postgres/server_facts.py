"""What PostgreSQL says about itself: version, durability, role, clock, migrations; for `serverchange doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries

_SQL: Final = queries("server_facts")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One server and what our role may do there.

    Attributes:
        version_number: as PostgreSQL counts: 180001 is 18.1.
        version: for people.
        standby: whether it replays another server's log and takes no writes.
        encoding: of the database.
        fsync: whether commits survive a loss of power.
        full_page_writes: whether pages do.
        synchronous_commit: as set for our sessions.
        data_checksums: whether broken pages are noticed.
        connections_max: of all processes together.
        has_migrations: whether any release has made tables here.
        may_create: whether our role may make tables.
    """

    version_number: int
    version: str
    standby: bool
    encoding: str
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    data_checksums: bool
    connections_max: int
    has_migrations: bool
    may_create: bool


@dataclass(frozen=True, slots=True)
class ClockReading:
    """How far another clock is ahead of ours, in seconds, give or take `uncertainty_s`."""

    ahead_s: float
    uncertainty_s: float


async def load_server_facts(connection: AsyncConnection) -> ServerFacts:
    """Ask the server about itself.

    Raises:
        psycopg.Error: it does not answer.
    """
    cursor = await connection.execute(_SQL["load_server_facts"])
    (row,) = await cursor.fetchall()
    return ServerFacts(*row)


async def load_clock_reading(
    connection: AsyncConnection, *, clock: Callable[[], float] = time.time, readings: int = 3
) -> ClockReading:
    """Compare the server's clock with `clock` (seconds since 1970); the quickest of a few round trips is the surest.

    Raises:
        psycopg.Error: the server does not answer.
    """
    found = []
    for _ in range(readings):
        before = clock()
        cursor = await connection.execute(_SQL["load_clock"])
        ((theirs,),) = await cursor.fetchall()
        after = clock()
        found.append(ClockReading(theirs - (before + after) / 2, max(0.0, after - before) / 2))
    return min(found, key=lambda reading: reading.uncertainty_s)


async def load_migration_numbers(connection: AsyncConnection) -> list[int]:
    """Return the numbers of the migrations applied; ask only where `ServerFacts.has_migrations`.

    Raises:
        psycopg.Error: the server does not answer, or there is no such table.
    """
    cursor = await connection.execute(_SQL["load_migrations"])
    return [row[0] for row in await cursor.fetchall()]
