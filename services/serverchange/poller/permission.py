"""Permission to ask: this poller's portions of the fleet's request budget, and the platform's word to pause.

One task leases from PostgreSQL, ahead of need while requests are flowing, so that the asking seldom waits for the
database; without the database there is no permission.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import psycopg
from psycopg_pool import AsyncConnectionPool

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.request_budget import LeasedRequests, lease_requests, pause_requests
from serverchange.adapters.process import Readiness

BUDGET: Final = "lookups"

RETRY_S: Final = (0.2, 2.0)
"""Bounds of the random wait for a budget while PostgreSQL is away."""

WAIT_S: Final = (0.005, 1.0)
"""Bounds of one wait while the budget is used up."""


class Permission:
    """`take` one for each request; `run` leases them."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], readiness: Readiness, *, requests_per_second: float
    ) -> None:
        self._pool = pool
        self._readiness = readiness
        self._per_second = requests_per_second
        self._leased = LeasedRequests(requests_per_second)
        self._wanted = asyncio.Event()
        self._filled = asyncio.Event()
        self._paused_until_s = 0.0

    async def run(self) -> None:
        """Lease portions as they are needed, until cancelled."""
        while True:
            await self._wanted.wait()
            if (pause_s := self._paused_until_s - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            self._wanted.clear()
            await self._lease()

    async def take(self) -> None:
        """Return once one request may be sent."""
        while True:
            if time.monotonic() >= self._paused_until_s and self._leased.use():
                if self._leased.low:
                    self._wanted.set()
                return
            self._filled.clear()
            self._wanted.set()
            await self._filled.wait()

    def give_back(self) -> None:
        """Undo one `take`: nothing was worth a request."""
        self._leased.give_back()

    def pause(self, seconds: float) -> None:
        """Let this poller ask nothing for so long."""
        self._leased.drop()
        self._paused_until_s = max(self._paused_until_s, time.monotonic() + seconds)

    async def pause_fleet(self, seconds: float) -> None:
        """Let no poller ask anything for so long, as the platform asked; what others hold expires in a second."""
        self.pause(seconds)
        try:
            async with self._pool.connection() as connection:
                await pause_requests(connection, name=BUDGET, seconds=seconds)
        except psycopg.Error as error:
            # Without the database nobody leases anything anyway.
            self._readiness.wait_for("postgres", f"pausing the fleet: {type(error).__name__}")

    async def _lease(self) -> None:
        asked_at_s = time.monotonic()
        try:
            async with self._pool.connection() as connection:
                lease = await lease_requests(
                    connection, name=BUDGET, per_second=self._per_second, wanted=self._leased.wanted
                )
        except psycopg.Error as error:
            self._readiness.wait_for("postgres", f"request budget: {type(error).__name__}")
            self._wanted.set()
            await asyncio.sleep(random.uniform(*RETRY_S))  # noqa: S311  (jitter, no secret)
            return
        self._readiness.found("postgres")
        if lease.granted:
            self._leased.add(lease.granted, asked_at_s=asked_at_s)
            self._filled.set()
        else:
            self._wanted.set()
            await asyncio.sleep(min(max(lease.wait_s, WAIT_S[0]), WAIT_S[1]))
