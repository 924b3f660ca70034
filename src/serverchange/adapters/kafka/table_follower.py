"""Follows whole topics without a group, on a thread of its own: every process that needs them has a copy.

For `clusters`, `channel-live` and `shard-holdings`: all partitions, from the beginning, for ever; for what is worth
seeing only while it is new, from the newest records on. A consumer that failed is made anew and goes on where the last
one stood, so that no record is told twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kafka import TopicPartition
from kafka.errors import KafkaError

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import Topic

POLL_MS: Final = 100
BATCH_RECORDS_MAX: Final = 2_000
BATCHES_MAX: Final = 4
"""Batches handed over and not dealt with; beyond it the thread waits, and Kafka keeps the rest."""

CHECK_TIMEOUT_MS: Final = 3_000
RESTART_S: Final = (0.5, 3.0)
"""Bounds of the random wait before a consumer that failed is made anew."""


@dataclass(frozen=True, slots=True)
class TableRecord:
    """One record; a key without a value means that the row is gone."""

    topic: Topic
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class TableRecords:
    """Records, in order within a partition; call `taken` once they are dealt with."""

    records: tuple[TableRecord, ...]


@dataclass(frozen=True, slots=True)
class TablesLoaded:
    """All that stood in the topics when the follower began has been handed over. Told once."""


@dataclass(frozen=True, slots=True)
class TablesAway:
    """The brokers did not answer; what is known stays."""

    reason: str


TableEvent: TypeAlias = TableRecords | TablesLoaded | TablesAway


class TableFollower:
    """The thread and its consumer. `deliver` is called on the thread and must not block.

    With `newest` it begins so many records before each partition's end.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[Topic],
        *,
        client_id: str,
        deliver: Callable[[TableEvent], None],
        newest: int | None = None,
    ) -> None:
        self._settings = settings
        self._topics = {topic_name(settings, topic): topic for topic in topics}
        self._client_id = client_id
        self._deliver = deliver
        self._newest = newest
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] | None = None
        self._slots = threading.BoundedSemaphore(BATCHES_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follows {len(topics)} tables", daemon=True)
        self.beat_s = time.monotonic()

    def start(self) -> None:
        """Start the thread; a broker that is not there yet is waited for."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread; blocks for at most `timeout_s`."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def taken(self) -> None:
        """Say that a `TableRecords` was dealt with: the next may come."""
        self._slots.release()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except (KafkaError, OSError) as error:
                self._deliver(TablesAway(f"{type(error).__name__}: {error}"))
            self.beat_s = time.monotonic()
            self._stopping.wait(random.uniform(*RESTART_S))  # noqa: S311  (jitter, no secret)

    def _follow(self) -> None:
        consumer = make_consumer(
            self._settings, client_id=self._client_id, group=None, max_poll_records=BATCH_RECORDS_MAX
        )
        try:
            if not self._place(consumer):
                return
            while not self._stopping.is_set():
                self.beat_s = time.monotonic()
                polled: dict[TopicPartition, list[Any]] = consumer.poll(timeout_ms=POLL_MS)
                self._hand_over(polled)
                self._look_for_the_end(consumer)
        finally:
            consumer.close(autocommit=False, timeout_ms=1_000)

    def _place(self, consumer: Any) -> bool:
        """Take all partitions, each where it was left; false while a topic has not been made yet."""
        places: list[TopicPartition] = []
        for name in self._topics:
            partitions = consumer.partitions_for_topic(name)
            if not partitions:
                self._deliver(TablesAway(f"there is no topic {name}; run: serverchange topics apply"))
                return False
            places += [TopicPartition(name, number) for number in sorted(partitions)]
        consumer.assign(places)
        starts = dict(consumer.beginning_offsets(places, timeout_ms=CHECK_TIMEOUT_MS))
        if self._ends is None:
            self._ends = dict(consumer.end_offsets(places, timeout_ms=CHECK_TIMEOUT_MS))
            if self._newest is not None:
                self._positions = {place: end - self._newest for place, end in self._ends.items()}
        for place, start in starts.items():
            consumer.seek(place, max(start, self._positions.get(place, 0)))
        return True

    def _hand_over(self, polled: dict[TopicPartition, list[Any]]) -> None:
        records = tuple(
            TableRecord(self._topics[place.topic], place.partition, record.offset, record.key, record.value)
            for place, batch in polled.items()
            for record in batch
        )
        if not records:
            return
        while not self._slots.acquire(timeout=POLL_MS / 1000):
            self.beat_s = time.monotonic()
            if self._stopping.is_set():
                return
        self._deliver(TableRecords(records))
        for place, batch in polled.items():
            self._positions[place] = batch[-1].offset + 1

    def _look_for_the_end(self, consumer: Any) -> None:
        if not self._ends:
            return
        # The last offsets may be transaction markers, which are never delivered; only the position tells.
        reached = [place for place, end in self._ends.items() if (consumer.position(place) or 0) >= end]
        for place in reached:
            del self._ends[place]
        if not self._ends:
            self._deliver(TablesLoaded())
