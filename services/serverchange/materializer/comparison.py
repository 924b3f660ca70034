"""Compares, in the background, the last record of each channel on `cluster-changes` with the tables, and repairs.

The outbox's protocol leaves no difference; this finds what is outside it: a topic that somebody deleted or wrote to, a
broker that lost acknowledged records, a database restored from a copy. What is missing or older in the topic is put
into `republication`, which the outbox publishes; what is newer than the tables is told, since no repair is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import psycopg
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from serverchange.adapters import metrics
from serverchange.adapters.kafka.clients import make_async_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.settings import Settings
from serverchange.events import Rejected, parse_change
from serverchange.materializer.outbox import Outbox
from serverchange.materializer.worker import Worker
from serverchange.topics import CLUSTER_CHANGES

_log = get_logger("comparison")

INTERVAL_S: Final = 60.0
"""One partition a minute: 48 partitions take most of an hour, and each reads its part of the topic once."""

STANDSTILL_S: Final = 30.0
POLL_MS: Final = 500

Order = tuple[int, int]


async def compare_for_ever(settings: Settings, worker: Worker, outbox: Outbox) -> None:
    """Compare one partition of ours after the other until cancelled; an outage puts it off."""
    number = 0
    while True:
        await asyncio.sleep(INTERVAL_S)
        owned = sorted(worker.owned - worker.stopped.keys())
        if not owned:
            continue
        partition = owned[number % len(owned)]
        number += 1
        try:
            async with await connect(settings.postgres, application="materializer compare") as connection:
                if await compare_partition(settings, connection, partition):
                    outbox.nudge([partition])
        except (psycopg.OperationalError, KafkaError, TimeoutError, OSError) as error:
            _log.warning(LogEvent.KAFKA_LOST, part="comparison", error=str(error) or type(error).__name__)


async def compare_partition(settings: Settings, connection: AsyncConnection, partition: int) -> list[str]:
    """Put what is missing or older on `cluster-changes` into `republication`; returns those channels.

    Raises:
        TimeoutError: Kafka stopped answering.
        psycopg.OperationalError: PostgreSQL did.
    """
    # The tables first: what they call published is in the topic already, whatever is published meanwhile.
    newest = await projection.load_newest_published(connection, partition)
    last = await _last_records(settings, partition)
    if last is None:
        return []
    missing = sorted(channel for channel, order in newest.items() if last.get(channel, (0, 0)) < order)
    newer = [channel for channel, order in last.items() if channel not in newest]
    if newer:
        _log.debug(LogEvent.OUTBOX_COMPARED, partition=partition, unknown=len(newer))
    if missing:
        await projection.store_republications(connection, partition, {one: newest[one][1] for one in missing})
        metrics.OUTBOX_REPAIRS.inc(len(missing))
        _log.error(LogEvent.OUTBOX_REPAIRED, partition=partition, channels=len(missing), first=missing[0])
    return missing


async def _last_records(settings: Settings, partition: int) -> Mapping[str, Order] | None:
    """Return the order of each channel's last record; None where the topic is not partitioned like the log."""
    name = topic_name(settings.kafka, CLUSTER_CHANGES)
    consumer = make_async_consumer(settings.kafka, client_id=f"{settings.process.name}-compare")
    await consumer.start()
    try:
        # The client learns a topic's partitions once it has asked for one of them.
        place = TopicPartition(name, partition)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        if len(consumer.partitions_for_topic(name) or ()) != settings.kafka.partitions:
            return None
        return await _read_last(consumer, place, end)
    finally:
        await consumer.stop()


async def _read_last(consumer: AIOKafkaConsumer, place: TopicPartition, end: int) -> dict[str, Order]:
    last: dict[str, Order] = {}
    consumer.seek(place, (await consumer.beginning_offsets([place]))[place])
    while (position := await consumer.position(place)) < end:
        async with asyncio.timeout(STANDSTILL_S):
            while await consumer.position(place) == position:
                for record in (await consumer.getmany(place, timeout_ms=POLL_MS)).get(place, []):
                    try:
                        change = parse_change(record.key, record.value)
                    except Rejected:
                        continue
                    last[change.subject] = change.order
    return last
