"""A running state API on this test's own topics and database, and builders for what it answers from."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from fastapi import FastAPI

from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.projection import ChangeRow, store_changes, store_states
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings
from serverchange.events import ChangedData, ChangeKind, Channel, Cluster, ClusterChanged, ClusterServers, ServersData
from serverchange.state_api.app import create_app
from serverchange.topics import CLUSTER_CHANGES, CLUSTERS
from serverchange.tracker.channel_state import Change, ChannelState, Status, Wanting

T0 = 1_456_000_000_000
"""An append time in February 2016."""

TOKEN = "correct-horse"
OLD_TOKEN = "battery-staple"
TOKENS = ",".join(f"my-bot={hashlib.sha256(token.encode()).hexdigest()}" for token in (TOKEN, OLD_TOKEN))
BEARER = {"authorization": f"Bearer {TOKEN}"}


def settled(channel: str, on: str, **others: Any) -> ChannelState:
    """A channel that lives on a cluster, as the fold would leave it."""
    state = ChannelState(
        channel=Channel(channel),
        seq=3,
        known_after=2,
        status=Status.SETTLED,
        cluster=Cluster(on),
        verified=True,
        version=1,
        since_ms=T0,
        wanting=(Wanting("my-bot", ("partner",)),),
        evidence=("e-1",),
    )
    return state._replace(**others)


def moved(channel: str, to: str, version: int, *, what: str = "moved", previous: str | None = "main") -> ClusterChanged:
    """A change as it stands on `cluster-changes`."""
    data = ChangedData(
        what=ChangeKind(what),
        previous=None if previous is None else Cluster(previous),
        cluster=Cluster(to),
        generation=1,
        version=version,
        since=datetime.fromtimestamp(T0 / 1000, UTC),
        labels=("partner",),
        evidence=("e-1",),
    )
    return ClusterChanged(
        id=f"{channel}-{version}",
        source="serverchange/test",
        time=datetime.now(UTC),
        subject=Channel(channel),
        data=data,
    )


@dataclass(frozen=True, slots=True)
class Tables:
    """Writes the tables as the materializer does."""

    postgres: PostgresSettings

    async def store(self, states: Sequence[ChannelState]) -> None:
        connection = await connect(self.postgres, application="test")
        async with connection:
            await store_states(connection, [(0, state) for state in states])

    async def store_history(self, channel: str, clusters: Sequence[str]) -> None:
        """One change a cluster, a minute apart from `T0`."""
        rows = [
            ChangeRow(
                Change(
                    channel=Channel(channel),
                    what=ChangeKind.MOVED if version > 1 else ChangeKind.FIRST_SEEN,
                    previous=Cluster(clusters[version - 2]) if version > 1 else None,
                    cluster=Cluster(cluster),
                    version=version,
                    since_ms=T0 + (version - 1) * 60_000,
                    kind=settled("a", "b").kind,
                    labels=(),
                    account=None,
                    evidence=(f"e-{version}",),
                ),
                generation=1,
                partition=0,
                offset=100 + version,
            )
            for version, cluster in enumerate(clusters, start=1)
        ]
        connection = await connect(self.postgres, application="test")
        async with connection:
            await store_changes(connection, rows)

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        connection = await psycopg.AsyncConnection.connect(self.postgres.dsn.get_secret_value(), autocommit=True)
        async with connection:
            await connection.execute(statement, parameters)

    async def fold_to(self, ends: dict[int, int]) -> None:
        """Say that the tables hold everything below these offsets."""
        for partition, end in ends.items():
            await self.execute(
                "INSERT INTO log_position (partition, topic_id, position, appended_ms, rules_version, generation)"
                " VALUES (%s, 't', %s, 0, 1, 1)"
                " ON CONFLICT (partition) DO UPDATE SET position = excluded.position",
                [partition, end],
            )


@dataclass(slots=True)
class Topics:
    """Writes what other processes write to Kafka."""

    publisher: EventPublisher

    async def change(self, *changes: ClusterChanged) -> None:
        for change in changes:  # one after the other: their order matters
            await self.publisher.publish(CLUSTER_CHANGES, change.subject, change.to_record())

    async def servers(self, cluster: str, servers: Sequence[str], websocket_servers: Sequence[str] = ()) -> None:
        event = ClusterServers(
            id=f"servers-{cluster}",
            source="serverchange/test",
            time=datetime.now(UTC),
            subject=Cluster(cluster),
            data=ServersData(servers=tuple(servers), websocket_servers=tuple(websocket_servers)),
        )
        await self.publisher.publish(CLUSTERS, cluster, event.to_record())


class RunningApi:
    """The API behind uvicorn on a free port."""

    def __init__(self, settings: Settings) -> None:
        self.readiness = Readiness()
        self.app: FastAPI = create_app(settings, readiness=self.readiness)
        config = uvicorn.Config(self.app, log_config=None, access_log=False, lifespan="on")
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._serving: asyncio.Task[None] | None = None
        self.client = httpx.AsyncClient(base_url=self.url, timeout=20)

    async def __aenter__(self) -> RunningApi:
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        await self.until("/readyz", lambda response: response.status_code == 200)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self.app.state.parts.feed.stop()
        self._server.should_exit = True
        assert self._serving is not None
        await self._serving

    async def until(self, path: str, holds: Any, **options: Any) -> httpx.Response:
        """Ask until the answer holds; every question is a round trip, so this is no busy loop."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = await self.client.get(path, **options)
                    if holds(response):
                        return response
                await asyncio.sleep(0.02)

    async def until_streaming(self) -> None:
        """Return once changes are followed."""
        await self.until("/clusters", lambda response: response.status_code == 200)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The test's settings, with tokens."""
    return settings.model_copy(update={"api": ApiSettings.model_validate({"tokens": TOKENS})})


@pytest.fixture
def tables(postgres: PostgresSettings) -> Tables:
    return Tables(postgres)


@pytest.fixture
async def topics(kafka: KafkaSettings) -> AsyncIterator[Topics]:
    async with EventPublisher(kafka, client_id="test") as publisher:
        yield Topics(publisher)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[RunningApi]:
    async with RunningApi(settings) as running:
        yield running
