"""Collects verifications and writes them to PostgreSQL in batches; an outage keeps the newest of each channel."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
from psycopg_pool import AsyncConnectionPool

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.freshness import Fresh, store_freshness
from serverchange.adapters.process import Readiness
from serverchange.events import Channel
from serverchange.poller.share import Share

BATCH_MAX: Final = 5_000
"""Rows of one statement: about 50 ms on the machines tried."""

KEPT: Final = timedelta(seconds=60)
"""How long a verification waits for the materializer to fold the version that it is about."""


class FreshnessWriter:
    """The verifications not yet stored: at most one a channel of the share."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], share: Share, readiness: Readiness, *, flush_s: float
    ) -> None:
        self._pool = pool
        self._share = share
        self._readiness = readiness
        self._flush_s = flush_s
        self._waiting: dict[Channel, Fresh] = {}

    def add(self, fresh: Fresh) -> None:
        """Have `fresh` stored with the next batch."""
        self._waiting[fresh.channel] = fresh

    async def run(self) -> None:
        """Store a batch every `flush_s` seconds, for ever."""
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Store all that waits; what PostgreSQL does not take now stays for the next time."""
        while self._waiting:
            batch = sorted(self._waiting.values(), key=lambda fresh: fresh.channel)[:BATCH_MAX]
            try:
                async with self._pool.connection() as connection:
                    stored = await store_freshness(connection, batch)
            except psycopg.Error as error:
                self._readiness.wait_for("postgres", f"freshness: {type(error).__name__}")
                return
            self._readiness.found("postgres")
            if not self._drop_done(batch, stored):
                return

    def _drop_done(self, batch: list[Fresh], stored: frozenset[Channel]) -> int:
        """Forget what is stored or no longer worth storing, and return how many that were."""
        now = datetime.now(UTC)
        dropped = 0
        for fresh in batch:
            # The materializer may still be behind us; a version that is not ours any more never comes back.
            waits = fresh.channel not in stored and self._still_true(fresh) and now - fresh.verified_at < KEPT
            if not waits and self._waiting.get(fresh.channel) == fresh:
                del self._waiting[fresh.channel]
                dropped += 1
        return dropped

    def _still_true(self, fresh: Fresh) -> bool:
        state = self._share.state(fresh.channel)
        return state is not None and state.version == fresh.version
