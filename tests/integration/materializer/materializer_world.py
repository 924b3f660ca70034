"""A materializer as a real process on real servers, events to feed it, and eyes on what it did."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from kafka import KafkaProducer, TopicPartition
from psycopg import sql

from serverchange.adapters.kafka.clients import make_consumer, make_producer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import Settings
from serverchange.cli.supervised import SUPERVISOR_FD_VARIABLE
from serverchange.events import KAFKA_HEADERS, ChannelTracked, ClusterChanged, ClusterObserved, parse_change
from serverchange.materializer import verify
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES, Topic

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DEADLINE_S = 60.0
MAIN = (
    "from serverchange.adapters.settings import load_settings\n"
    "from serverchange.cli.supervised import end_with_supervisor\n"
    "from serverchange.materializer.main import main\n"
    "end_with_supervisor()\n"
    "main(load_settings())\n"
)
OWNED, _OWNER = os.pipe()
"""Processes that hold the reading end stop when this one is gone, however it went."""
T = TypeVar("T")
_ids = itertools.count(1)


def eventually(look: Callable[[], T], timeout_s: float = DEADLINE_S) -> T:
    """Look until there is something to see; the last look's emptiness is the failure."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s")
        time.sleep(0.05)
    return seen


@dataclass
class Process:
    """One materializer."""

    popen: subprocess.Popen[bytes]
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_text("utf-8").splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in parsed if line["event"] == name]

    @property
    def health(self) -> str:
        started = eventually(lambda: self.events("process.started"))[0]
        return f"http://127.0.0.1:{started['health_port']}"

    def ready(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"{self.health}/readyz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.health}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGCONT)
        self.popen.terminate()
        return self.popen.wait(30)


@dataclass
class World:
    """The servers, topics and database of one test."""

    settings: Settings
    folder: Path
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.producer: KafkaProducer = make_producer(self.settings.kafka, client_id="test")
        self.database = psycopg.connect(self.settings.postgres.dsn.get_secret_value(), autocommit=True)
        self.channel_events = topic_name(self.settings.kafka, CHANNEL_EVENTS)

    def start(self, **environment: str) -> Process:
        log = self.folder / f"materializer-{len(self.processes)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-c", MAIN],
                env={**os.environ, **self.environment(), SUPERVISOR_FD_VARIABLE: str(OWNED), **environment},
                pass_fds=[OWNED],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        process = Process(popen, log)
        self.processes.append(process)
        return process

    def make_tables(self) -> None:
        """Run a worker until it has made and positioned everything, then stop it."""
        worker = self.start()
        eventually(lambda: worker.ready()[0] == 200)
        assert worker.stop() == 0

    def environment(self) -> dict[str, str]:
        return {
            "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
            "SERVERCHANGE_KAFKA_TOPIC_PREFIX": self.settings.kafka.topic_prefix,
            "SERVERCHANGE_KAFKA_PARTITIONS": str(self.settings.kafka.partitions),
            "SERVERCHANGE_POSTGRES_DSN": self.settings.postgres.dsn.get_secret_value(),
            "SERVERCHANGE_PROCESS_STATE_DIR": str(self.folder),
            "SERVERCHANGE_PROCESS_LOG_FORMAT": "json",
        }

    def append(self, key: str | bytes | None, value: bytes | None, partition: int | None = None) -> tuple[int, int]:
        key = key.encode() if isinstance(key, str) else key
        sent = self.producer.send(
            self.channel_events, key=key, value=value, headers=list(KAFKA_HEADERS), partition=partition
        )
        self.producer.flush()
        place = sent.get(timeout=10)
        return place.partition, place.offset

    def track(self, channel: str, *clusters: str) -> None:
        """Track a channel and observe it on each cluster in turn."""
        self.append(channel, tracked(channel))
        for seq, cluster in enumerate(clusters, start=1):
            self.append(channel, observed(channel, cluster, seq))

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(sql.encode(), parameters or None).fetchall()

    def cluster_of(self, channel: str) -> str | None:
        rows = self.rows("SELECT cluster FROM channel_state WHERE channel = %s", channel)
        return rows[0][0] if rows else None

    def ends(self, topic: Topic = CHANNEL_EVENTS) -> dict[int, int]:
        consumer = make_consumer(self.settings.kafka, client_id="test", group=None)
        try:
            name = topic_name(self.settings.kafka, topic)
            places = [TopicPartition(name, one) for one in consumer.partitions_for_topic(name)]
            return {place.partition: end for place, end in consumer.end_offsets(places).items()}
        finally:
            consumer.close()

    def positions(self) -> dict[int, int]:
        return dict(self.rows("SELECT partition, position FROM log_position"))

    def wait_folded(self) -> None:
        """Wait until the tables stand at the log's end."""
        ends = self.ends()
        eventually(lambda: all(self.positions().get(one, -1) >= end for one, end in ends.items()))

    def back_up(self) -> None:
        """Copy the database as it is now; nothing else may be connected to it."""
        self._copy("CREATE DATABASE {backup} TEMPLATE {database}")

    def restore(self) -> None:
        """Put the copy in the database's place."""
        self._copy("DROP DATABASE {database} WITH (FORCE)", "ALTER DATABASE {backup} RENAME TO {database}")

    def lose(self) -> None:
        """Lose the database and put an empty one in its place."""
        self._copy("DROP DATABASE {database} WITH (FORCE)", "CREATE DATABASE {database}")

    def _copy(self, *statements: str) -> None:
        dsn = self.settings.postgres.dsn.get_secret_value()
        name = self.database.info.dbname
        self.database.close()
        names = {"database": sql.Identifier(name), "backup": sql.Identifier(f"{name}_backup")}
        with psycopg.connect(dsn, dbname="postgres", autocommit=True) as administrator:
            for statement in statements:
                administrator.execute(sql.SQL(statement).format(**names))
        self.database = psycopg.connect(dsn, autocommit=True)

    def published(self) -> list[ClusterChanged]:
        """Return what readers of committed records see on cluster-changes, a channel's changes in order."""
        records = verify.read_topic(self.settings.kafka, CLUSTER_CHANGES, None)
        return [parse_change(record.key, record.value) for record in records]

    def prove(self) -> None:
        """Prove that tables, log and published changes agree."""
        report = verify.run(self.settings)
        assert report.ok, report.faults

    def close(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()
        self.producer.close()
        self.database.close()


def tracked(channel: str) -> bytes:
    return ChannelTracked.model_validate(_envelope(channel, {"service": "test"})).to_record()


def observed(channel: str, cluster: str, asked_after: int) -> bytes:
    data = {"cluster": cluster, "asked_after": asked_after, "asked_at": NOW, "answered_at": NOW, "via": "servers"}
    trace = {"traceparent": f"00-{next(_ids):032x}-{1:016x}-01"}
    return ClusterObserved.model_validate(_envelope(channel, data) | trace).to_record()


def _envelope(channel: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"event-{next(_ids)}", "source": "test", "time": NOW, "subject": channel, "data": data}
