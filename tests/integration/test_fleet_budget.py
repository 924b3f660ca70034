"""JOIN and login budgets shared through PostgreSQL, judged by the platform's own fixed windows."""

from __future__ import annotations

import asyncio
import time

import pytest

from serverchange.adapters.leased_budget import BudgetLedger, LeasedBudget
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import PostgresSettings
from serverchange.tracker.budget import LIMITS, AccountClass, Kind, Limit

QUICK = {Kind.JOIN: Limit(20, 1.0), Kind.LOGIN: Limit(20, 1.0)}
"""An ordinary account's counts in a tenth of its window: the rule is the same, the test is not half a minute."""


def budget(
    postgres: PostgresSettings,
    holder: str,
    limits: dict[Kind, Limit] | None = None,
    *,
    account: str = "bot",
    readiness: Readiness | None = None,
) -> LeasedBudget:
    ordinary = {kind: LIMITS[AccountClass.ORDINARY, kind] for kind in Kind}
    ledger = BudgetLedger(postgres, holder=holder, readiness=readiness or Readiness())
    return LeasedBudget(ledger, account=account, limits=limits or ordinary)


async def test_three_processes_together_keep_to_one_budget(postgres: PostgresSettings) -> None:
    sent: list[float] = []

    async def spend(holder: str) -> None:
        async with budget(postgres, holder, QUICK).running() as purse:
            for _ in range(20):
                taken = await purse.take(Kind.JOIN, 1)
                sent.extend([time.monotonic()] * taken)
                purse.sent(Kind.JOIN, taken)

    await asyncio.gather(*(spend(f"shard-{number}") for number in range(3)))
    assert len(sent) == 60
    for start in sent:
        assert sum(1 for at in sent if start <= at < start + QUICK[Kind.JOIN].window_s) <= 20


async def test_a_spent_budget_survives_the_process_that_spent_it(postgres: PostgresSettings) -> None:
    """Chatterino2 3107, trihard-kkona 6: after the server had cut the link, all was joined again at once."""
    async with budget(postgres, "first").running() as purse:
        for _ in range(20):
            assert await purse.take(Kind.LOGIN, 1) == 1
            purse.sent(Kind.LOGIN, 1)
    async with budget(postgres, "second").running() as purse:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await purse.take(Kind.LOGIN, 1)


async def test_what_was_not_sent_is_there_for_others(postgres: PostgresSettings) -> None:
    async with budget(postgres, "first").running() as purse:
        for _ in range(20):
            assert await purse.take(Kind.JOIN, 1) == 1
            purse.unused(Kind.JOIN, 1)
    async with budget(postgres, "second").running() as purse, asyncio.timeout(5):
        assert await purse.take(Kind.JOIN, 1) == 1


async def test_without_the_database_nothing_is_granted_and_the_process_says_so() -> None:
    nowhere = PostgresSettings.model_validate({"dsn": "postgresql://nobody@127.0.0.1:1/none", "connect_timeout_s": 1})
    readiness = Readiness()
    purse = budget(nowhere, "first", readiness=readiness)
    async with purse.running():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await purse.take(Kind.JOIN, 1)
        assert "budget" in readiness.missing
