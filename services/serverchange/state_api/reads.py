"""Reads from Postgres, each bounded in time, and reads that must be as new as a write before them.

A read that does not end in time is given up but not cancelled: cancelling asks the server, which may be the very one
that hangs. It keeps its connection until it ends, and the pool's size bounds how many do. Those who find no connection
within `pool_timeout_s` are told 503 (psycopg 1401: `asyncio.wait_for` cannot bound `getconn`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from serverchange.adapters.postgres.connections import AsyncConnection, make_pool
from serverchange.adapters.postgres.state import load_progress
from serverchange.adapters.settings import PostgresSettings
from serverchange.state_api.problems import unavailable

T = TypeVar("T")
Query = Callable[[AsyncConnection], Awaitable[T]]

QUERY_TIMEOUT_S: Final = 0.4
"""On top of the wait for a connection: the usual query takes a millisecond, and 503 is promised within 2 s."""

BULK_TIMEOUT_S: Final = 5.0
"""For one portion of a bulk read or a page."""

TRIES_MAX: Final = 3
"""A restarted server leaves dead connections in the pool; the first one found has all of them checked."""

WAITING_MAX: Final = 500
"""Requests that wait for a connection; the next one is told 503 at once."""

POSITION_POLL_S: Final = 0.02
"""How often a read that waits for a position looks: the fold is usually behind by 10 ms."""


class Reader:
    """The pool, and what may be asked of it. Enter it with `async with`."""

    def __init__(self, settings: PostgresSettings, *, application: str) -> None:
        self._pool: AsyncConnectionPool[AsyncConnection] = make_pool(settings, application=application, checked=False)
        self._pool.max_waiting = WAITING_MAX
        self._pool_timeout_s = settings.pool_timeout_s
        self._checking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reader:
        await self._pool.open(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._checking is not None:
            self._checking.cancel()
        await self._pool.close(timeout=1.0)

    @property
    def connections(self) -> int:
        """How many connections the pool has, in use or not."""
        return self._pool.get_stats()["pool_size"]

    async def read(self, query: Query[T], *, timeout_s: float = QUERY_TIMEOUT_S) -> T:
        """Return what `query` returns, on a connection of the pool.

        Raises:
            ApiProblem: 503: no connection, or no answer in time.
        """
        reading = asyncio.ensure_future(self._try(query))
        done, _ = await asyncio.wait([reading], timeout=self._pool_timeout_s + timeout_s)
        if not done:
            reading.add_done_callback(_forget)
            raise unavailable("the database does not answer in time; try again")
        return reading.result()

    async def read_at(
        self, position: Mapping[int, int], query: Query[T], *, wait_s: float, timeout_s: float = QUERY_TIMEOUT_S
    ) -> T:
        """Return what `query` returns once the tables hold every record up to `position` (partition: offset).

        Position and rows are read on one connection, the position first, so the rows are at least that new.

        Raises:
            ApiProblem: 503: the tables are not that far after `wait_s`, or see `read`.
        """
        if not position:
            return await self.read(query, timeout_s=timeout_s)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s

        async def checked(connection: AsyncConnection) -> list[T]:
            progress = await load_progress(connection)
            there = all(progress.positions.get(partition, 0) > offset for partition, offset in position.items())
            return [await query(connection)] if there else []

        while True:
            found = await self.read(checked, timeout_s=timeout_s)
            if found:
                return found[0]
            if loop.time() >= deadline_s:
                raise unavailable(f"the tables are not at the demanded position after {wait_s:g} s; try again")
            await asyncio.sleep(POSITION_POLL_S)

    async def _try(self, query: Query[T]) -> T:
        for _ in range(TRIES_MAX):
            try:
                async with self._pool.connection() as connection:
                    try:
                        return await query(connection)
                    except psycopg.OperationalError:
                        if not connection.broken:
                            raise
            except (PoolTimeout, TooManyRequests) as error:
                raise unavailable("no connection to the database is free; try again") from error
            self._check_pool()
        raise unavailable("the database closed the connection; try again")

    def _check_pool(self) -> None:
        """Have the dead connections in the pool replaced, once for all that find one."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.ensure_future(self._pool.check())
            self._checking.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    """Take the outcome of a read that nobody waits for, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()
