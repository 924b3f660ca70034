"""Postgres and Kafka go away and come back: what is promised of the API meanwhile, on servers of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import httpx
import psutil
import psycopg
import pytest

from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.topics import apply_topics
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.settings import KafkaSettings, PostgresSettings, Settings
from serverchange.embedded.kafka import EmbeddedKafka
from serverchange.embedded.postgres import EmbeddedPostgres
from serverchange.state_api import writes

from .conftest import BEARER, RunningApi, Tables, Topics, moved, settled
from .test_changes import stream, take

POOL_MAX: Final = 4
OUTAGE_ROUNDS: Final = 5
"""Waves of requests that are each told 503 after waiting for a connection: longer in all than the five seconds after
which the pool gives a lost connection up, which is when pools were seen to shrink or stick (psycopg 1401, 1345)."""


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres")
    server.start()
    with psycopg.connect(server.dsn) as connection:
        migrate(connection)
    yield server
    server.stop()


@pytest.fixture
async def api_on_own_postgres(settings: Settings, own_postgres: EmbeddedPostgres) -> AsyncIterator[RunningApi]:
    postgres = PostgresSettings.model_validate({"dsn": own_postgres.dsn, "pool_max": POOL_MAX})
    await Tables(postgres).store([settled("forsen", on="aws")])
    async with RunningApi(settings.model_copy(update={"postgres": postgres})) as api:
        yield api


async def impatient(api: RunningApi) -> None:
    """Ask and hang up after 20 ms."""
    with contextlib.suppress(httpx.TransportError):
        await api.client.get("/channels/forsen", timeout=0.02)


async def ask_at_once(api: RunningApi, count: int) -> set[int]:
    responses = await asyncio.gather(*(api.client.get("/channels/forsen") for _ in range(count)))
    return {response.status_code for response in responses}


async def serves_all(api: RunningApi) -> None:
    """Wait until four requests a connection at once are all answered: none is stuck, none is lost to the pool."""
    async with asyncio.timeout(30):
        while await ask_at_once(api, 4 * POOL_MAX) != {200}:
            await api.until("/channels/forsen", lambda response: response.status_code == 200)


async def test_an_outage_of_postgres_is_told_and_leaves_the_pool_whole(
    api_on_own_postgres: RunningApi, own_postgres: EmbeddedPostgres
) -> None:
    api = api_on_own_postgres
    await serves_all(api)

    await asyncio.to_thread(own_postgres.kill)
    for _ in range(OUTAGE_ROUNDS):
        await asyncio.gather(*(impatient(api) for _ in range(10 * POOL_MAX)))
        async with asyncio.timeout(10):
            response = await api.client.get("/channels/forsen")
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["retry-after"]) > 0
    assert (await api.client.get("/readyz")).status_code == 503

    await asyncio.to_thread(own_postgres.start)
    await api.until("/channels/forsen", lambda response: response.status_code == 200)
    await api.until("/readyz", lambda response: response.status_code == 200)
    await serves_all(api)
    assert api.app.state.parts.reader.connections <= POOL_MAX


async def test_a_restart_of_postgres_between_two_requests_is_not_noticed(
    api_on_own_postgres: RunningApi, own_postgres: EmbeddedPostgres
) -> None:
    api = api_on_own_postgres
    assert await ask_at_once(api, 4 * POOL_MAX) == {200}

    await asyncio.to_thread(own_postgres.kill)
    await asyncio.to_thread(own_postgres.start)

    await api.until("/channels/forsen", lambda response: response.status_code == 200)
    assert await ask_at_once(api, 4 * POOL_MAX) == {200}


async def test_a_postgres_that_hangs_is_told_too(
    api_on_own_postgres: RunningApi, own_postgres: EmbeddedPostgres
) -> None:
    api = api_on_own_postgres
    assert await ask_at_once(api, 4 * POOL_MAX) == {200}
    assert own_postgres.pid is not None
    server = psutil.Process(own_postgres.pid)
    paused = [server, *server.children(recursive=True)]

    for process in paused:
        process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(15):
            assert await ask_at_once(api, 4 * POOL_MAX) == {503}
    finally:
        for process in paused:
            process.send_signal(signal.SIGCONT)

    await api.until("/channels/forsen", lambda response: response.status_code == 200)
    assert await ask_at_once(api, 4 * POOL_MAX) == {200}


async def test_with_kafka_away_reads_and_streams_go_on(
    settings: Settings, postgres: PostgresSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "WRITE_TIMEOUT_S", 1.0)
    server = EmbeddedKafka(tmp_path / "kafka")
    await asyncio.to_thread(server.start)
    kafka = KafkaSettings(bootstrap_servers=server.bootstrap_servers, partitions=4)
    try:
        await asyncio.to_thread(apply_topics, kafka)
        await Tables(postgres).store([settled("forsen", on="aws")])
        async with (
            RunningApi(settings.model_copy(update={"kafka": kafka})) as api,
            EventPublisher(kafka, client_id="test") as publisher,
        ):
            await kafka_goes_and_comes_back(api, server, Topics(publisher))
    finally:
        await asyncio.to_thread(server.stop)


async def kafka_goes_and_comes_back(api: RunningApi, server: EmbeddedKafka, topics: Topics) -> None:
    await api.until_streaming()
    fresh = await api.until("/channels/forsen", lambda response: response.json()["behind_records"] == 0)
    async with asyncio.timeout(120), api.client.stream("GET", "/changes", timeout=None) as response:
        lines = response.aiter_lines()
        assert "ready" in [await anext(lines) for _ in range(3)][-1]

        await asyncio.to_thread(server.kill)
        away = await api.until("/channels/forsen", lambda response: response.json()["behind_records"] is None)
        assert away.status_code == 200
        assert away.json()["as_of"] >= fresh.json()["as_of"]
        assert (await api.client.get("/clusters")).status_code == 200
        assert (await api.client.get("/readyz")).status_code == 200
        refused = await api.client.post("/channels", headers=BEARER, json={"channels": ["forsen"]})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)

        await asyncio.to_thread(server.start)
        await topics.change(moved("forsen", "main", 2))
        async for line in lines:
            if line.startswith("data:") and '"version":2' in line:
                break
    await api.until("/channels/forsen", lambda response: response.json()["behind_records"] is not None)
    written = await api.client.post("/channels", headers=BEARER, json={"channels": ["forsen"]}, timeout=60)
    assert written.status_code in {202, 503}  # 503: the client is still finding the broker again, and says so
    async with stream(api) as events:
        await anext(events)
        await topics.change(moved("forsen", "aws", 3))
        assert [event.version for event in await take(events, 1)] == [3]
