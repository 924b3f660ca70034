"""Reads one record of `channel-events` by its place."""

from __future__ import annotations

import time
from typing import Final

from kafka import TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.cli.faults import UnavailableFault
from serverchange.cli.output import quiet_logs
from serverchange.topics import CHANNEL_EVENTS

READ_TIMEOUT_S: Final = 10.0


def read_record(settings: KafkaSettings, partition: int, offset: int) -> bytes:
    """Return the value of the record at this place of `channel-events`.

    Raises:
        UnavailableFault: it does not come in time, or is no longer there.
    """
    quiet_logs()
    consumer = make_consumer(settings, client_id="serverchange-cli", group=None)
    place = TopicPartition(topic_name(settings, CHANNEL_EVENTS), partition)
    deadline = time.monotonic() + READ_TIMEOUT_S
    try:
        consumer.assign([place])
        consumer.seek(place, offset)
        while time.monotonic() < deadline:
            for record in consumer.poll(timeout_ms=500, max_records=1).get(place, ()):
                if record.offset == offset:
                    return bytes(record.value or b"")
                raise UnavailableFault(f"partition {partition} has no record at offset {offset} any more")
    finally:
        consumer.close()
    raise UnavailableFault(f"Kafka did not give the record at {partition}@{offset} within {READ_TIMEOUT_S:.0f} s")
