"""The embedded broker: what it keeps, what it refuses, what it says. Real Kafka throughout."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, UnknownTopicOrPartitionError

from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.kafka import EmbeddedKafka
from serverchange.embedded.ports import PORT_RANGE

TOPIC = "channel-events"
DEADLINE_MS = 30_000


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    broker = EmbeddedKafka(tmp_path / "kafka")
    yield broker
    broker.stop()


def make_topic(broker: EmbeddedKafka, topic: str = TOPIC) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()


def produce(broker: EmbeddedKafka, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all")
    try:
        for future in [producer.send(TOPIC, value) for value in values]:
            future.get(timeout=DEADLINE_MS / 1000)
    finally:
        producer.close()


def consume(broker: EmbeddedKafka) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    try:
        partition = TopicPartition(TOPIC, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        values: list[bytes] = []
        while consumer.position(partition) < end:
            for records in consumer.poll(timeout_ms=1000).values():
                values += [record.value for record in records]
        return values
    finally:
        consumer.close()


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_acknowledged_records_and_the_address_survive_a(ending: str, kafka: EmbeddedKafka) -> None:
    kafka.start()
    address = kafka.bootstrap_servers
    make_topic(kafka)
    produce(kafka, b"one", b"two")

    getattr(kafka, ending)()
    assert kafka.pid is None
    kafka.start()

    assert kafka.bootstrap_servers == address
    assert consume(kafka) == [b"one", b"two"]
    produce(kafka, b"three")
    assert consume(kafka) == [b"one", b"two", b"three"]


def test_two_brokers_run_side_by_side_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    # The names try what breaks paths in Java: a space, a comma, letters beyond ASCII.
    with EmbeddedKafka(tmp_path / "a, b") as first, EmbeddedKafka(tmp_path / "é ﾃﾞｰﾀ") as second:
        make_topic(first)
        make_topic(second)
        produce(first, b"first")
        produce(second, b"second")
        assert consume(first) == [b"first"]
        assert consume(second) == [b"second"]


def test_a_broker_listens_on_loopback_only_and_inherits_nothing_of_ours(
    kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "oauth:canary")
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Xmx1k")
    kafka.start()
    process = psutil.Process(kafka.pid)
    listening = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]

    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert all(address.port in PORT_RANGE for address in listening)
    assert "TOKEN" not in process.environ()


def test_a_typing_error_makes_no_topic(kafka: EmbeddedKafka) -> None:
    kafka.start()
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, max_block_ms=1500)
    with pytest.raises(KafkaError):
        producer.send("chanel-events", b"x").get(timeout=10)
    producer.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    try:
        assert "chanel-events" not in admin.list_topics()
        with pytest.raises(UnknownTopicOrPartitionError):
            admin.delete_topics(["chanel-events"])
    finally:
        admin.close()


def test_a_folder_in_use_is_refused_with_the_pid_of_its_owner(kafka: EmbeddedKafka) -> None:
    kafka.start()
    with pytest.raises(EmbeddedError, match=rf"in use by this process \(pid {os.getpid()}\)"):
        EmbeddedKafka(kafka.log_path.parent).start()
    with pytest.raises(EmbeddedError, match="runs already"):
        kafka.start()
    assert kafka.pid is not None


def test_a_port_taken_by_another_program_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"another program uses the port {port} of Kafka"):
            EmbeddedKafka(tmp_path, port=port).start()


def test_an_explicit_port_is_used_and_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert EmbeddedKafka(tmp_path, port=port).bootstrap_servers == f"127.0.0.1:{port}"
    assert EmbeddedKafka(tmp_path).bootstrap_servers == f"127.0.0.1:{port}"


def test_a_broker_that_cannot_start_shows_the_end_of_its_log(kafka: EmbeddedKafka) -> None:
    kafka.start()
    kafka.stop()
    meta = kafka.log_path.parent / "log" / "meta.properties"
    meta.write_text(re.sub(r"node\.id=\d+", "node.id=7", meta.read_text()))

    with pytest.raises(EmbeddedError, match="ended while it started") as caught:
        kafka.start()
    assert any("node" in line.lower() for line in caught.value.log_tail)
    assert kafka.pid is None


def test_a_stop_twice_or_before_a_start_does_nothing(kafka: EmbeddedKafka) -> None:
    kafka.stop()
    kafka.start()
    kafka.stop()
    kafka.stop()
    kafka.kill()
    assert kafka.pid is None
