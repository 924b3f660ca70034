"""Which channels stream, as far as `channel-live` tells: read back at an assignment, then kept by the scans.

Without reading back, a new holder of a partition could not tell a channel that went offline meanwhile from one that
never streamed, and subscribers would keep the predecessor's last word for ever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import Channel
from serverchange.topics import CHANNEL_LIVE

READ_TIMEOUT_S: Final = 30.0
"""Reading a compacted partition of 100,000 channels takes about 2 s."""

_POLL_MS: Final = 200


class LiveBoard:
    """The live channels among those of the share; times are not kept, the topic has them."""

    def __init__(self) -> None:
        self._live: set[Channel] = set()

    def __contains__(self, channel: object) -> bool:
        return channel in self._live

    def __len__(self) -> int:
        return len(self._live)

    def load(self, live: Iterable[Channel]) -> None:
        """Take over what the topic tells of a partition."""
        self._live.update(live)

    def forget(self, channels: Collection[Channel]) -> None:
        """Let go of channels that are no longer ours."""
        self._live.difference_update(channels)

    def changes(self, scanned: Sequence[Channel], live: Collection[Channel]) -> dict[Channel, bool]:
        """Return the channels of a scan whose live state is another than the topic's, and which it is now."""
        return {channel: channel in live for channel in scanned if (channel in live) != (channel in self._live)}

    def note(self, changes: dict[Channel, bool]) -> None:
        """Remember what was published."""
        for channel, live in changes.items():
            (self._live.add if live else self._live.discard)(channel)


def read_live(settings: KafkaSettings, partitions: Collection[int], *, client_id: str) -> dict[int, frozenset[Channel]]:
    """Return the channels that these partitions of `channel-live` say are live. Blocks; run it on a thread.

    The topic has the same number of partitions as `channel-events` and the same key, hence the same channels.

    Raises:
        kafka.errors.KafkaError: no broker answered, or not within `READ_TIMEOUT_S`.
    """
    topic = topic_name(settings, CHANNEL_LIVE)
    consumer = make_consumer(settings, client_id=client_id, group=None)
    try:
        return _read(consumer, [TopicPartition(topic, partition) for partition in partitions])
    finally:
        consumer.close(autocommit=False, timeout_ms=1_000)


def _read(consumer: Any, places: Sequence[TopicPartition]) -> dict[int, frozenset[Channel]]:
    deadline_s = time.monotonic() + READ_TIMEOUT_S
    timeout_ms = round(READ_TIMEOUT_S * 1000)
    consumer.assign(places)
    ends = consumer.end_offsets(places, timeout_ms=timeout_ms)
    consumer.seek_to_beginning(*places)
    live: dict[int, dict[Channel, bool]] = {place.partition: {} for place in places}
    while any((consumer.position(place, timeout_ms=timeout_ms) or 0) < end for place, end in ends.items()):
        if time.monotonic() > deadline_s:
            raise KafkaTimeoutError(f"{places[0].topic} was not read within {READ_TIMEOUT_S:.0f} s")
        for place, records in consumer.poll(timeout_ms=_POLL_MS).items():
            for record in records:
                _note_record(live[place.partition], record)
    return {partition: frozenset(name for name, said in told.items() if said) for partition, told in live.items()}


def _note_record(live: dict[Channel, bool], record: Any) -> None:
    try:
        channel, said = Channel(record.key.decode("ascii")), json.loads(record.value)["data"]["live"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return  # only a hint: a record that tells nothing is passed
    live[channel] = said is True
