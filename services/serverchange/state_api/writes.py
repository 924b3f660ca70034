"""Appends what a service or an operator says to `channel-events`, and returns where it stands.

A write is acknowledged by Kafka before it is answered. Where Kafka does not answer in time the client is told 503:
the events may still arrive, and saying them again does no harm (tracking is idempotent).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NewType

import uuid_utils

from serverchange.adapters.kafka.publisher import EventPublisher, PublishError
from serverchange.events import (
    Channel,
    ChannelEvent,
    ChannelPinned,
    ChannelTracked,
    ChannelUnpinned,
    ChannelUntracked,
    PinnedData,
    TrackedData,
    UnpinnedData,
    UntrackedData,
)
from serverchange.state_api.problems import unavailable
from serverchange.topics import CHANNEL_EVENTS

Service = NewType("Service", str)
"""The name of the token that a write came with."""

WRITE_NAMES_MAX: Final = 10_000
"""Channels in one write: as many as the publisher keeps in flight, acknowledged within a second."""

WRITE_TIMEOUT_S: Final = 8.0

SOURCE: Final = "serverchange/state-api"


class Writer:
    """Appends events; `publisher` is the process's own."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher

    async def track(self, channels: Sequence[Channel], data: TrackedData) -> dict[int, int]:
        """Append that a service wants `channels`; returns the highest offset of each partition written to.

        Raises:
            ApiProblem: 503: Kafka did not acknowledge in time.
        """
        return await self._append([ChannelTracked(**_attributes(channel), data=data) for channel in channels])

    async def untrack(self, channels: Sequence[Channel], service: Service) -> dict[int, int]:
        """Append that a service no longer wants `channels`."""
        data = UntrackedData(service=service)
        return await self._append([ChannelUntracked(**_attributes(channel), data=data) for channel in channels])

    async def pin(self, channel: Channel, data: PinnedData) -> dict[int, int]:
        """Append an operator's word on where `channel` is."""
        return await self._append([ChannelPinned(**_attributes(channel), data=data)])

    async def unpin(self, channel: Channel) -> dict[int, int]:
        """Append that the operator takes the word back."""
        return await self._append([ChannelUnpinned(**_attributes(channel), data=UnpinnedData())])

    async def _append(self, events: Sequence[ChannelEvent]) -> dict[int, int]:
        records = [(event.subject, event.to_record()) for event in events]
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                places = await self._publisher.publish_all(CHANNEL_EVENTS, records)
        except (PublishError, TimeoutError) as error:
            raise unavailable("Kafka did not acknowledge in time; saying it again does no harm") from error
        position: dict[int, int] = {}
        for partition, offset in places:
            position[partition] = max(offset, position.get(partition, -1))
        return position


def _attributes(channel: Channel) -> dict[str, object]:
    return {"id": str(uuid_utils.uuid7()), "source": SOURCE, "time": datetime.now(UTC), "subject": channel}
