"""What shards tell of themselves, the brake on their moves, and the order to give their channels away.

All of it is for people and by people; none of it decides where a channel is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Final

from psycopg.types.json import Jsonb

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries
from serverchange.tracker.budget import Kind

_SQL: Final = queries("fleet")

REPORT_STALE_S: Final = 30.0
"""Six reports missed: the shard is gone, or cannot reach PostgreSQL."""

REPORT_KEPT_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One shard's figures.

    Attributes:
        wanted: Channels to be read.
        confirmed: Of these, read on at least one link.
        joins_waiting: JOINs that wait for a link or for budget.
        moves_held: Moves decided and held back by the brake.
        foreign_count: Channels of its partitions that ask for another account.
        waiting: account → kind → events that wait for its budget; what `joins_waiting` and `logins_waiting` sum up.
        age_s: Seconds since it told.
    """

    process: str
    account: str
    """Logins, comma separated; empty: nameless."""
    wanted: int
    confirmed: int
    links: int
    joins_waiting: int
    logins_waiting: int
    moves_held: int
    foreign_count: int
    waiting: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    age_s: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether the shard is there, as far as PostgreSQL knows."""
        return self.age_s <= REPORT_STALE_S


@dataclass(frozen=True, slots=True)
class Brake:
    """Moves are held."""

    held_at: datetime
    held_by: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """A shard is to give its channels away for good, and to have none until the order is taken back."""

    process: str
    ordered_at: datetime
    ordered_by: str


async def report_shard(connection: AsyncConnection, report: ShardReport, *, now: datetime | None = None) -> None:
    """Put a shard's figures in the place of its earlier ones, and forget those a day old.

    Raises:
        psycopg.Error: the database is away.
    """
    async with connection.transaction():
        await connection.execute(_SQL["report_shard"], {**asdict(report), "waiting": Jsonb(report.waiting), "now": now})
        await connection.execute(_SQL["forget_reports"], {"kept_s": REPORT_KEPT_S, "now": now})


async def load_reports(connection: AsyncConnection, *, now: datetime | None = None) -> list[ShardReport]:
    """Return what every shard told last, by name; look at `fresh`.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["load_reports"], {"now": now})
    return [ShardReport(*row) for row in await cursor.fetchall()]


async def load_brake(connection: AsyncConnection) -> Brake | None:
    """Return the brake, None while it is released.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["load_brake"])
    row = await cursor.fetchone()
    return None if row is None else Brake(*row)


async def hold(connection: AsyncConnection, *, held_by: str, reason: str, now: datetime | None = None) -> Brake:
    """Pull the brake and return it; one that is held already stays as it was.

    Raises:
        psycopg.Error: the database is away.
    """
    parameters = {"held_by": held_by, "reason": reason, "now": now}
    async with connection.transaction():
        await connection.execute(_SQL["hold"], parameters)
        brake = await load_brake(connection)
    assert brake is not None  # noqa: S101  (written in this very transaction)
    return brake


async def resume(connection: AsyncConnection) -> Brake | None:
    """Release the brake; return what it was, None where it was not held.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["resume"])
    row = await cursor.fetchone()
    return None if row is None else Brake(*row)


async def load_drains(connection: AsyncConnection) -> list[DrainOrder]:
    """Return every order to drain, by the shard's name.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["load_drains"])
    return [DrainOrder(*row) for row in await cursor.fetchall()]


async def is_drained(connection: AsyncConnection, process: str) -> bool:
    """Return whether this shard was ordered to drain.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["is_drained"], {"process": process})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def order_drain(
    connection: AsyncConnection, processes: Iterable[str], *, ordered_by: str, now: datetime | None = None
) -> None:
    """Tell shards to give their channels away; one that was told already stays told as it was.

    Raises:
        psycopg.Error: the database is away.
    """
    parameters = {"processes": list(processes), "ordered_by": ordered_by, "now": now}
    await connection.execute(_SQL["order_drain"], parameters)


async def cancel_drain(connection: AsyncConnection, processes: Iterable[str]) -> frozenset[str]:
    """Let shards have channels again; return those that were told to drain.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["cancel_drain"], {"processes": list(processes)})
    return frozenset(row[0] for row in await cursor.fetchall())
