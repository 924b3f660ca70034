"""Loads partitions at an assignment: their channels and the log position they stand at, as of one instant each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from kafka.errors import KafkaError

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.freshness import load_freshness
from serverchange.adapters.postgres.projection import LogPosition, load_states
from serverchange.adapters.settings import Settings
from serverchange.events import Channel
from serverchange.poller.live_board import read_live
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.channel_state import RULES_VERSION, ChannelState

LOAD_TIMEOUT_S = 120.0
"""Of one statement: a partition of a million channels takes about 10 s."""


@dataclass(frozen=True, slots=True)
class LoadedPartition:
    """All that a poller needs to go on with a partition from `position`."""

    partition: int
    position: int
    states: tuple[ChannelState, ...]
    verified_at: dict[Channel, datetime]
    live: frozenset[Channel]


@dataclass(frozen=True, slots=True)
class RefusedPartition:
    """The tables are not a fold of this log by these rules; the reason says what an operator must do."""

    partition: int
    reason: str


async def load_partitions(
    settings: Settings, partitions: Sequence[int], *, client_id: str
) -> AsyncIterator[LoadedPartition | RefusedPartition]:
    """Yield the partitions one by one: from PostgreSQL over one connection, and who is live from Kafka.

    Each is one snapshot of its channels and its position. A partition that nobody folded begins at offset 0.

    Raises:
        psycopg.Error: PostgreSQL is away, or not migrated.
        kafka.errors.KafkaError: Kafka is away.
    """
    identity = await asyncio.to_thread(topic_id, settings, client_id)
    application = f"{client_id}-load"
    live = await asyncio.to_thread(read_live, settings.kafka, partitions, client_id=application)
    async with await connect(
        settings.postgres, application=application, statement_timeout_s=LOAD_TIMEOUT_S
    ) as connection:
        for partition in partitions:
            states, positions = await load_states(connection, [partition])
            verified_at = await load_freshness(connection, partition)
            found = positions.get(partition)
            reason = None if found is None else _mismatch(found, identity)
            if reason is not None:
                yield RefusedPartition(partition, reason)
                continue
            position = 0 if found is None else found.position
            yield LoadedPartition(partition, position, tuple(states), verified_at, live[partition])


def _mismatch(found: LogPosition, identity: str) -> str | None:
    if found.position == 0:
        return None
    if found.topic_id != identity:
        return f"the tables were folded from topic {found.topic_id}, the log is {identity}: see the materializer"
    if found.rules_version != RULES_VERSION:
        return f"the tables were made by rules {found.rules_version}, these are {RULES_VERSION}: serverchange rebuild"
    return None


def topic_id(settings: Settings, client_id: str) -> str:
    """Ask the brokers for the log's topic id. Blocks; run it on a thread.

    Raises:
        kafka.errors.KafkaError: no broker answered, or there is no such topic.
    """
    name = topic_name(settings.kafka, CHANNEL_EVENTS)
    admin = make_admin(settings.kafka, client_id=f"{client_id}-identity")
    try:
        found = admin.describe_topics([name])
    finally:
        admin.close()
    if not found or found[0]["error_code"]:
        raise KafkaError(f"topic {name} does not exist: serverchange topics apply")
    return str(found[0]["topic_id"])
