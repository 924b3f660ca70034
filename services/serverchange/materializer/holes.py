"""Accepts that records were deleted before they were folded: an operator's decision, and the only way past them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.projection import HoleRow
from serverchange.adapters.settings import Settings
from serverchange.materializer.log_matching import LogReader
from serverchange.topics import CHANNEL_EVENTS


class NoHoleError(Exception):
    """There is nothing to accept: the log still has the record at the position, or the log is not the one folded."""


def accept_hole(settings: Settings, partition: int) -> HoleRow:
    """Move the position of `partition` behind the records that were deleted unread, and note the loss.

    A running worker positions itself anew within ten seconds.

    Raises:
        NoHoleError: nothing was deleted at the position, or the topic is another one: `rebuild` is for that.
    """
    return asyncio.run(_accept(settings, partition))


async def _accept(settings: Settings, partition: int) -> HoleRow:
    reader = LogReader(settings.kafka, topic_name(settings.kafka, CHANNEL_EVENTS), client_id="serverchange-hole")
    try:
        topic = await reader.identity()
        ends = (await reader.ends([partition]))[partition]
    finally:
        await reader.close()
    application = "serverchange accept-hole"
    async with await connect(settings.postgres, application=application) as connection, connection.transaction():
        position = (await projection.lock_positions(connection, [partition])).get(partition)
        if position is None or position.topic_id != topic.topic_id:
            raise NoHoleError(f"partition {partition} of this topic was never folded; see serverchange rebuild")
        if ends.low <= position.position:
            raise NoHoleError(
                f"nothing is missing: partition {partition} stands at {position.position}, "
                f"and the log has every record from {ends.low} on"
            )
        hole = HoleRow(partition, position.position, ends.low, "accepted")
        await projection.store_hole(connection, hole, datetime.now(UTC))
        await projection.store_positions(connection, [(partition, ends.low, None, None, position.appended_ms)])
    return hole
