"""Reads the changes between a stream's place and the ring straight from Kafka, for streams that fell behind it.

Each catching-up stream has a consumer and a thread of its own; few run at once, the others wait for their turn. The
pace is the client's: the next portion is fetched when the one before was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.state_api.change_feed import parse_changes
from serverchange.state_api.change_ring import ReceivedChange
from serverchange.state_api.log_watch import BOOTSTRAP_TIMEOUT_MS
from serverchange.topics import CLUSTER_CHANGES
from serverchange.views import ChangePosition

CATCHING_UP_MAX: Final = 4
PORTION_RECORDS: Final = 500
POLL_TIMEOUT_MS: Final = 1_000
SILENT_POLLS_MAX: Final = 10
"""Polls in a row without a record or progress until Kafka counts as away."""


class CatchUp:
    """Gives streams their turns."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._turns = asyncio.Semaphore(CATCHING_UP_MAX)

    async def read(self, since: ChangePosition, until: ChangePosition) -> AsyncIterator[list[ReceivedChange]]:
        """Yield the changes in `since <= offset < until` in portions, each partition's in order.

        Raises:
            KafkaError: Kafka is away; the stream may go on from what it has got.
        """
        async with self._turns:
            loop = asyncio.get_running_loop()
            reader = _RangeReader(self._settings, f"{self._client_id}-catch-up", since, until)
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="catch-up") as thread:
                try:
                    await loop.run_in_executor(thread, reader.open)
                    while (portion := await loop.run_in_executor(thread, reader.next_portion)) is not None:
                        yield portion
                finally:
                    await asyncio.shield(loop.run_in_executor(thread, reader.close))


class _RangeReader:
    """One consumer over one range of every partition (own thread)."""

    def __init__(self, settings: KafkaSettings, client_id: str, since: ChangePosition, until: ChangePosition) -> None:
        self._settings = settings
        self._client_id = client_id
        topic = topic_name(settings, CLUSTER_CHANGES)
        self._left = {
            TopicPartition(topic, partition): (start, end)
            for partition, (start, end) in enumerate(zip(since.offsets, until.offsets, strict=True))
            if start < end
        }
        self._consumer: Any = None

    def open(self) -> None:
        if not self._left:
            return
        self._consumer = make_consumer(
            self._settings,
            client_id=self._client_id,
            group=None,
            bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
            max_poll_records=PORTION_RECORDS,
        )
        self._consumer.assign(list(self._left))
        for partition, (start, _) in self._left.items():
            self._consumer.seek(partition, start)

    def next_portion(self) -> list[ReceivedChange] | None:
        """Return the next changes, possibly none that parse; None once all partitions are read to their ends."""
        for _ in range(SILENT_POLLS_MAX):
            if not self._left:
                return None
            found = self._consumer.poll(timeout_ms=POLL_TIMEOUT_MS)
            changes = []
            for partition, records in found.items():
                _, end = self._left.get(partition, (0, 0))
                changes.extend(parse_changes([record for record in records if record.offset < end]))
            self._drop_done()
            if changes:
                return changes
        raise KafkaError("no records within ten polls")

    def _drop_done(self) -> None:
        """Stop reading partitions whose end is reached; the position also passes markers, which are no records."""
        done = [
            partition
            for partition, (_, end) in self._left.items()
            if (self._consumer.position(partition, timeout_ms=POLL_TIMEOUT_MS) or 0) >= end
        ]
        for partition in done:
            del self._left[partition]
        if done:
            self._consumer.pause(*done)

    def close(self) -> None:
        if self._consumer is not None:
            with suppress(KafkaError):
                self._consumer.close(timeout_ms=1000)
