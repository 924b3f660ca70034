"""Carries received lines to `chat-lines`: links never wait for Kafka, and memory is bounded.

With Kafka away the newest `BUFFER_BYTES_MAX` are kept; the oldest are dropped and counted. One batch is under way at a
time, so that the lines of a channel stay in order.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from datetime import UTC, datetime
from typing import Final

import uuid_utils

from serverchange.adapters import metrics
from serverchange.adapters.kafka.publisher import EventPublisher, PublishError
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.events import Channel, ChatLine, ChatLineData, Cluster
from serverchange.topics import CHAT_LINES

_log = get_logger("chat_writer")

BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024
"""About 80,000 lines: a quarter of a minute of a large fleet's chat, or ten minutes of a small one's."""

BATCH_LINES_MAX: Final = 1_000
RETRY_S: Final = 1.0
LOG_DROPPED_EVERY_S: Final = 10.0


class ChatWriter:
    """One process's lines on their way. `run` it in a task; `write` returns at once.

    Attributes:
        dropped: lines dropped since the start.
    """

    def __init__(self, publisher: EventPublisher, *, shard: str) -> None:
        self._publisher = publisher
        self._shard = shard
        self._lines: deque[tuple[Channel, bytes]] = deque()
        self._bytes = 0
        self._waiting = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._logged_at = 0.0
        self.dropped = 0

    def write(self, channel: Channel, raw: bytes, cluster: Cluster) -> None:
        """Take one line, as its server sent it."""
        record = chat_record(channel, raw, cluster, self._shard, datetime.now(UTC))
        self._lines.append((channel, record))
        self._bytes += len(record)
        while self._bytes > BUFFER_BYTES_MAX:
            self._drop_oldest()
        self._idle.clear()
        self._waiting.set()

    async def run(self) -> None:
        """Publish what comes until cancelled."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._lines:
                await self._publish_batch()
            self._idle.set()

    async def flush(self) -> None:
        """Return once nothing waits any more; bound it with a timeout."""
        await self._idle.wait()

    async def _publish_batch(self) -> None:
        batch = [self._lines.popleft() for _ in range(min(BATCH_LINES_MAX, len(self._lines)))]
        size = sum(len(record) for _, record in batch)
        self._bytes -= size
        try:
            await self._publisher.publish_all(CHAT_LINES, batch)
        except PublishError as error:
            _log.warning(LogEvent.KAFKA_LOST, reason=str(error))
            # Some may have been taken: then they stand twice, and readers drop duplicates by message id.
            self._lines.extendleft(reversed(batch))
            self._bytes += size
            await asyncio.sleep(RETRY_S)

    def _drop_oldest(self) -> None:
        _, record = self._lines.popleft()
        self._bytes -= len(record)
        self.dropped += 1
        metrics.LINES_RECEIVED.labels(outcome="dropped").inc()
        now = asyncio.get_running_loop().time()
        if now >= self._logged_at + LOG_DROPPED_EVERY_S:
            self._logged_at = now
            _log.error(LogEvent.LINES_DROPPED, reason="Kafka does not take them", dropped=self.dropped)


def chat_record(channel: Channel, raw: bytes, cluster: Cluster, shard: str, received_at: datetime) -> bytes:
    """Return the event of one line: as text where it is UTF-8, else as base64, byte for byte either way."""
    try:
        data = ChatLineData(line=raw.decode(), cluster=cluster, shard=shard, received_at=received_at)
    except UnicodeDecodeError:
        encoded = base64.b64encode(raw).decode()
        data = ChatLineData(line_base64=encoded, cluster=cluster, shard=shard, received_at=received_at)
    event = ChatLine(
        id=str(uuid_utils.uuid7()), source=f"reconnector/{shard}", time=received_at, subject=channel, data=data
    )
    return event.to_record()
