"""Servers, workers and a load: what the nemesis torments.

Workers are real processes that are started again whenever they end, as a supervisor would; a worker may be started
with a fault point or a planted bug.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from fault_proxy import TcpProxy
from kafka.errors import KafkaError

from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.postgres.connections import connect_blocking
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.settings import KafkaSettings, PostgresSettings, ProcessSettings, Settings
from serverchange.cli.supervised import SUPERVISOR_FD_VARIABLE
from serverchange.embedded.stack import EmbeddedStack
from serverchange.events import (
    KAFKA_HEADERS,
    ChannelDoubted,
    ChannelTracked,
    ChannelUntracked,
    ClusterObserved,
    ServerChangeReceived,
)
from serverchange.materializer.fault_points import FAULT_POINT_VARIABLE
from serverchange.topics import CHANNEL_EVENTS

PARTITIONS = 6
CHANNELS = 120
CLUSTERS = ("main", "event", "aws")
POISON = (b"poison", b"", b"{}", b'{"specversion":"1.0"}', b"\x00\xff", None)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
RESPAWN_S = 0.3
OWNED, _OWNER = os.pipe()
"""Workers that hold the reading end stop when this process is gone, however it went."""
PLANTED = str(Path(__file__).with_name("planted_bugs.py"))


@dataclass
class Worker:
    """One place for a worker: its process is started again whenever it ends, until it is retired."""

    number: int
    popen: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    paused: bool = False
    starts: int = 0


class Arena:
    """Everything of one run, below one folder."""

    def __init__(self, folder: Path, seed: int, *, bugs: Sequence[str] = (), kafka_group: str = "") -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.bugs = tuple(bugs)
        self.stack = EmbeddedStack(folder / "stack")
        self.stack.start()
        self.proxy = TcpProxy(self.stack.postgres.port)
        direct = self.stack.postgres.dsn
        self.settings = Settings(
            kafka=KafkaSettings(
                bootstrap_servers=self.stack.kafka.bootstrap_servers,
                partitions=PARTITIONS,
                topic_prefix=f"f{kafka_group}{uuid.uuid4().hex[:6]}.",
            ),
            postgres=PostgresSettings.model_validate({"dsn": direct}),
            process=ProcessSettings(name="faults", state_dir=folder / "state"),
        )
        self.worker_dsn = direct.replace(str(self.stack.postgres.port), str(self.proxy.port))
        apply_topics(self.settings.kafka)
        with connect_blocking(self.settings.postgres, application="faults") as connection:
            migrate(connection)
        self.workers: dict[int, Worker] = {}
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep_workers, name="keeper", daemon=True)
        self._keeper.start()

    def add_worker(self, *, fault_point: str = "", bugs: Sequence[str] | None = None) -> Worker:
        """Start a worker and keep one running in its place."""
        worker = Worker(next(self._numbers))
        self._spawn(worker, fault_point, bugs)
        self.workers[worker.number] = worker
        return worker

    def _spawn(self, worker: Worker, fault_point: str = "", bugs: Sequence[str] | None = None) -> None:
        environment = {
            **os.environ,
            "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
            "SERVERCHANGE_KAFKA_TOPIC_PREFIX": self.settings.kafka.topic_prefix,
            "SERVERCHANGE_KAFKA_PARTITIONS": str(PARTITIONS),
            "SERVERCHANGE_POSTGRES_DSN": self.worker_dsn,
            "SERVERCHANGE_PROCESS_STATE_DIR": str(self.folder / f"state-{worker.number}"),
            "SERVERCHANGE_PROCESS_LOG_FORMAT": "json",
            "SERVERCHANGE_PROCESS_NAME": f"worker-{worker.number}",
            # Small fetches, so that a run has many transactions.
            "SERVERCHANGE_MATERIALIZER_FETCH_RECORDS_MAX": "200",
            "SERVERCHANGE_TEST_PLANTED_BUGS": ",".join(self.bugs if bugs is None else bugs),
            FAULT_POINT_VARIABLE: fault_point,
            SUPERVISOR_FD_VARIABLE: str(OWNED),
        }
        with (self.folder / f"worker-{worker.number}.log").open("ab") as log:
            worker.popen = subprocess.Popen(
                [sys.executable, PLANTED],
                env=environment,
                pass_fds=[OWNED],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        worker.starts += 1
        worker.paused = False

    def _keep_workers(self) -> None:
        while not self._stopping.wait(RESPAWN_S):
            for worker in list(self.workers.values()):
                if worker.wanted and worker.popen is not None and worker.popen.poll() is not None:
                    self._spawn(worker)

    def signal(self, worker: Worker, number: signal.Signals) -> None:
        """Send a signal, if the process still lives."""
        if worker.popen is not None and worker.popen.poll() is None:
            worker.popen.send_signal(number)
            if number in {signal.SIGSTOP, signal.SIGCONT}:
                worker.paused = number == signal.SIGSTOP

    def retire(self, worker: Worker) -> None:
        """End a worker for good, by SIGTERM."""
        worker.wanted = False
        self.signal(worker, signal.SIGCONT)
        self.signal(worker, signal.SIGTERM)
        if worker.popen is not None:
            try:
                worker.popen.wait(15)
            except subprocess.TimeoutExpired:
                worker.popen.kill()
                worker.popen.wait()
        self.workers.pop(worker.number, None)

    def resume_all(self) -> None:
        """Wake every paused worker."""
        for worker in list(self.workers.values()):
            self.signal(worker, signal.SIGCONT)

    def database(self) -> psycopg.Connection[Any]:
        """Return a direct connection, past the proxy."""
        return connect_blocking(self.settings.postgres, application="faults")

    def close(self) -> None:
        """End everything."""
        self._stopping.set()
        self._keeper.join(5)
        for worker in list(self.workers.values()):
            worker.wanted = False
            if worker.popen is not None and worker.popen.poll() is None:
                worker.popen.kill()
                worker.popen.wait()
        self.proxy.close()
        self.stack.stop()


@dataclass
class Load:
    """Appends events, poison and repeats until it is stopped; survives the broker's absence.

    It guesses `asked_after` from how many records it wrote for a channel, so most lookups count, some are stale and
    some impossible, as in life.
    """

    arena: Arena
    per_s: float
    written: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _seqs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.arena.chance.random())
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Start appending."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, once everything written is acknowledged or given up."""
        self._stopping.set()
        self._thread.join(150)

    def _run(self) -> None:
        producer = make_producer(self.arena.settings.kafka, client_id="load")
        topic = topic_name(self.arena.settings.kafka, CHANNEL_EVENTS)
        due = time.monotonic()
        while not self._stopping.is_set():
            key, value = self._next()
            try:
                producer.send(topic, key=key, value=value, headers=list(KAFKA_HEADERS))
                self.written += 1
            except KafkaError:
                self._stopping.wait(0.2)
            due = max(due + 1 / self.per_s, time.monotonic() - 1)
            self._stopping.wait(max(0.0, due - time.monotonic()))
        producer.flush(timeout=120)
        producer.close(timeout=5)

    def _next(self) -> tuple[bytes, bytes | None]:
        channel = f"c{self.chance.randrange(CHANNELS)}"
        seq = self._seqs.get(channel, 0)
        self._seqs[channel] = seq + 1
        if seq == 0:
            return channel.encode(), _event(ChannelTracked, channel, service="load", labels=("staff",))
        roll = self.chance.random()
        if roll < 0.03:
            return channel.encode(), self.chance.choice(POISON)
        return channel.encode(), self._sound(channel, seq, roll)

    def _sound(self, channel: str, seq: int, roll: float) -> bytes:
        if roll < 0.10:
            heard_on, target = self.chance.choice(CLUSTERS), self.chance.choice((None, *CLUSTERS))
            version = self.chance.randrange(6)
            return _event(
                ServerChangeReceived,
                channel,
                heard_on=heard_on,
                target=target,
                believed_version=version,
                reason="moved",
            )
        if roll < 0.12:
            return _event(ChannelDoubted, channel, reason="silent")
        if roll < 0.13:
            return _event(ChannelUntracked, channel, service="load")
        if roll < 0.16:
            labels = self.chance.choice(((), ("staff",), ("partner",)))
            return _event(ChannelTracked, channel, service="load", labels=labels)
        behind = self.chance.choice((0, 0, 0, 0, 1, 2, 5, -3))
        return _event(
            ClusterObserved,
            channel,
            cluster=self.chance.choice(CLUSTERS),
            asked_after=max(0, seq - behind),
            asked_at=NOW,
            answered_at=NOW,
            via="servers",
        )


def _event(model: type[Any], channel: str, **data: Any) -> bytes:
    event = model.model_validate(
        {"id": str(uuid.uuid4()), "source": "load", "time": NOW, "subject": channel, "data": data}
    )
    encoded: bytes = event.to_record()
    return encoded
