"""How many events a second reach the tables: Faust as documented, Faust in batches, a plain loop, serverchange.

`serverchange bench materialize --events 300000 --json`. One embedded Kafka and PostgreSQL, one run, the same bytes.
serverchange does everything in the measured time: validation, fold, history, positions, and publishing every change.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from serverchange.adapters.kafka.clients import make_admin, make_producer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import KafkaSettings, PostgresSettings, ProcessSettings, Settings
from serverchange.embedded.stack import EmbeddedStack
from serverchange.events import KAFKA_HEADERS, ClusterObserved, Rejected, parse_channel_event
from serverchange.materializer import verify
from serverchange.topics import CHANNEL_EVENTS

sys.path.insert(0, str(Path(__file__).parent))
from materialize_workload import Workload, make_workload

CONTENDERS: Final = Path(__file__).with_name("materialize_contenders.py")
PARTITIONS: Final = 12
NAIVE_EVENTS: Final = 20_000
"""The naive agent is measured on so many: it needs minutes for all."""

CONTENDER_TIMEOUT_S: Final = 900.0
LOOK_S: Final = 0.02
WORKER: Final = (
    "from serverchange.adapters.settings import load_settings\n"
    "from serverchange.materializer.main import main\n"
    "main(load_settings())\n"
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The servers of one run."""

    stack: EmbeddedStack
    folder: Path

    def settings(self, database: str = "serverchange") -> Settings:
        """Return the settings of serverchange's processes on these servers."""
        return Settings(
            kafka=KafkaSettings(bootstrap_servers=self.stack.kafka.bootstrap_servers, partitions=PARTITIONS),
            postgres=PostgresSettings.model_validate({"dsn": self.stack.postgres.dsn_for(database)}),
            process=ProcessSettings(name="bench", state_dir=self.folder / "state"),
        )


@contextmanager
def bench_stack() -> Iterator[Bench]:
    """Start Kafka and PostgreSQL with empty data, for one benchmark."""
    with tempfile.TemporaryDirectory(prefix="serverchange-bench-") as folder, EmbeddedStack(Path(folder)) as stack:
        yield Bench(stack, Path(folder))


