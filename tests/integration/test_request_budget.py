"""The request budget that all pollers share, on a real PostgreSQL."""

import asyncio

import psycopg

from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.request_budget import (
    LEASE_EXPIRES_S,
    Lease,
    LeasedRequests,
    lease_requests,
    pause_requests,
)
from serverchange.adapters.settings import PostgresSettings

NAME = "lookups"
SLOW = 0.001
"""Requests a second: none comes back while a test runs."""


async def lease(connection: AsyncConnection, wanted: int, per_second: float = SLOW) -> Lease:
    return await lease_requests(connection, name=NAME, per_second=per_second, wanted=wanted)


async def put_back(postgres: PostgresSettings, seconds: float) -> None:
    """Make the budget's last refill `seconds` older than it was."""
    async with await psycopg.AsyncConnection.connect(postgres.dsn.get_secret_value()) as connection:
        await connection.execute(
            "UPDATE request_budget SET refilled_at = refilled_at - make_interval(secs => %s)", [seconds]
        )


async def test_a_lease_takes_from_what_is_left(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        assert (await lease(connection, 5)).granted == 1
        empty = await lease(connection, 5)
    assert empty.granted == 0
    assert 900 < empty.wait_s <= 1000


async def test_the_bucket_refills_by_the_clock_up_to_one_second(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        await lease(connection, 100, per_second=100.0)
        await put_back(postgres, 0.5)
        refilled = await lease(connection, 100, per_second=100.0)
        assert 50 <= refilled.granted <= 100
        await put_back(postgres, 3600)
        assert (await lease(connection, 1000, per_second=100.0)).granted == 100


async def test_a_clock_set_back_grants_nothing_and_heals(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        await lease(connection, 1)
        await put_back(postgres, -3600)
        assert (await lease(connection, 1)).granted == 0
        await put_back(postgres, 1000)
        assert (await lease(connection, 1)).granted == 1


async def test_many_pollers_together_get_no_more_than_the_budget(postgres: PostgresSettings) -> None:
    async def spend() -> int:
        granted = 0
        async with await connect(postgres, application="test") as connection:
            for _ in range(50):
                granted += (await lease(connection, 7, per_second=200 * SLOW + 40.0)).granted
        return granted

    loop = asyncio.get_running_loop()
    started_s = loop.time()
    totals = await asyncio.gather(*(spend() for _ in range(6)))
    elapsed_s = loop.time() - started_s
    assert sum(totals) <= 40.2 + 40.2 * elapsed_s


async def test_a_pause_holds_for_everybody(postgres: PostgresSettings) -> None:
    async with (
        await connect(postgres, application="one") as one,
        await connect(postgres, application="two") as two,
    ):
        await lease(one, 0)
        await pause_requests(one, name=NAME, seconds=300.0)
        await pause_requests(one, name=NAME, seconds=5.0)
        paused = await lease(two, 1)
    assert paused.granted == 0
    assert 290 < paused.wait_s <= 300


def leased_by(clock: list[float], per_second: float = 20.0) -> LeasedRequests:
    return LeasedRequests(per_second, monotonic=lambda: clock[0])


def test_a_portion_is_a_fiftieth_of_ten_seconds_at_most_and_at_least_one() -> None:
    assert [leased_by([0.0], rate).portion_max for rate in (0.1, 20.0, 2000.0)] == [1, 4, 400]


def test_a_portion_follows_what_was_used_of_the_one_before() -> None:
    leased = leased_by([0.0], 1000.0)
    wanted = []
    for _ in range(9):
        wanted.append(leased.wanted)
        leased.add(leased.wanted, asked_at_s=0.0)
        while leased.use():
            pass
    assert wanted == [1, 2, 4, 8, 16, 32, 64, 128, 200]
    leased.add(200, asked_at_s=0.0)
    leased.use()
    assert leased.wanted == 2


def test_the_next_portion_is_asked_for_before_the_last_is_used() -> None:
    leased = leased_by([0.0])
    assert leased.low
    leased.add(4, asked_at_s=0.0)
    lows = [leased.use() and leased.low for _ in range(4)]
    assert lows == [False, True, True, True]


def test_what_was_leased_is_lost_rather_than_used_late() -> None:
    clock = [0.0]
    leased = leased_by(clock)
    assert not leased.use()
    leased.add(2, asked_at_s=0.0)
    leased.add(2, asked_at_s=0.5)
    assert leased.use()
    clock[0] = LEASE_EXPIRES_S
    assert len(leased) == 2, "the younger portion"
    clock[0] = LEASE_EXPIRES_S + 0.5
    assert not leased.use()
    clock[0] = 0.0
    assert not leased.use(), "expired is gone for good"


def test_a_use_that_came_to_nothing_is_given_back() -> None:
    leased = leased_by([0.0])
    leased.add(1, asked_at_s=0.0)
    assert leased.use()
    leased.give_back()
    assert leased.use()
    assert not leased.use()


def test_a_pause_drops_what_was_leased() -> None:
    leased = leased_by([0.0])
    leased.add(2, asked_at_s=0.0)
    leased.drop()
    assert not leased.use()
