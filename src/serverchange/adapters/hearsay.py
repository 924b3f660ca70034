"""Publishes what links hear to `channel-events`: notices and doubts. Never makes the caller wait.

A fact that Kafka does not take is tried again until it is too old to matter; a newer doubt or notice will come where it
does. What waits is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

import uuid_utils

from serverchange.adapters.kafka.publisher import EventPublisher, PublishError
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.tracing import Span, SpanName
from serverchange.events import (
    GROUP_CLUSTER,
    Channel,
    ChannelDoubted,
    Cluster,
    DoubtedData,
    DoubtReason,
    NoticeReason,
    ServerChangeData,
    ServerChangeReceived,
)
from serverchange.topics import CHANNEL_EVENTS

_log = get_logger("hearsay")

WAITING_MAX: Final = 20_000
"""Facts on their way; one of each channel of a large process. Further ones are dropped and logged."""

TRIES_MAX: Final = 5
RETRY_S: Final = 1.0

Published = Callable[[Channel, int, int], None]
"""Told the channel, partition and offset of a doubt once it stands in the log."""


class Hearsay:
    """What one process hears, on its way to the log. Use it as an async context manager.

    Args:
        publisher: of this process.
        source: CloudEvents source, for example ``reconnector/shard-1``.
        known: clusters that exist, as far as the process knows: a target outside is no target.
        on_doubt: called when a doubt stands in the log.
    """

    def __init__(
        self,
        publisher: EventPublisher,
        *,
        source: str,
        known: Callable[[], frozenset[Cluster]],
        on_doubt: Published | None = None,
    ) -> None:
        self._publisher = publisher
        self._source = source
        self._known = known
        self._on_doubt = on_doubt
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Hearsay:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def notice(
        self, channel: Channel, heard_on: Cluster, target: Cluster | None, version: int, *, joining: bool
    ) -> None:
        """Publish that the server at `heard_on` says the channel is not there."""
        span = Span(
            SpanName.NOTICE_HEARD,
            parent=None,
            attributes={"channel": channel, "heard_on": heard_on, "target": target, "believed_version": version},
        )
        believable = target in self._known() and target not in (heard_on, GROUP_CLUSTER)
        event = ServerChangeReceived(
            id=str(uuid_utils.uuid7()),
            source=self._source,
            time=datetime.now(UTC),
            traceparent=span.traceparent,
            subject=channel,
            data=ServerChangeData(
                heard_on=heard_on,
                target=target if believable else None,
                believed_version=version,
                reason=NoticeReason.JOIN_REFUSED if joining else NoticeReason.MOVED,
            ),
        )
        _log.info(LogEvent.NOTICE_HEARD, channel=channel, heard_on=heard_on, target=target, version=version)
        self._send(channel, event.to_record(), span, None)

    def doubt(self, channel: Channel, reason: DoubtReason) -> None:
        """Publish that a lookup should be asked for this channel."""
        span = Span(SpanName.DOUBT_RAISED, parent=None, attributes={"channel": channel, "reason": reason.value})
        event = ChannelDoubted(
            id=str(uuid_utils.uuid7()),
            source=self._source,
            time=datetime.now(UTC),
            traceparent=span.traceparent,
            subject=channel,
            data=DoubtedData(reason=reason),
        )
        self._send(channel, event.to_record(), span, self._on_doubt)

    def _send(self, channel: Channel, record: bytes, span: Span, then: Published | None) -> None:
        if len(self._tasks) >= WAITING_MAX:
            span.end(failure="too many facts wait for Kafka")
            _log.error(LogEvent.LINES_DROPPED, reason="too many facts wait for Kafka", channel=channel)
            return
        task = asyncio.get_running_loop().create_task(self._publish(channel, record, span, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, channel: Channel, record: bytes, span: Span, then: Published | None) -> None:
        for _ in range(TRIES_MAX):
            try:
                partition, offset = await self._publisher.publish(CHANNEL_EVENTS, channel, record)
            except PublishError as error:
                _log.warning(LogEvent.KAFKA_LOST, reason=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            span.end()
            if then is not None:
                then(channel, partition, offset)
            return
        span.end(failure="Kafka did not take it")
