"""Accounts of channels in PostgreSQL: many processes ask at once, and no account is in more channels than it may."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from serverchange.adapters.postgres.channel_accounts import assign_accounts, release_channels
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.settings import PostgresSettings
from serverchange.events import Channel
from serverchange.reconnector.account_places import AccountPlaces

WAIT_S = 20
ACCOUNTS = ("bot_a", "bot_b", "bot_c")
CHANNELS = tuple(Channel(f"channel{number:02}") for number in range(30))


async def test_processes_that_ask_at_once_fill_every_account_and_none_beyond_its_limit(
    postgres: PostgresSettings,
) -> None:
    async def ask(channels: tuple[Channel, ...]) -> dict[Channel, str]:
        async with await connect(postgres, application="test") as connection:
            return await assign_accounts(connection, dict.fromkeys(channels), accounts=ACCOUNTS, limit=10)

    answers = await asyncio.gather(*(ask(CHANNELS[start::5]) for start in range(5)))
    given = {channel: account for answer in answers for channel, account in answer.items()}
    assert set(given) == set(CHANNELS)
    assert Counter(given.values()) == dict.fromkeys(ACCOUNTS, 10)
    assert await ask(CHANNELS) == given  # whoever asks next is told the same


async def test_a_released_channel_makes_room(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        first, second = {CHANNELS[0]: None}, {CHANNELS[1]: None}
        assert await assign_accounts(connection, first, accounts=("bot_a",), limit=1) == {CHANNELS[0]: "bot_a"}
        assert await assign_accounts(connection, second, accounts=("bot_a",), limit=1) == {}
        await release_channels(connection, [CHANNELS[0]])
        assert await assign_accounts(connection, second, accounts=("bot_a",), limit=1) == {CHANNELS[1]: "bot_a"}


class Placed:
    """Remembers who was placed, and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.accounts: dict[Channel, str] = {}
        self.told = asyncio.Event()

    def __call__(self, channel: Channel, account: str) -> None:
        self.accounts[channel] = account
        self.told.set()

    async def until(self, condition: Callable[[dict[Channel, str]], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition(self.accounts):
                self.told.clear()
                await self.told.wait()


@asynccontextmanager
async def running(postgres: PostgresSettings, accounts: Sequence[str]) -> AsyncIterator[tuple[AccountPlaces, Placed]]:
    """Places for accounts that may be in one channel each."""
    placed = Placed()
    places = AccountPlaces(postgres, accounts, 1, placed)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(places.run())
        yield places, placed
        serving.cancel()


async def test_who_finds_no_room_is_placed_once_there_is_some(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverchange.reconnector.account_places.PARTED_AFTER_S", 0.1)
    async with running(postgres, ACCOUNTS[:2]) as (places, placed):
        for channel in CHANNELS[:3]:
            places.ask(channel, None)
        await placed.until(lambda accounts: len(accounts) == 2)
        assert placed.accounts.keys() == set(CHANNELS[:2])
        async with asyncio.timeout(WAIT_S):
            while places.without_room != 1:  # noqa: ASYNC110  (a figure of a gauge)
                await asyncio.sleep(0.02)
        places.release(CHANNELS[0])
        await placed.until(lambda accounts: CHANNELS[2] in accounts)
        assert placed.accounts[CHANNELS[2]] == placed.accounts[CHANNELS[0]]
        assert places.without_room == 0


async def test_a_channel_that_is_tracked_again_before_it_is_parted_keeps_its_place(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverchange.reconnector.account_places.PARTED_AFTER_S", 0.2)
    async with running(postgres, ACCOUNTS[:1]) as (places, placed):
        places.ask(CHANNELS[0], None)
        await placed.until(lambda accounts: len(accounts) == 1)
        places.release(CHANNELS[0])
        placed.accounts.clear()
        places.ask(CHANNELS[0], None)
        await placed.until(lambda accounts: len(accounts) == 1)
        places.release(CHANNELS[1])  # any channel: once it is freed, the first one's time is over, too
        await asyncio.sleep(0.3)
    async with await connect(postgres, application="test") as connection:
        assert await assign_accounts(connection, {CHANNELS[2]: None}, accounts=ACCOUNTS[:1], limit=1) == {}


async def test_one_account_without_a_limit_needs_no_place() -> None:
    nowhere = PostgresSettings.model_validate({"dsn": "postgresql://nobody@127.0.0.1:1/none"})
    assert AccountPlaces(nowhere, ["bot"], 0, Placed()).only == "bot"
    assert AccountPlaces(nowhere, ["bot"], 5, Placed()).only is None
    assert AccountPlaces(nowhere, ACCOUNTS, 0, Placed()).only is None
