"""Shards as processes of their own, killed and stopped; the simulated platform and Kafka are the judges."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from kafka import TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.postgres import fleet
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.embedded.ports import choose_ports
from serverchange.events import ChangedData, ChangeKind, Channel, ChatLine, Cluster, ClusterChanged, change_id
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator
from serverchange.topics import CHAT_LINES, CLUSTER_CHANGES

pytestmark = pytest.mark.slow

WAIT_S = 60
LOOK_S = 0.1
MAIN = Cluster("main")
CHANNELS = tuple(Channel(f"channel{number:02}") for number in range(20))
CANARY = "canary5e1f0000token"


def changed(channel: Channel) -> tuple[str, bytes]:
    now = datetime.now(UTC)
    data = ChangedData(what=ChangeKind.FIRST_SEEN, cluster=MAIN, generation=1, version=1, since=now)
    event = ClusterChanged(id=change_id(channel, 1, 1), source="test", time=now, subject=channel, data=data)
    return channel, event.to_record()


@asynccontextmanager
async def simulated(**changes: object) -> AsyncIterator[Simulator]:
    quiet = {
        "channels": len(CHANNELS),
        "names": CHANNELS,
        "event_channels": 0,
        "group_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 100,
        "chat_in_offline_channels": True,
        "clearchat_share": 0,
        "accounts": ({"login": "bot", "token": CANARY, "tier": "verified"},),
    }
    async with Simulator(SimulatorSettings.model_validate({**quiet, **changes})) as simulator:
        yield simulator


class ShardProcess:
    """One `serverchange reconnector`."""

    def __init__(self, settings: Settings, simulator: Simulator, name: str, folder: Path) -> None:
        (self.port,) = choose_ports(1)
        seeds = {cluster: [ports.plain] for cluster, ports in simulator.addresses.clusters.items()}
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "KAFKA_TOPIC_PREFIX": settings.kafka.topic_prefix,
            "KAFKA_PARTITIONS": str(settings.kafka.partitions),
            "KAFKA_SESSION_TIMEOUT_S": str(settings.kafka.session_timeout_s),
            "POSTGRES_DSN": settings.postgres.dsn.get_secret_value(),
            "PROCESS_NAME": name,
            "PROCESS_HEALTH_PORT": str(self.port),
            "PROCESS_LOG_FORMAT": "json",
            "PLATFORM_SEEDS": json.dumps(seeds),
            "PLATFORM_TRANSPORT": "plain",
            "PLATFORM_ALLOWED_NETWORKS": '["127.0.0.0/8"]',
            "PLATFORM_PLAINTEXT_TOKEN_HOSTS": '["127.0.0.1"]',
            "RECONNECTOR_ACCOUNT": "bot",
            "RECONNECTOR_TOKEN": CANARY,
            "RECONNECTOR_ACCOUNT_CLASS": "verified",
            "RECONNECTOR_OVERLAP_S": "1",
            "RECONNECTOR_DRAIN_TIMEOUT_S": "40",
        }
        self._environment = os.environ | {f"SERVERCHANGE_{key}": value for key, value in environment.items()}
        self.log = folder / f"{name}-{self.port}.log"
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serverchange.cli", "reconnector",
                env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip

    async def ready(self) -> None:
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(WAIT_S):
            while True:
                try:
                    if (await http.get(f"http://127.0.0.1:{self.port}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(LOOK_S)

    async def waits_for(self, part: str) -> str:
        """The reason why it is not ready, once that part is missing."""
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(WAIT_S):
            while True:
                try:
                    answer = await http.get(f"http://127.0.0.1:{self.port}/readyz")
                    if part in answer.json().get("missing", {}):
                        assert answer.status_code == 503
                        return str(answer.json()["missing"][part])
                except httpx.HTTPError:
                    assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(LOOK_S)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def shard(settings: Settings, simulator: Simulator, name: str, folder: Path) -> AsyncIterator[ShardProcess]:
    process = ShardProcess(settings, simulator, name, folder)
    await process.start()
    try:
        await process.ready()
        yield process
    finally:
        await process.kill()


def joined(simulator: Simulator) -> dict[Channel, int]:
    """On how many links each channel is, by the platform's own books."""
    return {channel: sum(1 for link in simulator.links() if channel in link.dialogue.joined) for channel in CHANNELS}


async def platform_has(simulator: Simulator, condition: Callable[[dict[Channel, int]], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition(joined(simulator)):  # noqa: ASYNC110  (the platform's books, as an operator looks at them)
            await asyncio.sleep(LOOK_S)


def lines_read(kafka: KafkaSettings) -> dict[Channel, list[int]]:
    """All numbered lines on `chat-lines`, each message id once, as the SDK's reader gives them."""
    consumer = make_consumer(kafka, client_id="test", group=None)
    name = topic_name(kafka, CHAT_LINES)
    places = [TopicPartition(name, number) for number in range(kafka.partitions)]
    consumer.assign(places)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(places)
    seen: set[str] = set()
    found: dict[Channel, list[int]] = {channel: [] for channel in CHANNELS}
    while any(consumer.position(place) < end for place, end in ends.items()):
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                event = ChatLine.model_validate_json(record.value)
                match = re.search(r"[@;]id=([^; ]+).* :#(\d+) ", event.data.line or "")
                if match and match[1] not in seen:
                    seen.add(match[1])
                    found[event.subject].append(int(match[2]))
    consumer.close()
    return found


async def test_a_killed_shard_that_is_started_again_serves_all_and_keeps_its_partitions(
    settings: Settings, tmp_path: Path
) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        async with shard(settings, simulator, "one", tmp_path) as first:
            await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))
            await first.kill()
            async with shard(settings, simulator, "one", tmp_path):
                await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))


