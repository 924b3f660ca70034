"""Publishes events from asyncio through kafka-python: `publish` returns once Kafka acknowledged.

kafka-python's `send` may block (metadata, a full buffer), so it runs on one thread of its own; acknowledgements come
back into the event loop. In-flight events are bounded: beyond `IN_FLIGHT_MAX` callers wait, which is the
back-pressure of every writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


class EventPublisher:
    """One idempotent producer for one process. Use as an async context manager, or call `close`."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-producer")
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._producer: Any = None

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
                metadata = await self._send(topic_name(self._settings, topic), key.encode(), value)
            finally:
                metrics.EVENTS_UNPUBLISHED.dec()
        metrics.EVENTS_PUBLISHED.labels(topic=topic.name).inc()
        return metadata

    async def publish_all(self, topic: Topic, records: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Append many (key, value) records; returns their places in the order given.

        Raises:
            PublishError: one of them was not acknowledged (others may have been: publishing is at least once).
        """
        return list(await asyncio.gather(*(self.publish(topic, key, value) for key, value in records)))

    async def _send(self, name: str, key: bytes, value: bytes) -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[tuple[int, int]] = loop.create_future()

        def settle(metadata: Any, error: BaseException | None) -> None:
            if acknowledged.done():
                return
            if error is None:
                acknowledged.set_result((metadata.partition, metadata.offset))
            else:
                acknowledged.set_exception(PublishError(f"{name}: {error}"))

        def send() -> None:
            if self._producer is None:
                self._producer = make_producer(self._settings, client_id=self._client_id)
            future = self._producer.send(name, key=key, value=value, headers=list(KAFKA_HEADERS))
            future.add_callback(lambda metadata: loop.call_soon_threadsafe(settle, metadata, None))
            future.add_errback(lambda error: loop.call_soon_threadsafe(settle, None, error))

        try:
            await loop.run_in_executor(self._thread, send)
        except Exception as error:
            raise PublishError(f"{name}: {error}") from error
        return await acknowledged

    async def close(self) -> None:
        """Flush what was handed over and close the producer, within `CLOSE_TIMEOUT_S`."""
        loop = asyncio.get_running_loop()

        def close() -> None:
            if self._producer is not None:
                self._producer.close(timeout=CLOSE_TIMEOUT_S)

        await loop.run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)
