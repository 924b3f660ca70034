"""The three other ways to bring the same events into Postgres, each in a process of its own.

`naive`: the agent that Faust's documentation teaches, one event, one upsert. `take`: Faust's `take(2000)` with one
`unnest` upsert a batch. `plain`: an aiokafka loop with one upsert a fetch and the same fast parameters, no guarantees.
All parse with the same models; their table keeps the newest observation of each channel, no history, no positions.

Arguments: contender, bootstrap servers, topic, dsn, number of records. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from typing import Any, Final

import faust
import psycopg
from aiokafka import AIOKafkaConsumer

from serverchange.adapters.postgres.array_literals import number_array, text_array
from serverchange.events import ClusterObserved, Rejected, parse_channel_event

TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS latest"
    " (channel text PRIMARY KEY, cluster text NOT NULL, asked_after bigint NOT NULL, event_id text NOT NULL)"
)
UPSERT_ONE: Final = (
    "INSERT INTO latest (channel, cluster, asked_after, event_id) VALUES (%s, %s, %s, %s)"
    " ON CONFLICT (channel) DO UPDATE SET cluster = excluded.cluster, asked_after = excluded.asked_after,"
    " event_id = excluded.event_id"
)
UPSERT_MANY: Final = (
    "INSERT INTO latest (channel, cluster, asked_after, event_id)"
    " SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::text[])"
    " ON CONFLICT (channel) DO UPDATE SET cluster = excluded.cluster, asked_after = excluded.asked_after,"
    " event_id = excluded.event_id"
)
TAKE: Final = 2_000
FETCH: Final = 4_000


class _Clock:
    """Counts records from the first to the last and ends the process there."""

    def __init__(self, records: int) -> None:
        self.left = records
        self.records = records
        self.started = 0.0

    def start(self) -> None:
        if not self.started:
            self.started = time.perf_counter()

    def count(self, records: int) -> bool:
        self.left -= records
        return self.left <= 0

    def report(self) -> None:
        seconds = time.perf_counter() - self.started
        sys.stdout.write(json.dumps({"records": self.records - self.left, "seconds": seconds}) + "\n")
        sys.stdout.flush()
        os._exit(0)


def _observation(key: bytes | None, value: bytes | None) -> ClusterObserved | None:
    try:
        event = parse_channel_event(key, value)
    except Rejected:
        return None
    return event if isinstance(event, ClusterObserved) else None


def _columns(events: list[ClusterObserved]) -> list[str]:
    newest = {event.subject: event for event in events}
    rows = list(newest.values())
    return [
        text_array([event.subject for event in rows]),
        text_array([event.data.cluster for event in rows]),
        number_array([event.data.asked_after for event in rows]),
        text_array([event.id for event in rows]),
    ]


def _faust_app(servers: str, contender: str) -> faust.App:
    return faust.App(
        f"benchmark-{contender}-{os.getpid()}",
        broker=f"kafka://{servers}",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        datadir=tempfile.mkdtemp(prefix="serverchange-bench-"),
    )


def naive(servers: str, topic: str, dsn: str, clock: _Clock) -> None:
    """Run the agent of Faust's documentation."""
    app = _faust_app(servers, "naive")
    events = app.topic(topic, key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")
    connection: list[psycopg.AsyncConnection[Any]] = []

    @app.agent(events)
    async def upsert(stream: Any) -> None:
        connection.append(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
        async for key, value in stream.items():
            clock.start()
            event = _observation(key, value)
            if event is not None:
                row = (event.subject, event.data.cluster, event.data.asked_after, event.id)
                await connection[0].execute(UPSERT_ONE, row)
            if clock.count(1):
                clock.report()

    asyncio.run(_start(app))


def take(servers: str, topic: str, dsn: str, clock: _Clock) -> None:
    """Run an agent that takes batches."""
    app = _faust_app(servers, "take")
    events = app.topic(topic, key_type=bytes, value_type=bytes, value_serializer="raw", key_serializer="raw")

    @app.agent(events)
    async def upsert(stream: Any) -> None:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        async for batch in stream.take_events(TAKE, within=0.2):
            clock.start()
            found = [_observation(event.key, event.value) for event in batch]
            parsed = [event for event in found if event is not None]
            if parsed:
                await connection.execute(UPSERT_MANY, _columns(parsed))
            if clock.count(len(batch)):
                clock.report()

    asyncio.run(_start(app))


async def _start(app: faust.App) -> None:
    await app.start()
    await asyncio.Event().wait()


def plain(servers: str, topic: str, dsn: str, clock: _Clock) -> None:
    """Run a loop without a framework and without guarantees."""

    async def loop() -> None:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        while True:
            fetched = await consumer.getmany(timeout_ms=500, max_records=FETCH)
            records = [record for found in fetched.values() for record in found]
            if not records:
                continue
            clock.start()
            found = [_observation(record.key, record.value) for record in records]
            parsed = [event for event in found if event is not None]
            if parsed:
                await connection.execute(UPSERT_MANY, _columns(parsed))
            if clock.count(len(records)):
                clock.report()

    asyncio.run(loop())


def main(arguments: list[str]) -> None:
    """Run one contender until it has seen all records."""
    contender, servers, topic, dsn, records = arguments
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
    {"naive": naive, "take": take, "plain": plain}[contender](servers, topic, dsn, _Clock(int(records)))


if __name__ == "__main__":
    main(sys.argv[1:])