async def test_a_killed_shard_is_replaced_by_the_others(settings: Settings, tmp_path: Path) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        async with (
            shard(settings, simulator, "one", tmp_path) as first,
            shard(settings, simulator, "two", tmp_path),
        ):
            await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))
            await first.kill()
            await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))


async def every_line_is_read(simulator: Simulator, settings: Settings, first: dict[Channel, int]) -> None:
    """End the chat, and hold what was read against all that was said since `first`."""
    simulator.lines_per_second = 0
    last = {channel: simulator.say(channel)[0] for channel in CHANNELS}
    read: dict[Channel, list[int]] = {}
    async with asyncio.timeout(WAIT_S):
        while not all(last[channel] in read.get(channel, ()) for channel in CHANNELS):
            read = await asyncio.to_thread(lines_read, settings.kafka)
    for channel in CHANNELS:
        assert set(range(first[channel], last[channel] + 1)) <= set(read[channel]), channel


async def test_a_rolling_deploy_of_processes_loses_no_line_and_ends_by_itself(
    settings: Settings, tmp_path: Path
) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        async with shard(settings, simulator, "one", tmp_path) as predecessor:
            await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))
            first = {channel: simulator.say(channel)[0] for channel in CHANNELS}
            predecessor.process.send_signal(signal.SIGTERM)
            async with shard(settings, simulator, "one", tmp_path):
                async with asyncio.timeout(WAIT_S):
                    assert await predecessor.process.wait() == 0
                await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))
                await every_line_is_read(simulator, settings, first)


async def test_a_drained_shard_gives_all_away_without_a_line_lost_and_stays_out_until_it_is_let_in_again(
    settings: Settings, tmp_path: Path
) -> None:
    kafka = settings.kafka.model_copy(update={"session_timeout_s": 45})  # only its leaving can be that quick
    settings = settings.model_copy(update={"kafka": kafka})
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        async with (
            await connect(settings.postgres, application="test") as connection,
            shard(settings, simulator, "one", tmp_path) as one,
            shard(settings, simulator, "two", tmp_path),
        ):
            await platform_has(simulator, lambda has: all(count == 1 for count in has.values()) and shared(simulator))
            first = {channel: simulator.say(channel)[0] for channel in CHANNELS}
            began = len(simulator.ledger.lines)
            await fleet.order_drain(connection, ["one"], ordered_by="test")
            async with asyncio.timeout(30):
                assert await one.process.wait() == 0
            await platform_has(simulator, lambda has: all(count == 1 for count in has.values()))
            assert not shared(simulator), "the other has all channels"
            await every_line_is_read(simulator, settings, first)
            assert all(line.links for line in simulator.ledger.lines.since(began)), "a reader at each moment"

            again = ShardProcess(settings, simulator, "one", tmp_path)
            await again.start()
            try:
                missing = await again.waits_for("drain")
                assert "fleet drain" in missing
                assert [one.wanted for one in await fleet.load_reports(connection) if one.process == "one"] == [0]
                assert b"partitions.assigned" not in again.log.read_bytes()
                await fleet.cancel_drain(connection, ["one"])
                await again.ready()
                await platform_has(simulator, lambda has: all(has.values()) and shared(simulator))
            finally:
                await again.kill()


def shared(simulator: Simulator) -> bool:
    """Whether two links have channels: one of each shard, for all fit on one."""
    return sum(1 for link in simulator.links() if link.dialogue.joined) == 2


async def test_a_second_signal_stops_a_draining_shard_at_once(settings: Settings, tmp_path: Path) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        async with shard(settings, simulator, "one", tmp_path) as process:
            await platform_has(simulator, lambda has: all(has.values()))
            process.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(WAIT_S):
                while b"drain.started" not in process.log.read_bytes():  # noqa: ASYNC110  (a file of another process)
                    await asyncio.sleep(LOOK_S)
            assert all(joined(simulator).values()), "a draining shard keeps its links"
            process.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                await process.process.wait()


async def test_no_token_shows_in_a_log_a_metric_or_a_process_list(settings: Settings, tmp_path: Path) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel) for channel in CHANNELS])
        async with shard(settings, simulator, "one", tmp_path) as process, httpx.AsyncClient(trust_env=False) as http:
            await platform_has(simulator, lambda has: all(has.values()))
            simulator.drop(simulator.links())
            await platform_has(simulator, lambda has: all(has.values()))
            shown = (await http.get(f"http://127.0.0.1:{process.port}/metrics")).text
            shown += await asyncio.to_thread(Path(f"/proc/{process.process.pid}/cmdline").read_text)
            shown += process.log.read_text()
            assert CANARY not in shown
