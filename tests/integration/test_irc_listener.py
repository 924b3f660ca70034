"""A whole listener in this process, on real Kafka and PostgreSQL, against the simulated platform."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest
from kafka import TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.process import Process, Readiness
from serverchange.adapters.settings import KafkaSettings, ListenerSettings, PlatformSettings, Settings
from serverchange.events import ChangedData, ChangeKind, Channel, Cluster, ClusterChanged, change_id
from serverchange.irc_listener.main import run_listener
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES

WAIT_S = 60
MAIN, AWS = Cluster("main"), Cluster("aws")
CHANNELS = tuple(Channel(f"channel{number}") for number in range(6))


def changed(channel: Channel) -> tuple[str, bytes]:
    now = datetime.now(UTC)
    data = ChangedData(what=ChangeKind.FIRST_SEEN, cluster=MAIN, generation=1, version=5, since=now)
    event = ClusterChanged(id=change_id(channel, 1, 5), source="test", time=now, subject=channel, data=data)
    return channel, event.to_record()


async def first_event(kafka: KafkaSettings) -> dict[str, object]:
    consumer = make_consumer(kafka, client_id="test", group=None)
    name = topic_name(kafka, CHANNEL_EVENTS)
    consumer.assign([TopicPartition(name, number) for number in range(kafka.partitions)])
    consumer.seek_to_beginning()
    try:
        async with asyncio.timeout(WAIT_S):
            while not (polled := await asyncio.to_thread(consumer.poll, timeout_ms=200)):
                pass
    finally:
        consumer.close()
    (record,) = next(iter(polled.values()))
    event: dict[str, object] = json.loads(record.value)
    return event


@pytest.mark.slow
async def test_channels_that_no_shard_holds_are_heard_without_a_name(settings: Settings) -> None:
    quiet = {
        "channels": 6,
        "names": CHANNELS,
        "event_channels": 0,
        "group_channels": 0,
        "script": False,
        "habits": False,
    }
    async with (
        Simulator(SimulatorSettings.model_validate(quiet)) as simulator,
        EventPublisher(settings.kafka, client_id="test") as publisher,
    ):
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        platform = PlatformSettings(
            transport="plain",
            seeds={cluster: (ports.plain,) for cluster, ports in simulator.addresses.clusters.items()},
            allowed_networks=("127.0.0.0/8",),
        )
        update = {"platform": platform, "listener": ListenerSettings(account_class="verified")}
        process = Process("irc_listener", settings.process, asyncio.Event(), Readiness())
        listening = asyncio.create_task(run_listener(settings.model_copy(update=update), process))
        async with asyncio.timeout(WAIT_S):
            while {channel for link in simulator.links() for channel in link.dialogue.joined} != set(CHANNELS):
                assert not listening.done(), listening.result()
                await asyncio.sleep(0.1)
        assert all(link.dialogue.anonymous for link in simulator.links())
        simulator.move(CHANNELS[0], AWS)
        event = await first_event(settings.kafka)
        assert event["subject"] == CHANNELS[0]
        assert event["data"] == {"heard_on": MAIN, "believed_version": 5, "reason": "moved"}
        process.stopping.set()
        await asyncio.wait_for(listening, WAIT_S)
