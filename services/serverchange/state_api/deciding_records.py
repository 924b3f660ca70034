"""Reads single records of `channel-events`: what an event that decided a change said, word for word.

The log is kept for ever, so a change of years ago can still be explained. One consumer on a thread of its own serves
one page at a time; while Kafka is away the pages come without the words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.state_api.log_watch import BOOTSTRAP_TIMEOUT_MS
from serverchange.topics import CHANNEL_EVENTS

RECORDS_MAX: Final = 20
"""Records of one page: each is a fetch of its own, some 5 ms."""

PAGE_TIMEOUT_S: Final = 3.0
POLL_TIMEOUT_MS: Final = 500

Place = tuple[int, int]
"""Partition and offset."""


class DecidingRecords:
    """The reader. `close` it in the end."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._settings = settings
        self._client_id = f"{client_id}-records"
        self._topic = topic_name(settings, CHANNEL_EVENTS)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deciding-records")
        self._consumer: Any = None

    async def fetch(self, places: Collection[Place]) -> dict[Place, dict[str, object]]:
        """Return the events at `places`; what could not be read in time, or is no JSON object, is left out."""
        found: dict[Place, dict[str, object]] = {}
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + PAGE_TIMEOUT_S
        for place in sorted(places):
            left_s = deadline_s - loop.time()
            if left_s <= 0:
                break
            reading = loop.run_in_executor(self._thread, self._read, place)
            done, _ = await asyncio.wait([reading], timeout=left_s)
            if done and (event := reading.result()) is not None:
                found[place] = event
        return found

    async def close(self) -> None:
        """Close the connection, after the read under way."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown(wait=False)

    def _read(self, place: Place) -> dict[str, object] | None:
        try:
            value = self._value_at(*place)
        except (KafkaError, OSError):
            self._drop()
            return None
        try:
            event = json.loads(value or b"")
        except ValueError:
            return None
        return event if isinstance(event, dict) else None

    def _value_at(self, partition: int, offset: int) -> bytes | None:
        if self._consumer is None:
            self._consumer = make_consumer(
                self._settings,
                client_id=self._client_id,
                group=None,
                bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
                max_partition_fetch_bytes=131_072,
            )
        at = TopicPartition(self._topic, partition)
        self._consumer.assign([at])
        self._consumer.seek(at, offset)
        for records in self._consumer.poll(timeout_ms=POLL_TIMEOUT_MS, max_records=1).values():
            if records[0].offset == offset:
                value: bytes | None = records[0].value
                return value
        return None

    def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(KafkaError):
                consumer.close(timeout_ms=500)
