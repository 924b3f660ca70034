"""A process's share of the JOIN and login budget: leases portions of the ledger, spends them, reports what was spent.

The rule is `tracker.budget`, the ledger `postgres/join_budget.py`. With PostgreSQL away nothing is granted: no new
JOINs or logins go out, and links stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import psycopg

from serverchange.adapters import metrics
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.join_budget import LeaseGrant, grant_lease, report_lease
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import PostgresSettings
from serverchange.tracker.budget import Kind, Limit, Purse

_log = get_logger("leased_budget")

ASK_AGAIN_MAX_S: Final = 1.0
"""A spent budget is asked again so soon at the latest: somebody's report may have freed some."""

ASK_AGAIN_MIN_S: Final = 0.02
REPORT_INTERVAL_S: Final = 0.25
"""What was not spent is in nobody's reach until it is reported."""

AWAY_RETRY_S: Final = 1.0
STATEMENT_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class _Held:
    lease_id: int
    purse: Purse
    unsent: int = 0


class BudgetLedger:
    """One process's connection to the ledger, for the budgets of all its accounts. Enter it with `async with`.

    Args:
        settings: where the ledger is.
        holder: this process, for people who read the ledger.
        readiness: told when PostgreSQL is away.
    """

    def __init__(self, settings: PostgresSettings, *, holder: str, readiness: Readiness) -> None:
        self._settings = settings
        self._holder = holder
        self._readiness = readiness
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> BudgetLedger:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def grant(self, *, account: str, kind: Kind, limit: Limit, wanted: int) -> LeaseGrant | None:
        """Lease up to `wanted` events; None while PostgreSQL is away."""
        try:
            async with self._turn:
                grant = await grant_lease(
                    await self._connected(),
                    account=account,
                    kind=kind,
                    limit=limit,
                    holder=self._holder,
                    wanted=wanted,
                )
        except psycopg.Error as error:
            self._lose(error)
            return None
        self._readiness.found("budget")
        return grant

    async def report(self, lease_id: int, spent: int) -> bool:
        """Say how much of a lease was spent; return whether PostgreSQL knows it now."""
        try:
            async with self._turn:
                await report_lease(await self._connected(), lease_id=lease_id, spent=spent)
        except psycopg.Error as error:
            self._lose(error)
            return False
        return True

    async def _connected(self) -> AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(
                self._settings, application=f"budget of {self._holder}", statement_timeout_s=STATEMENT_TIMEOUT_S
            )
        return self._connection

    def _lose(self, error: psycopg.Error) -> None:
        reason = f"no JOIN or login goes out: {type(error).__name__}"
        if "budget" not in self._readiness.missing:
            _log.warning(LogEvent.POSTGRES_LOST, reason=str(error).strip())
        self._readiness.wait_for("budget", reason)


class LeasedBudget:
    """Implements the fleet's `Budget` for one account. Use it inside `running`.

    Args:
        ledger: where leases come from.
        account: whose budget; nameless readers of one address share one.
        limits: of each kind.
    """

    def __init__(
        self,
        ledger: BudgetLedger,
        *,
        account: str,
        limits: Mapping[Kind, Limit],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._account = account
        self._limits = limits
        self._monotonic = monotonic
        self._held: dict[Kind, list[_Held]] = {kind: [] for kind in Kind}
        self._turns = {kind: asyncio.Lock() for kind in Kind}
        self._reporting = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LeasedBudget]:
        """Report spent leases while inside; on leaving, report what is left."""
        reporter = asyncio.get_running_loop().create_task(self._keep_reporting(), name="reports leases")
        try:
            yield self
        finally:
            reporter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporter
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AWAY_RETRY_S):
                    await self._report(everything=True)

    async def take(self, kind: Kind, wanted: int) -> int:
        """Wait until at least one event may be sent; return how many, at most `wanted`. Send them at once."""
        metrics.BUDGET_WAITING.labels(kind=kind).inc(wanted)
        try:
            async with self._turns[kind]:
                while True:
                    if taken := self._spend(kind, wanted):
                        return taken
                    wait_s = await self._renew(kind, wanted)
                    if wait_s > 0:
                        await asyncio.sleep(wait_s)
        finally:
            metrics.BUDGET_WAITING.labels(kind=kind).dec(wanted)

    def sent(self, kind: Kind, count: int) -> None:
        """The bytes of `count` events have left. Events are alike: those of the oldest lease are taken to have left."""
        for held in self._held[kind]:
            done = min(count, held.unsent)
            held.unsent -= done
            count -= done

    def unused(self, kind: Kind, count: int) -> None:
        """Put back `count` events that were taken and will not be sent."""
        for held in reversed(self._held[kind]):
            back = min(count, held.unsent)
            held.unsent -= back
            held.purse = replace(held.purse, left=held.purse.left + back, spent=held.purse.spent - back)
            count -= back

    def _spend(self, kind: Kind, wanted: int) -> int:
        if not self._held[kind]:
            return 0
        held = self._held[kind][-1]
        held.purse, taken = held.purse.take(wanted, self._monotonic())
        held.unsent += taken
        return taken

    async def _renew(self, kind: Kind, wanted: int) -> float:
        """Lease a portion; return how long to wait before asking again, 0 when there is something to spend."""
        await self._report()
        asked_at = self._monotonic()
        grant = await self._ledger.grant(account=self._account, kind=kind, limit=self._limits[kind], wanted=wanted)
        if grant is None:
            return AWAY_RETRY_S
        if grant.lease_id is None:
            jitter = random.uniform(0.8, 1.2)  # noqa: S311  (no secret)
            return max(ASK_AGAIN_MIN_S, min(grant.retry_after_s, ASK_AGAIN_MAX_S)) * jitter
        self._held[kind].append(_Held(grant.lease_id, Purse.of_grant(grant.amount, asked_at)))
        return 0.0

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            await self._report()

    async def _report(self, *, everything: bool = False) -> None:
        """Report leases that are over and whose bytes have all left (`everything`: also those not yet over)."""
        async with self._reporting:
            now = self._monotonic()
            for leases in self._held.values():
                for held in [one for one in leases if one.unsent == 0 and (everything or one.purse.is_over(now))]:
                    if not await self._ledger.report(held.lease_id, held.purse.spent):
                        return
                    leases.remove(held)
