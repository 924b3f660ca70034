"""The ledger in PostgreSQL states the very rule of `tracker.budget`."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.join_budget import LeaseGrant, grant_lease, report_lease
from serverchange.adapters.settings import PostgresSettings
from serverchange.tracker.budget import Kind, Lease, Limit, counts_until, plan_lease

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = Limit(count=10, window_s=10)


async def granted(connection, wanted, at_s, limit=LIMIT, account="bot"):
    now = T0 + timedelta(seconds=at_s)
    return await grant_lease(
        connection, account=account, kind=Kind.JOIN, limit=limit, holder="test", wanted=wanted, now=now
    )


@pytest.mark.parametrize("seed", range(5))
async def test_the_ledger_answers_as_the_rule_on_any_history(postgres: PostgresSettings, seed: int) -> None:
    draw, now = random.Random(seed), 0.0
    limit = Limit(count=draw.choice([3, 10, 150]), window_s=10)
    leases: dict[int, Lease] = {}
    async with await connect(postgres, application="test") as connection:
        for _ in range(120):
            now = round(now + draw.choice([0, 0.25, 1, 5, 40]), 2)
            wanted = draw.randint(1, 5)
            expected = plan_lease(leases.values(), limit, wanted, now)
            grant = await granted(connection, wanted, now, limit)
            assert grant.amount == expected.amount, f"seed {seed} at {now}"
            assert grant.retry_after_s == pytest.approx(expected.retry_after_s)
            if grant.lease_id is not None:
                leases[grant.lease_id] = Lease(grant.amount, granted_at=now)
            for lease_id, lease in leases.items():
                if lease.reported_at is None and counts_until(lease, limit) > now and draw.random() < 0.3:
                    spent = draw.randint(0, lease.amount)
                    at = T0 + timedelta(seconds=now)
                    await report_lease(connection, lease_id=lease_id, spent=spent, now=at)
                    leases[lease_id] = replace(lease, reported_at=now, spent=spent)


async def test_many_holders_at_once_get_no_more_than_the_limit(postgres: PostgresSettings) -> None:
    async def hold() -> int:
        async with await connect(postgres, application="test") as connection:
            return sum([(await granted(connection, 1, 0)).amount for _ in range(10)])

    assert sum(await asyncio.gather(*(hold() for _ in range(6)))) == LIMIT.count


async def test_a_clock_set_back_frees_nothing(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        for _ in range(10):
            grant = await granted(connection, 1, 100)
            assert grant.lease_id is not None
            await report_lease(connection, lease_id=grant.lease_id, spent=1, now=T0)
        assert await granted(connection, 1, 0) == LeaseGrant(None, 0, 11)
        assert (await granted(connection, 1, 111)).amount == 1


async def test_accounts_and_kinds_have_budgets_of_their_own(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        for _ in range(11):
            last = await granted(connection, 1, 0)
        assert last.amount == 0
        assert (await granted(connection, 1, 0, account="other")).amount == 1


async def test_the_databases_own_clock_is_used_when_none_is_given(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        grant = await grant_lease(connection, account="bot", kind=Kind.LOGIN, limit=LIMIT, holder="test", wanted=1)
        assert grant.lease_id is not None
        await report_lease(connection, lease_id=grant.lease_id, spent=0)
