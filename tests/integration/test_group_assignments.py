"""The brokers' word on who holds what."""

from __future__ import annotations

import asyncio

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.group_assignments import assigned_partitions
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CLUSTER_CHANGES

WAIT_S = 30


def held(kafka: KafkaSettings) -> frozenset[int]:
    return assigned_partitions(kafka, group="reconnectors", topic=CLUSTER_CHANGES, client_id="test")


async def test_a_member_holds_partitions_until_it_leaves(kafka: KafkaSettings) -> None:
    assert await asyncio.to_thread(held, kafka) == frozenset()
    consumer = make_consumer(kafka, client_id="test", group="reconnectors")
    consumer.subscribe([topic_name(kafka, CLUSTER_CHANGES)])
    async with asyncio.timeout(WAIT_S):
        while await asyncio.to_thread(held, kafka) != frozenset(range(kafka.partitions)):
            await asyncio.to_thread(consumer.poll, timeout_ms=100)
    consumer.close(autocommit=False)
    assert await asyncio.to_thread(held, kafka) == frozenset()
