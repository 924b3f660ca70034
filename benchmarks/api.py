"""What the state API and the SDK cost beside the bare libraries, and whether streams lose anything.

`serverchange bench api --json`. One embedded Kafka and PostgreSQL; contenders take turns in the same run, so that a
machine that is busy with something else slows both.

- `single_ratio`: look-ups of one channel a second, beside a bare FastAPI and psycopg handler.
- `bulk_ratio`: the time of 100,000 names in one request, in times of the bare SQL with its rows fetched.
- `sse_lost`: changes that clients of the stream never got, over a kill of the API half way.
- `channel_map_ratio`: how fast `ChannelMap` is ready, beside a bare kafka-python read of the topic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import psycopg
from kafka import KafkaConsumer, TopicPartition

from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.logs import configure_logs
from serverchange.adapters.postgres.array_literals import text_array
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.settings import KafkaSettings, ProcessSettings
from serverchange.client import ChannelMap
from serverchange.embedded.stack import EmbeddedStack
from serverchange.events import KAFKA_HEADERS, ChangedData, ChangeKind, Channel, Cluster, ClusterChanged, change_id
from serverchange.topics import CLUSTER_CHANGES

sys.path.insert(0, str(Path(__file__).parent))
from api_load import StreamReader, requests_per_second

PARTITIONS: Final = 12
POOL_MAX: Final = 8
ROUNDS: Final = 3
START_TIMEOUT_S: Final = 30.0
SSE_TIMEOUT_S: Final = 600.0
POLL_RECORDS: Final = 5_000
WORKER: Final = (
    "from serverchange.adapters.settings import load_settings\n"
    "from serverchange.state_api.main import main\n"
    "main(load_settings())\n"
)
BULK_SQL: Final = (
    "SELECT channel, status, cluster, left_cluster, verified, since_ms, version, kind, labels, wanting::text, pinned,"
    " room_id, evidence FROM channel_state WHERE channel = ANY(%s)"
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; ratios are ours to theirs."""

    single_ratio: float
    single_per_second: float
    single_per_second_bare: float
    bulk_ratio: float
    bulk_s: float
    bulk_s_bare: float
    sse_lost: int
    sse_repeated: int
    sse_clients: int
    sse_changes: int
    sse_s: float
    channel_map_ratio: float
    channel_map_per_second: float
    channel_map_per_second_bare: float
    channel_map_channels: int


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print what it found."""
    arguments = _parser().parse_args(argv)
    configure_logs(ProcessSettings(log_level="warning"), service="bench")  # to standard error: the output is the report
    with tempfile.TemporaryDirectory() as folder, EmbeddedStack(Path(folder), progress=_say) as stack:
        report = _measure(arguments, stack)
    if arguments.json:
        print(json.dumps(asdict(report)))
        return 0
    for name, value in asdict(report).items():
        print(f"{name:<28} {value:,.2f}" if isinstance(value, float) else f"{name:<28} {value:,}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serverchange bench api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channels", type=int, default=200_000, help="channels in the tables")
    parser.add_argument("--names", type=int, default=100_000, help="names in the bulk look-up")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round of single look-ups")
    parser.add_argument("--clients", type=int, default=500, help="clients of the stream")
    parser.add_argument("--changes", type=int, default=1_000, help="changes that each of them must get")
    parser.add_argument("--map-channels", type=int, default=1_000_000, help="channels in the map")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _measure(arguments: argparse.Namespace, stack: EmbeddedStack) -> Report:
    kafka = KafkaSettings(bootstrap_servers=stack.kafka.bootstrap_servers, partitions=PARTITIONS, topic_prefix="api.")
    apply_topics(kafka)
    with psycopg.connect(stack.postgres.dsn, autocommit=True) as connection:
        migrate(connection)
        _fill(connection, arguments.channels)
    port = _free_port()
    with _serving_api(stack, kafka, port):
        _say("single look-ups")
        names = [f"channel_{number}" for number in range(arguments.channels)]
        ours, bare = _single(stack, port, names, arguments.seconds)
        _say(f"  {ours:,.0f} a second, bare {bare:,.0f}; bulk look-ups")
        bulk_s, bulk_s_bare = _bulk(stack, port, names[: arguments.names])
    _say(f"  {bulk_s:.2f} s, bare {bulk_s_bare:.2f} s; streams")
    lost, repeated, sse_s = asyncio.run(_streams(stack, kafka, port, arguments.clients, arguments.changes))
    _say(f"  {lost} lost, {repeated} repeated in {sse_s:.0f} s; map of all channels")
    mapped, read = _map(stack, arguments.map_channels)
    return Report(
        single_ratio=ours / bare,
        single_per_second=ours,
        single_per_second_bare=bare,
        bulk_ratio=bulk_s / bulk_s_bare,
        bulk_s=bulk_s,
        bulk_s_bare=bulk_s_bare,
        sse_lost=lost,
        sse_repeated=repeated,
        sse_clients=arguments.clients,
        sse_changes=arguments.changes,
        sse_s=sse_s,
        channel_map_ratio=mapped / read,
        channel_map_per_second=mapped,
        channel_map_per_second_bare=read,
        channel_map_channels=arguments.map_channels,
    )


def _fill(connection: psycopg.Connection[Any], channels: int) -> None:
    connection.execute(
        "INSERT INTO channel_state (partition, channel, seq, known_after, status, cluster, left_cluster, left_at_ms,"
        " verified, doubts, version, since_ms, kind, labels, wanting, penalty, penalty_at_ms, evidence)"
        " SELECT n %% 12, 'channel_' || n, 5, 4, 'settled', 'aws', 'main', 1456000000000, true, 0, 2, 1456000000000,"
        " 'chat', '{partner}', '[[\"my-bot\", [\"partner\"], null]]', 1000, 1456000000000,"
        " ARRAY[gen_random_uuid()::text] FROM generate_series(0, %s - 1) AS n",
        [channels],
    )
    connection.execute("ANALYZE channel_state")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _serving_api(stack: EmbeddedStack, kafka: KafkaSettings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "SERVERCHANGE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
        "SERVERCHANGE_POSTGRES_DSN": stack.postgres.dsn,
        "SERVERCHANGE_POSTGRES_POOL_MAX": str(POOL_MAX),
        "SERVERCHANGE_PROCESS_LOG_LEVEL": "warning",
        "SERVERCHANGE_API_PORT": str(port),
        "SERVERCHANGE_API_STREAMS_MAX": "100000",
    }
    with _process([sys.executable, "-c", WORKER], f"http://127.0.0.1:{port}/clusters", environment) as process:
        yield process


@contextmanager
def _process(
    command: Sequence[str], ready_url: str, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        _await_ready(ready_url)
        yield process
    finally:
        process.kill()
        process.wait()


def _await_ready(url: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            urllib.request.urlopen(url, timeout=5).read()  # noqa: S310  (our own loopback address)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{url} does not answer")


def _single(stack: EmbeddedStack, port: int, names: Sequence[str], seconds: float) -> tuple[float, float]:
    """Return (ours, bare) requests a second: medians of rounds that take turns."""
    bare_port = _free_port()
    bare = [sys.executable, str(Path(__file__).with_name("api_bare.py")), stack.postgres.dsn, str(bare_port)]
    found: dict[int, list[float]] = {port: [], bare_port: []}
    with _process([*bare, str(POOL_MAX)], f"http://127.0.0.1:{bare_port}/channels/channel_1"):
        for turn in range(-1, ROUNDS):  # the first round warms both up and does not count
            for one in (port, bare_port):
                per_second = asyncio.run(requests_per_second(one, names, seconds, seed=turn))
                if turn >= 0:
                    found[one].append(per_second)
    return statistics.median(found[port]), statistics.median(found[bare_port])


def _bulk(stack: EmbeddedStack, port: int, names: Sequence[str]) -> tuple[float, float]:
    """Return (ours, bare) seconds for all `names` at once."""
    body = json.dumps({"channels": list(names)}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/channels:lookup", body, {"content-type": "application/json"}
    )

    def ask() -> bytes:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            answer: bytes = response.read()
            return answer

    with psycopg.connect(stack.postgres.dsn, autocommit=True) as connection:

        def select() -> int:
            return len(connection.execute(BULK_SQL, [text_array(names)]).fetchall())

        if select() != len(names):
            raise RuntimeError("the tables do not hold the names")
        if len(json.loads(ask())["channels"]) != len(names):
            raise RuntimeError("the API did not answer for all names")
        times = [(_seconds(ask), _seconds(select)) for _ in range(ROUNDS)]
    return statistics.median(ours for ours, _ in times), statistics.median(bare for _, bare in times)


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


async def _streams(
    stack: EmbeddedStack, kafka: KafkaSettings, port: int, clients: int, changes: int
) -> tuple[int, int, float]:
    """Return (lost, repeated, seconds): every client wants every change, and the API is killed half way."""
    readers = [StreamReader(port, changes) for _ in range(clients)]
    producer = confluent_kafka.Producer({"bootstrap.servers": stack.kafka.bootstrap_servers})
    topic = topic_name(kafka, CLUSTER_CHANGES)
    with _serving_api(stack, kafka, port) as first:
        reading = [asyncio.create_task(reader.run()) for reader in readers]
        async with asyncio.timeout(SSE_TIMEOUT_S):
            await asyncio.gather(*(reader.connected.wait() for reader in readers))
        started_s = time.perf_counter()
        await asyncio.to_thread(_produce, producer, topic, range(1, changes // 2 + 1), "s")
        while sum(len(reader.versions) for reader in readers) < clients * changes // 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        await asyncio.to_thread(first.wait)
    await asyncio.to_thread(_produce, producer, topic, range(changes // 2 + 1, changes * 3 // 4 + 1), "s")
    serving = _serving_api(stack, kafka, port)
    await asyncio.to_thread(serving.__enter__)
    try:
        await asyncio.to_thread(_produce, producer, topic, range(changes * 3 // 4 + 1, changes + 1), "s")
        await asyncio.wait(reading, timeout=SSE_TIMEOUT_S)
        elapsed_s = time.perf_counter() - started_s
    finally:
        serving.__exit__(None, None, None)
        for task in reading:
            task.cancel()
    lost = sum(changes - len(reader.versions) for reader in readers)
    return lost, sum(reader.repeated for reader in readers), elapsed_s


def _produce(producer: confluent_kafka.Producer, topic: str, versions: Sequence[int], prefix: str) -> None:
    """Write one change a version, each of a channel of its own."""
    headers: list[tuple[str, str | bytes | None]] = list(KAFKA_HEADERS)
    template = _change(f"{prefix}_0", 1).to_record()
    for version in versions:
        channel = f"{prefix}_{version}"
        value = (
            template.replace(b'"subject":"%s_0"' % prefix.encode(), b'"subject":"%s"' % channel.encode())
            .replace(b'"version":1', b'"version":%d' % version)
            .replace(b'"id":"', b'"id":"%d-' % version)
        )
        while True:
            try:
                producer.produce(topic, key=channel.encode(), value=value, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


def _change(channel: str, version: int) -> ClusterChanged:
    now = datetime.now(UTC)
    data = ChangedData(
        what=ChangeKind.MOVED,
        previous=Cluster("main"),
        cluster=Cluster("aws"),
        generation=1,
        version=version,
        since=now,
        labels=("partner",),
        evidence=(str(uuid.uuid4()),),
    )
    name = Channel(channel)
    return ClusterChanged(
        id=change_id(name, 1, version), source="serverchange/materializer", time=now, subject=name, data=data
    )


def _map(stack: EmbeddedStack, channels: int) -> tuple[float, float]:
    """Return (ours, bare) channels a second until all are read: medians of rounds that take turns."""
    kafka = KafkaSettings(bootstrap_servers=stack.kafka.bootstrap_servers, partitions=PARTITIONS, topic_prefix="map.")
    apply_topics(kafka, [CLUSTER_CHANGES])
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 50})
    _produce(producer, topic_name(kafka, CLUSTER_CHANGES), range(1, channels + 1), "m")
    ours, bare = [], []
    for _ in range(ROUNDS):
        ours.append(channels / _seconds(lambda: _load_map(kafka, channels)))
        bare.append(channels / _seconds(lambda: _read_all(kafka, channels)))
    return statistics.median(ours), statistics.median(bare)


def _load_map(kafka: KafkaSettings, channels: int) -> None:
    with ChannelMap(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix) as placed:
        placed.wait_ready(600)
        if len(placed) != channels:
            raise RuntimeError(f"the map holds {len(placed)} channels of {channels}")


def _read_all(kafka: KafkaSettings, channels: int) -> None:
    topic = topic_name(kafka, CLUSTER_CHANGES)
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers,
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_poll_records=POLL_RECORDS,
    )
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    count = 0
    while count < channels:
        for records in consumer.poll(timeout_ms=200).values():
            for _record in records:
                count += 1
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1:])
