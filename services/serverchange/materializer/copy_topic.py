"""Copies the log into topics with another number of partitions: the way to grow, since keys must keep their order.

Order a key and append times are kept: the copy takes `CreateTime` while it is written, with the original's times, and
`LogAppendTime` afterwards. Records on a partition that is not their key's home are left out: they are dead letters of
the original and were never folded. Stop all writers first; then start everything with the new prefix and rebuild.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from serverchange.adapters.kafka.clients import make_admin, make_consumer, make_producer
from serverchange.adapters.kafka.log_identity import home_partition
from serverchange.adapters.kafka.topics import apply_topics, plan_topics, topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CHANNEL_EVENTS

POLL_MS: Final = 1_000
STANDSTILL_S: Final = 30.0
FLUSH_EVERY: Final = 10_000
"""Records between two flushes: bounds what an error can leave half written."""


class CopyError(Exception):
    """The copy cannot be made or finished; the message says what to do. Delete the new topics before another try."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied: `misplaced` records stood on a partition that is not their key's home and were left out."""

    records: int
    misplaced: int
    source: str
    target: str
    partitions: int


def run(
    settings: KafkaSettings,
    *,
    to_prefix: str,
    partitions: int,
    progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Make the topics under `to_prefix` with `partitions` partitions and copy the log into them.

    Raises:
        CopyError: the target exists, the prefix is the same, or Kafka stopped answering.
    """
    target = settings.model_copy(update={"topic_prefix": to_prefix, "partitions": partitions})
    source_name, target_name = topic_name(settings, CHANNEL_EVENTS), topic_name(target, CHANNEL_EVENTS)
    if source_name == target_name:
        raise CopyError("the new prefix is the old one; choose another, such as v2.")
    if plan_topics(target, [CHANNEL_EVENTS])[0].action != "create":
        raise CopyError(f"topic {target_name} exists already; choose another prefix, or delete it first")
    apply_topics(target)
    _set_timestamps(target, target_name, "CreateTime")
    copied, misplaced = _copy(settings, source_name, target, target_name, progress)
    _set_timestamps(target, target_name, "LogAppendTime")
    return CopyReport(copied, misplaced, source_name, target_name, partitions)


def _set_timestamps(settings: KafkaSettings, topic: str, kind: str) -> None:
    admin = make_admin(settings, client_id="serverchange-copy")
    try:
        config = {**dict(CHANNEL_EVENTS.config), "message.timestamp.type": kind}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])
    finally:
        admin.close()


def _copy(
    settings: KafkaSettings,
    source: str,
    target: KafkaSettings,
    target_name: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, int]:
    consumer = make_consumer(settings, client_id="serverchange-copy", group=None)
    producer = make_producer(target, client_id="serverchange-copy")
    copied = misplaced = 0
    try:
        places = [TopicPartition(source, one) for one in sorted(consumer.partitions_for_topic(source) or ())]
        ends = consumer.end_offsets(places)
        total = sum(ends.values())
        for place in places:
            for record in _read(consumer, place, ends[place]):
                if record.key is not None and home_partition(record.key, len(places)) != place.partition:
                    misplaced += 1
                    continue
                _send(producer, target_name, record, target.partitions)
                copied += 1
                if copied % FLUSH_EVERY == 0:
                    producer.flush()
                    if progress is not None:
                        progress(copied, total)
        producer.flush()
    finally:
        producer.close()
        consumer.close()
    return copied, misplaced


def _send(producer: Any, topic: str, record: Any, partitions: int) -> None:
    home = record.partition % partitions if record.key is None else home_partition(record.key, partitions)
    producer.send(
        topic,
        key=record.key,
        value=record.value,
        headers=list(record.headers),
        partition=home,
        timestamp_ms=record.timestamp,
    )


def _read(consumer: Any, place: TopicPartition, end: int) -> Any:
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    moved_at = time.monotonic()
    while (position := consumer.position(place)) < end:
        for record in consumer.poll(timeout_ms=POLL_MS).get(place, []):
            if record.offset < end:
                yield record
        if consumer.position(place) > position:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STANDSTILL_S:
            raise CopyError(f"{place.topic}/{place.partition}: no record came for {STANDSTILL_S:.0f} s at {position}")
