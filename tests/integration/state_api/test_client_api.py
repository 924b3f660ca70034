"""The typed clients of the API, sync and asyncio, against the running API."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from serverchange.client import AsyncStateClient, RefusedError, StateClient, UnavailableError, calls
from serverchange.views import parse_position

from .conftest import T0, TOKEN, RunningApi, Tables, settled


async def test_every_method_answers_typed(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws", version=3), settled("caedrel", on="main")])
    await tables.store_history("forsen", ["main", "event", "aws"])
    await api.until_streaming()
    moment = datetime.fromtimestamp(T0 / 1000, UTC) + timedelta(seconds=70)

    async with AsyncStateClient(api.url) as client:
        assert (await client.where("#Forsen")).cluster == "aws"
        assert (await client.where_at("forsen", moment)).cluster == "event"
        found = await client.look_up(["forsen", "nobody", "forsen"])
        assert (list(found.channels), found.unknown) == (["forsen"], ("nobody",))
        assert [view.channel async for view in client.channels()] == ["caedrel", "forsen"]
        assert [view.channel async for view in client.channels(cluster="main")] == ["caedrel"]
        assert [change.version for change in (await client.history("forsen", limit=2)).changes] == [3, 2]
        assert (await client.clusters()).clusters == ()


async def test_the_sync_client_answers_the_same(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled(f"c{number:04}", on="aws") for number in range(1_500)])

    def ask() -> tuple[int, int]:
        with StateClient(api.url) as client:
            found = client.look_up([f"c{number:04}" for number in range(2_000)])
            return len(list(client.channels())), len(found.channels)

    assert await asyncio.to_thread(ask) == (1_500, 1_500)


async def test_many_names_are_asked_for_in_portions(
    api: RunningApi, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "NAMES_A_REQUEST", 7)
    await tables.store([settled(f"c{number}", on="aws") for number in range(20)])

    async with AsyncStateClient(api.url) as client:
        found = await client.look_up([f"c{number}" for number in range(25)])

    assert len(found.channels) == 20
    assert found.unknown == ("c20", "c21", "c22", "c23", "c24")


async def test_a_client_reads_what_it_wrote(api: RunningApi, tables: Tables) -> None:
    async with AsyncStateClient(api.url, token=TOKEN) as client, asyncio.timeout(30):
        written = await client.track(["forsen"], labels=["partner"])
        reading = asyncio.create_task(client.where("forsen"))
        await tables.store([settled("forsen", on="aws")])
        await tables.fold_to({partition: end + 1 for partition, end in parse_position(written.position).items()})

        assert (await reading).cluster == "aws"
        assert client.session.position == written.position


async def test_a_position_handed_over_makes_another_client_wait(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws")])
    async with AsyncStateClient(api.url) as client, asyncio.timeout(30):
        client.session.see("0@5")
        reading = asyncio.create_task(client.where("forsen"))
        await tables.fold_to({0: 6})
        assert (await reading).cluster == "aws"


async def test_what_is_refused_is_not_tried_again(api: RunningApi) -> None:
    async with AsyncStateClient(api.url, token="wrong") as client:
        with pytest.raises(RefusedError, match="401"):
            await client.track(["forsen"])
        with pytest.raises(RefusedError, match="404"):
            await client.where("nobody")
        with pytest.raises(ValueError, match="not a channel"):
            await client.where("#a\r\nQUIT")


async def test_an_api_that_is_away_is_tried_again_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BACKOFF_S", 0.001)
    async with AsyncStateClient("http://127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match="does not answer"):
            await client.where("forsen")
