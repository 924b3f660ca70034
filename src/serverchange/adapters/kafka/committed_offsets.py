"""What a group has committed, without being a member of it."""

from __future__ import annotations

from typing import Final

from kafka import KafkaConsumer, TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.settings import KafkaSettings

TIMEOUT_MS: Final = 2_000
"""For one question; who stops may have to wait for it."""


class CommittedOffsets:
    """Asks for committed offsets, of one group at a time. Every call blocks; use it from one thread.

    kafka-python, because aiokafka 0.14.0 overlooks the error of a coordinator that is still loading (it stands beside
    the partitions since version 2 of the answer) and says that nothing was ever committed.
    """

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._consumer: KafkaConsumer | None = None
        self._group = ""

    def read(self, group: str, topic: str, partition: int) -> int | None:
        """Return the offset committed for the partition, None where there is none; open transactions are waited for.

        Args:
            group: its whole name.
            topic: its whole name.
            partition: of the topic.

        Raises:
            kafka.errors.KafkaError: the brokers do not know, or not yet: after a restart they load first.
        """
        if self._consumer is None or self._group != group:
            self.close()
            self._consumer = make_consumer(self._settings, client_id=self._client_id, group=None, group_id=group)
            self._group = group
        offset: int | None = self._consumer.committed(TopicPartition(topic, partition), timeout_ms=TIMEOUT_MS)
        return offset

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=1_000)
            self._consumer = None
