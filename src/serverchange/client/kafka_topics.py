"""One consumer over all partitions of one topic, for the SDK's readers: blocking, so for threads.

It commits nothing and belongs to no group: a reader's place is its own to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from serverchange.client.errors import UnavailableError
from serverchange.topics import Topic
from serverchange.views import short_topic_id

ASK_TIMEOUT_MS: Final = 3_000
BOOTSTRAP_TIMEOUT_MS: Final = 5_000
POLL_RECORDS: Final = 5_000
CLOSE_TIMEOUT_MS: Final = 1_000

DAY_MS: Final = 86_400_000
RESUME_DAYS: Final = 29
"""A day less than the compaction lag of `cluster-changes`: an older reader may have missed what is compacted away."""


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where Kafka is and how its topics are named.

    Attributes:
        bootstrap_servers: host:port list, comma separated.
        topic_prefix: as in the fleet's setting `kafka.topic_prefix`.
        options: further options of kafka-python, e.g. `security_protocol` and credentials.
    """

    bootstrap_servers: str
    topic_prefix: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class TopicConsumer:
    """The consumer. Open it with `connect`; `close` it in the end."""

    def __init__(self, address: KafkaAddress, topic: Topic) -> None:
        self._options = {"bootstrap_servers": address.bootstrap_servers.split(","), **address.options}
        self._name = address.topic_prefix + topic.name
        self._consumer: Any = None
        self._partitions: list[TopicPartition] = []
        self.topic_id = ""

    @property
    def count(self) -> int:
        """How many partitions the topic has."""
        return len(self._partitions)

    def connect(self) -> None:
        """Connect and learn the topic's id and partitions; seek before polling.

        Raises:
            KafkaError: no broker answers.
            UnavailableError: the topic does not exist.
        """
        self._consumer = KafkaConsumer(
            **{
                "isolation_level": "read_committed",
                "enable_auto_commit": False,
                "auto_offset_reset": "earliest",
                "allow_auto_create_topics": False,
                "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
                "max_poll_records": POLL_RECORDS,
                **self._options,
            }
        )
        found = self._consumer.partitions_for_topic(self._name)
        if not found:
            raise UnavailableError(f"Kafka has no topic {self._name}: is the topic_prefix right?")
        self.topic_id = self.fetch_topic_id()
        self._partitions = [TopicPartition(self._name, partition) for partition in sorted(found)]
        self._consumer.assign(self._partitions)

    def close(self) -> None:
        """Close the connection; safe to call more than once."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(KafkaError):
                consumer.close(timeout_ms=CLOSE_TIMEOUT_MS)

    def fetch_topic_id(self) -> str:
        """Ask for the topic's id, 8 hex digits of it: a topic made anew has another.

        Raises:
            KafkaError: no answer.
        """
        admin = KafkaAdminClient(**self._options)
        try:
            return short_topic_id(str(admin.describe_topics([self._name])[0]["topic_id"]))
        finally:
            admin.close()

    def seek(self, offsets: Sequence[int]) -> None:
        """Go on from these offsets, one a partition."""
        for partition, offset in zip(self._partitions, offsets, strict=True):
            self._consumer.seek(partition, offset)

    def poll(self, timeout_s: float) -> list[tuple[int, list[Any]]]:
        """Return what came as (partition, records), waiting up to `timeout_s` for something."""
        found = self._consumer.poll(timeout_ms=round(timeout_s * 1000))
        return [(partition.partition, records) for partition, records in found.items()]

    def positions(self) -> list[int]:
        """Return where the consumer stands in each partition, which may be behind commit markers."""
        return [self._consumer.position(partition, timeout_ms=ASK_TIMEOUT_MS) or 0 for partition in self._partitions]

    def ends(self) -> list[int]:
        """Ask for the offset behind the last record of each partition.

        Raises:
            KafkaError: no answer in time.
        """
        found = self._consumer.end_offsets(self._partitions, timeout_ms=ASK_TIMEOUT_MS)
        return [found[partition] for partition in self._partitions]

    def beginnings(self) -> list[int]:
        """Ask for the offset of the first record of each partition. Raises like `ends`."""
        found = self._consumer.beginning_offsets(self._partitions, timeout_ms=ASK_TIMEOUT_MS)
        return [found[partition] for partition in self._partitions]

    def offsets_at(self, moment_ms: int) -> list[int]:
        """Ask for each partition's first offset at or after a moment, its end where none is. Raises like `ends`."""
        ends = self.ends()
        found = self._consumer.offsets_for_times(dict.fromkeys(self._partitions, moment_ms), timeout_ms=ASK_TIMEOUT_MS)
        places = [found.get(partition) for partition in self._partitions]
        return [end if place is None else place.offset for place, end in zip(places, ends, strict=True)]