@contextmanager
def materializer(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run one materializer process; it is ended at the end."""
    process = start_materializer(settings, log)
    try:
        yield process
    finally:
        stop_materializer(process)


def start_materializer(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    """Start one materializer process."""
    environment = {
        **os.environ,
        "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "SERVERCHANGE_KAFKA_PARTITIONS": str(settings.kafka.partitions),
        "SERVERCHANGE_KAFKA_TOPIC_PREFIX": settings.kafka.topic_prefix,
        "SERVERCHANGE_POSTGRES_DSN": settings.postgres.dsn.get_secret_value(),
        "SERVERCHANGE_PROCESS_STATE_DIR": str(settings.process.state_dir),
    }
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stderr=output, stdout=output)


def stop_materializer(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def produce(settings: KafkaSettings, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
    """Append the records and wait for the acknowledgements."""
    producer = make_producer(settings, client_id="bench", linger_ms=20, batch_size=131_072)
    for key, value in records:
        producer.send(topic, key=key, value=value, headers=list(KAFKA_HEADERS))
    producer.flush()
    producer.close()


def folded_and_published(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Return the records folded, and those of them whose consequences are published."""
    row = connection.execute("SELECT coalesce(sum(position), 0), coalesce(sum(published), 0) FROM log_position")
    folded, published = row.fetchone() or (0, 0)
    return int(folded), int(published)


def wait_folded(connection: psycopg.Connection[Any], records: int, timeout_s: float = CONTENDER_TIMEOUT_S) -> float:
    """Wait until so many records are folded and all they decided is published; returns the moment."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        folded, _ = folded_and_published(connection)
        if folded >= records and not _owed(connection):
            return time.perf_counter()
        time.sleep(LOOK_S)
    raise TimeoutError(f"{folded_and_published(connection)} of {records} after {timeout_s:.0f} s")


def _owed(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM cluster_change c JOIN log_position p USING (partition)"
        " WHERE c.log_offset >= p.published)"
        " OR EXISTS (SELECT 1 FROM dead_letter d JOIN log_position p USING (partition)"
        " WHERE d.log_offset >= p.published)"
    ).fetchone()
    return bool(row and row[0])


def measure_serverchange(bench: Bench, workload: Workload) -> float:
    """Return the events a second from the first transaction to the last published change."""
    settings = bench.settings()
    topic = topic_name(settings.kafka, CHANNEL_EVENTS)
    log = bench.folder / "materializer.log"
    produce(settings.kafka, topic, workload.setup)
    with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
        with materializer(settings, log):
            wait_for_schema(connection)
            wait_folded(connection, len(workload.setup))
        produce(settings.kafka, topic, workload.events)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
        with materializer(settings, log):
            started, done_then = _wait_first(connection, len(workload.setup))
            ended = wait_folded(connection, len(workload.setup) + len(workload.events))
    return (len(workload.setup) + len(workload.events) - done_then) / (ended - started)


def wait_for_schema(connection: psycopg.Connection[Any]) -> None:
    """Wait until a materializer has made the tables."""
    deadline = time.monotonic() + CONTENDER_TIMEOUT_S
    while time.monotonic() < deadline:
        row = connection.execute("SELECT to_regclass('log_position')").fetchone()
        if row and row[0]:
            return
        time.sleep(LOOK_S)
    raise TimeoutError("the materializer made no tables")


def _wait_first(connection: psycopg.Connection[Any], before: int) -> tuple[float, int]:
    deadline = time.monotonic() + CONTENDER_TIMEOUT_S
    while time.monotonic() < deadline:
        folded, _ = folded_and_published(connection)
        if folded > before:
            return time.perf_counter(), folded
        time.sleep(LOOK_S / 4)
    raise TimeoutError("the materializer folded nothing")


def measure_contender(bench: Bench, contender: str, topic: str, workload: Workload) -> float:
    """Return the events a second of one contender; its table is compared with the fold of what it read."""
    records = workload.events[:NAIVE_EVENTS] if contender == "naive" else workload.events
    settings = bench.settings()
    produce(settings.kafka, topic, records)
    database = f"bench_{contender}"
    with psycopg.connect(bench.stack.postgres.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
    dsn = bench.stack.postgres.dsn_for(database)
    command = [sys.executable, str(CONTENDERS), contender, settings.kafka.bootstrap_servers, topic, dsn]
    ran = subprocess.run(
        [*command, str(len(records))], capture_output=True, check=True, timeout=CONTENDER_TIMEOUT_S, text=True
    )
    result = json.loads(ran.stdout.strip().splitlines()[-1])
    _check_latest(dsn, records)
    return float(result["records"]) / float(result["seconds"])


def _check_latest(dsn: str, records: Sequence[tuple[bytes, bytes]]) -> None:
    expected = {}
    for key, value in records:
        try:
            event = parse_channel_event(key, value)
        except Rejected:
            continue
        if isinstance(event, ClusterObserved):
            expected[event.subject] = (event.data.cluster, event.id)
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT channel, cluster, event_id FROM latest").fetchall()
    found = {channel: (cluster, event_id) for channel, cluster, event_id in rows}
    if found != expected:
        raise SystemExit(f"the contender's table differs from the fold: {len(found)} rows, {len(expected)} expected")


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a final table differs from the fold."""
    parser = argparse.ArgumentParser(prog="serverchange bench materialize", description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--only", choices=("naive", "take", "plain", "serverchange"), action="append")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(argv)
    workload = make_workload(options.events, options.channels)
    wanted = options.only or ["naive", "take", "plain", "serverchange"]
    result: dict[str, Any] = {
        "events": options.events,
        "channels": options.channels,
        "changes": workload.changes,
        "workload_sha256": workload.sha256,
    }
    names = {"naive": "naive_agent_per_s", "take": "faust_take_per_s", "plain": "plain_loop_per_s"}
    with bench_stack() as bench:
        apply_topics(bench.settings().kafka)
        for contender, name in names.items():
            if contender in wanted:
                topic = f"bench-{contender}"
                _make_topic(bench.settings().kafka, topic)
                result[name] = round(measure_contender(bench, contender, topic, workload))
        if "serverchange" in wanted:
            result["serverchange_per_s"] = round(measure_serverchange(bench, workload))
            report = verify.run(bench.settings())
            result["differences"] = report.fault_count
            for fault in report.faults:
                sys.stderr.write(f"{fault}\n")
    if {"naive", "take", "plain", "serverchange"} <= set(wanted):
        ours = result["serverchange_per_s"]
        result["times_naive"] = round(ours / result["naive_agent_per_s"], 2)
        result["times_take"] = round(ours / result["faust_take_per_s"], 2)
        result["times_plain"] = round(ours / result["plain_loop_per_s"], 2)
    _print(result, options.as_json)
    return 1 if result.get("differences") else 0


def _make_topic(settings: KafkaSettings, topic: str) -> None:
    admin = make_admin(settings, client_id="bench")
    try:
        admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}})
        admin.wait_for_topics([topic])
    finally:
        admin.close()


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for name, value in result.items():
        sys.stdout.write(f"{name:>22}  {value}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
