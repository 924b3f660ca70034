"""TwitchIO 2 judges the simulated platform: it sends CAP and JOIN at once, and is ready only when 353 came for all."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serverchange.events import Channel
from serverchange.simulator.ledger import EntryKind
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator

pytest.importorskip("twitchio", reason="TwitchIO is not installed (it comes with the extra `dev`)")
sys.path.insert(0, str(Path(__file__).parent))

from twitchio_client import PointedClient

WAIT_S = 30
FORSEN, NYMN = Channel("forsen"), Channel("nymn")


class Bot(PointedClient):
    """A bot that remembers what its library tells it."""

    def __init__(self, simulator: Simulator, token: str, channels: list[str]) -> None:
        super().__init__(simulator.addresses.api_url, token, channels)
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.reconnects = 0

    async def event_message(self, message: Any) -> None:
        await self.messages.put(message)

    async def event_reconnect(self) -> None:
        self.reconnects += 1


@asynccontextmanager
async def connected(
    monkeypatch: pytest.MonkeyPatch, *channels: Channel, login: int = 0
) -> AsyncIterator[tuple[Simulator, Bot]]:
    settings = SimulatorSettings(
        channels=30,
        names=(FORSEN, NYMN),
        event_channels=0,
        script=False,
        habits=False,
        lines_per_second=0,
    )
    async with Simulator(settings) as simulator:
        address = simulator.addresses.clusters[simulator.world.clusters[0]].ws
        monkeypatch.setattr("twitchio.websocket.HOST", f"ws://{address}")
        bot = Bot(simulator, simulator.addresses.accounts[login].token, list(channels))
        try:
            async with asyncio.timeout(WAIT_S):
                await bot.connect()
                await bot.wait_for_ready()
            yield simulator, bot
        finally:
            await bot.close()


async def test_it_is_ready_when_all_its_channels_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch, FORSEN, NYMN) as (simulator, bot):
        assert bot.nick == "bot_one"
        assert {channel.name for channel in bot.connected_channels} == {"forsen", "nymn"}
        assert simulator.ledger.count(EntryKind.JOINED, account="bot_one") == 2


async def test_it_reads_numbered_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch, FORSEN) as (simulator, bot), asyncio.timeout(WAIT_S):
        simulator.say(FORSEN, 3)
        messages = [await bot.messages.get() for _ in range(3)]
        assert sorted(message.content.split(" ")[0] for message in messages) == ["#1", "#2", "#3"]
        assert {message.channel.name for message in messages} == {"forsen"}
        assert len({message.tags["id"] for message in messages}) == 3
        assert abs(messages[0].timestamp.timestamp() - time.time()) < 86_400


async def test_it_speaks_and_the_ledger_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Channel("streamer_000003")  # Its own: the library keeps channels in one cache for all its clients.
    async with connected(monkeypatch, quiet) as (simulator, bot):
        await bot.get_channel(quiet).send("hello from TwitchIO")
        said = await simulator.ledger.wait_for(EntryKind.PRIVMSG, timeout_s=WAIT_S)
        assert (said.account, said.channel, said.detail) == ("bot_one", quiet, "hello from TwitchIO")


async def test_it_comes_back_after_its_link_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch, FORSEN, NYMN) as (simulator, _):
        simulator.drop(simulator.links())
        for channel in (FORSEN, NYMN):
            await simulator.ledger.wait_for(EntryKind.JOINED, channel=channel, link=2, timeout_s=WAIT_S)
