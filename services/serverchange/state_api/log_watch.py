"""Asks Kafka, on a thread of its own, where the topics end: how far the tables are behind, which resumes are fair.

kafka-python's calls block, some for long while no broker answers; the event loop only ever gets values. What could not
be learned in time is None, never an old figure.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError

from serverchange.adapters.kafka.clients import make_admin, make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.settings import KafkaSettings
from serverchange.client.kafka_topics import DAY_MS, RESUME_DAYS
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES

_log = get_logger("log_watch")

INTERVAL_S: Final = 0.5
ASK_TIMEOUT_MS: Final = 2_000
BOOTSTRAP_TIMEOUT_MS: Final = 3_000
RETRY_S: Final = 1.0

IDENTITY_INTERVAL_S: Final = 10.0
"""How often the id of `cluster-changes` is asked for: a re-created topic is rare and loses nothing by 10 s."""

RESUME_INTERVAL_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class LogEnds:
    """What Kafka said; `asked_at` is from before the question.

    Attributes:
        events: the end of each partition of `channel-events`.
        changes: the end of each partition of `cluster-changes`.
        changes_topic_id: its id.
        resumable: the oldest offset of each of its partitions from which a reader may resume.
    """

    asked_at: datetime
    asked_at_s: float
    events: Mapping[int, int]
    changes: Mapping[int, int]
    changes_topic_id: str
    resumable: Mapping[int, int]


class LogWatch:
    """The thread. `told` is called in the event loop after each question: with the answer, or None for no answer."""

    def __init__(self, settings: KafkaSettings, *, client_id: str, told: Callable[[LogEnds | None], None]) -> None:
        self._settings = settings
        self._client_id = client_id
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-watch", daemon=True)
        self._away = False

    def start(self) -> None:
        """Start asking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking; the thread ends by itself and need not be waited for."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch()
            except (KafkaError, OSError, RuntimeError, ValueError) as error:
                self._tell(None)
                if not self._away:
                    _log.warning(LogEvent.KAFKA_LOST, reason=f"{type(error).__name__}: {error}")
                self._away = True
            self._stopping.wait(RETRY_S)

    def _watch(self) -> None:
        consumer = make_consumer(
            self._settings,
            client_id=f"{self._client_id}-watch",
            group=None,
            bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
        )
        try:
            question = _Question(self._settings, consumer, f"{self._client_id}-watch")
            while not self._stopping.is_set():
                self._tell(question.ask())
                if self._away:
                    _log.info(LogEvent.KAFKA_FOUND)
                self._away = False
                self._stopping.wait(INTERVAL_S)
        finally:
            with suppress(KafkaError):
                consumer.close(timeout_ms=1000)

    def _tell(self, ends: LogEnds | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._told, ends)


class _Question:
    """One consumer's repeated question, and what is asked for only now and then."""

    def __init__(self, settings: KafkaSettings, consumer: Any, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._consumer = consumer
        self._events = self._partitions(topic_name(settings, CHANNEL_EVENTS))
        self._changes = self._partitions(topic_name(settings, CLUSTER_CHANGES))
        self._topic_id = ""
        self._identified_at_s = float("-inf")
        self._resumable: dict[int, int] = {}
        self._resumable_at_s = float("-inf")

    def _partitions(self, topic: str) -> list[TopicPartition]:
        found = self._consumer.partitions_for_topic(topic)
        if not found:
            raise RuntimeError(f"topic {topic} does not exist: serverchange topics apply")
        return [TopicPartition(topic, partition) for partition in sorted(found)]

    def ask(self) -> LogEnds:
        asked_at, asked_at_s = datetime.now(UTC), time.monotonic()
        if asked_at_s - self._identified_at_s >= IDENTITY_INTERVAL_S:
            self._topic_id = fetch_topic_id(self._settings, self._changes[0].topic, client_id=self._client_id)
            self._identified_at_s = asked_at_s
        ends = self._consumer.end_offsets([*self._events, *self._changes], timeout_ms=ASK_TIMEOUT_MS)
        changes = {partition.partition: ends[partition] for partition in self._changes}
        if asked_at_s - self._resumable_at_s >= RESUME_INTERVAL_S:
            self._resumable = self._ask_resumable(asked_at, changes)
            self._resumable_at_s = asked_at_s
        events = {partition.partition: ends[partition] for partition in self._events}
        return LogEnds(asked_at, asked_at_s, events, changes, self._topic_id, self._resumable)

    def _ask_resumable(self, now: datetime, ends: Mapping[int, int]) -> dict[int, int]:
        oldest_ms = round(now.timestamp() * 1000) - RESUME_DAYS * DAY_MS
        found = self._consumer.offsets_for_times(dict.fromkeys(self._changes, oldest_ms), timeout_ms=ASK_TIMEOUT_MS)
        return {
            partition.partition: ends[partition.partition] if place is None else place.offset
            for partition, place in found.items()
        }


def fetch_topic_id(settings: KafkaSettings, topic: str, *, client_id: str) -> str:
    """Return a topic's id (blocking; for threads).

    Raises:
        KafkaError: no broker answered, or the topic does not exist.
    """
    admin = make_admin(settings, client_id=client_id)
    try:
        return str(admin.describe_topics([topic])[0]["topic_id"])
    finally:
        admin.close()
