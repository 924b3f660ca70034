"""Tells `handovers` how each handover ended, for people who watch; links and notices never wait for it.

A report that Kafka does not take is dropped: the log and the metrics have every handover, too. First joins are not
told: no side was left, and a start has thousands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Final

import uuid_utils
from kafka.errors import KafkaError

from serverchange.adapters.kafka.publisher import EventPublisher, PublishError
from serverchange.adapters.kafka.topics import topic_exists
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import Channel, HandoverData, HandoverEnded
from serverchange.topics import HANDOVERS
from serverchange.tracker.handover_words import Cause, Record

_log = get_logger("handover_reports")

REPORTS_MAX: Final = 10_000
"""Reports on their way, about 5 MB: what the JOIN budget of a verified account allows in 50 s. The oldest go first."""

BATCH_MAX: Final = 500
RETRY_S: Final = 5.0


class HandoverReports:
    """One shard's reports on their way. `run` it in a task; `write` returns at once."""

    def __init__(self, settings: KafkaSettings, publisher: EventPublisher, *, shard: str) -> None:
        self._settings = settings
        self._publisher = publisher
        self._shard = shard
        self._waiting: deque[tuple[Channel, bytes]] = deque(maxlen=REPORTS_MAX)
        self._arrived = asyncio.Event()

    def write(self, channel: Channel, record: Record) -> None:
        """Take the record of a handover that ends now."""
        if record.cause is Cause.FIRST_JOIN:
            return
        self._waiting.append((channel, handover_report(channel, record, self._shard, datetime.now(UTC)).to_record()))
        self._arrived.set()

    async def run(self) -> None:
        """Publish what comes until cancelled; without the topic nothing is told."""
        while not await self._topic_found():  # noqa: ASYNC110  (an operator makes it: there is no event to await)
            await asyncio.sleep(RETRY_S)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
                try:
                    await self._publisher.publish_all(HANDOVERS, batch)
                except PublishError as error:
                    _log.warning(LogEvent.KAFKA_LOST, reason=f"{len(batch)} reports of handovers dropped: {error}")

    async def _topic_found(self) -> bool:
        client_id = f"reconnector-{self._shard}-topics"
        try:
            found = await asyncio.to_thread(topic_exists, self._settings, HANDOVERS, client_id=client_id)
        except KafkaError as error:
            _log.warning(LogEvent.KAFKA_LOST, reason=str(error))
            return False
        if not found:
            _log.warning(LogEvent.REPORTS_HELD, reason=f"no topic {HANDOVERS.name}: serverchange topics apply")
        return found


def handover_report(channel: Channel, record: Record, shard: str, ended_at: datetime) -> HandoverEnded:
    """Return the event of a handover that ended."""

    def since_begun(at: float | None) -> float | None:
        return None if at is None else round(max(0.0, at - record.begun_at), 3)

    return HandoverEnded(
        id=str(uuid_utils.uuid7()),
        source=f"reconnector/{shard}",
        time=ended_at,
        subject=channel,
        data=HandoverData(
            cause=record.cause,
            outcome=record.outcome,
            source=record.source,
            target=record.target,
            shard=shard,
            tries=record.tries,
            sent_s=since_begun(record.sent_at),
            confirmed_s=since_begun(record.confirmed_at),
            ended_s=round(max(0.0, record.ended_at - record.begun_at), 3),
        ),
    )
