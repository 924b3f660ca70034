"""The ledger of JOINs and logins in PostgreSQL: `tracker.budget`'s rule, by the database's clock.

Every shard of an account leases from one ledger, so however many processes there are, the platform sees one budget
kept. `now` may be given to test the rule on any history; processes leave it None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries
from serverchange.tracker.budget import UNREPORTED_S, Kind, Lease, Limit

_SQL: Final = queries("join_budget")


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The ledger's answer.

    Attributes:
        lease_id: to report; None where nothing was granted.
        amount: events that may be sent.
        retry_after_s: where nothing was granted, when to ask again at the latest.
    """

    lease_id: int | None
    amount: int
    retry_after_s: float


async def grant_lease(
    connection: AsyncConnection,
    *,
    account: str,
    kind: Kind,
    limit: Limit,
    holder: str,
    wanted: int,
    now: datetime | None = None,
) -> LeaseGrant:
    """Lease up to `wanted` events of the account's budget; its own transaction.

    Raises:
        psycopg.Error: the database is away; nothing may be sent then.
    """
    parameters: dict[str, Any] = {
        "account": account,
        "kind": kind.value,
        "holder": holder,
        "wanted": wanted,
        "count": limit.count,
        "portion": limit.portion,
        "span_s": limit.span_s,
        "unreported_s": UNREPORTED_S,
        "now": now,
    }
    async with connection.transaction():
        await connection.execute(_SQL["open_budget"], parameters)
        cursor = await connection.execute(_SQL["lock_budget"], parameters)
        locked = await cursor.fetchone()
        parameters["moment"] = locked and locked[0]
        await connection.execute(_SQL["forget_leases"], parameters)
        cursor = await connection.execute(_SQL["grant_lease"], parameters)
        row = await cursor.fetchone()
    if row is None:
        return LeaseGrant(None, 0, limit.span_s)
    amount, retry_after_s, lease_id = row
    return LeaseGrant(lease_id, amount, 0.0 if amount else retry_after_s)


async def report_lease(connection: AsyncConnection, *, lease_id: int, spent: int, now: datetime | None = None) -> None:
    """Say how much of a lease was spent; call it only after the bytes have left.

    Raises:
        psycopg.Error: the database is away; the lease then counts in full until it is forgotten.
    """
    await connection.execute(_SQL["report_lease"], {"lease_id": lease_id, "spent": spent, "now": now})


@dataclass(slots=True)
class LedgerBudget:
    """One account's budget of one kind, as it stands in the ledger.

    Attributes:
        now: the ledger's clock, seconds since 1970.
        leases: holder and lease, oldest first; some may count no more.
    """

    account: str
    kind: Kind
    now: float
    leases: list[tuple[str, Lease]] = field(default_factory=list)


async def load_ledger(connection: AsyncConnection, *, now: datetime | None = None) -> list[LedgerBudget]:
    """Return every budget, by account and kind; changes nothing and waits for nobody.

    Raises:
        psycopg.Error: the database is away.
    """
    budgets: list[LedgerBudget] = []
    cursor = await connection.execute(_SQL["load_ledger"], {"now": now})
    for account, kind, moment, holder, amount, granted_at, reported_at, spent in await cursor.fetchall():
        if not budgets or (budgets[-1].account, budgets[-1].kind) != (account, kind):
            budgets.append(LedgerBudget(account, Kind(kind), moment))
        if holder is not None:
            budgets[-1].leases.append((holder, Lease(amount, granted_at, reported_at, spent)))
    return budgets
