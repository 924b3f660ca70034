"""Is this the log that the tables were folded from? A re-created, truncated or restored log is refused, never guessed.

`log_position` keeps the topic's id and the digest of the last record folded. Both are compared on assignment, when a
record at or below the position arrives unasked, and every ten seconds; so are the partition's ends: records deleted
from the position on would leave a hole that nobody could fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from serverchange.adapters.kafka.clients import make_admin, make_async_consumer
from serverchange.adapters.kafka.log_identity import Ends, TopicIdentity, record_sha256
from serverchange.adapters.postgres.projection import LogPosition
from serverchange.adapters.settings import KafkaSettings

READ_TIMEOUT_S: Final = 10.0
"""For the last records of all partitions together; a positioning must end within 15 s."""

FETCH_BYTES_MAX: Final = 131_072
"""Of one partition; the broker sends at least one record, however large."""


class TopicMissingError(Exception):
    """The topic does not exist; make the topics with `serverchange topics apply`."""


class LogReader:
    """Reads what identifies the log, beside Faust's own consumer. One task at a time uses it (`lock`)."""

    def __init__(self, settings: KafkaSettings, topic: str, *, client_id: str) -> None:
        self._settings = settings
        self._topic = topic
        self._client_id = client_id
        self._consumer: AIOKafkaConsumer | None = None
        self.lock = asyncio.Lock()

    async def identity(self) -> TopicIdentity:
        """Ask the brokers for the topic's id and number of partitions.

        Raises:
            TopicMissingError: there is no such topic.
            kafka.errors.KafkaError: no broker answered.
        """
        return await asyncio.to_thread(self._describe)

    def _describe(self) -> TopicIdentity:
        admin = make_admin(self._settings, client_id=f"{self._client_id}-identity")
        try:
            found = admin.describe_topics([self._topic])
        finally:
            admin.close()
        if not found or found[0]["error_code"]:
            raise TopicMissingError(f"topic {self._topic} does not exist: serverchange topics apply")
        return TopicIdentity(self._topic, found[0]["topic_id"], len(found[0]["partitions"]))

    async def ends(self, partitions: Iterable[int]) -> dict[int, Ends]:
        """Return the low watermark and the end (of committed records) of each partition."""
        consumer = await self._started()
        wanted = [TopicPartition(self._topic, partition) for partition in partitions]
        low, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        return {tp.partition: Ends(low[tp], end[tp]) for tp in wanted}

    async def digests(self, offsets: dict[int, int]) -> dict[int, bytes]:
        """Return the digest of the record at one offset of each partition; those without such a record are missing.

        Raises:
            TimeoutError: the records did not come within `READ_TIMEOUT_S`.
        """
        if not offsets:
            return {}
        consumer = await self._started()
        waiting = {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
        consumer.assign(list(waiting))
        for tp, offset in waiting.items():
            consumer.seek(tp, offset)
        found: dict[int, bytes] = {}
        async with asyncio.timeout(READ_TIMEOUT_S):
            while waiting:
                for tp, records in (await consumer.getmany(*waiting, timeout_ms=500)).items():
                    first = records[0]
                    if first.offset == waiting.pop(tp):
                        found[tp.partition] = record_sha256(first.key, first.value, first.timestamp)
        return found

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = make_async_consumer(
                self._settings, client_id=f"{self._client_id}-log", max_partition_fetch_bytes=FETCH_BYTES_MAX
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer

    async def close(self) -> None:
        """Close the consumer, if there is one."""
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await consumer.stop()


def compare_ends(position: LogPosition, topic: TopicIdentity, ends: Ends) -> str | None:
    """Return why the log cannot be the one that was folded, from its id and ends; None where they agree."""
    where = f"{topic.name}/{position.partition}"
    if position.topic_id != topic.topic_id:
        return (
            f"{where}: the topic was made anew (id {topic.topic_id}, folded was {position.topic_id}); "
            "restore it, or start over with an empty database"
        )
    if ends.end < position.position:
        return (
            f"{where}: the log ends at {ends.end}, the tables stand at {position.position}: it was truncated or "
            "restored from an older copy; restore the records, or rebuild from what is left (serverchange rebuild)"
        )
    if ends.low > position.position:
        return (
            f"{where}: records from {position.position} to {ends.low - 1} were deleted before they were folded; "
            f"restore them, or accept the loss: serverchange log accept-hole --partition {position.partition}"
        )
    return None


def compare_digest(position: LogPosition, topic: TopicIdentity, ends: Ends, digest: bytes | None) -> str | None:
    """Return why the last record folded is not the one in the log now; None where it is, or cannot be told."""
    if position.last_offset is None or position.last_offset < ends.low or digest == position.last_sha256:
        return None
    return (
        f"{topic.name}/{position.partition}: the record at offset {position.last_offset} is not the one that was "
        "folded: the log was truncated and written anew; restore it, or rebuild (serverchange rebuild)"
    )


async def match_log(
    reader: LogReader, topic: TopicIdentity, positions: Sequence[LogPosition], *, digests: bool
) -> dict[int, str]:
    """Return, for each partition whose log is not the one that was folded, why.

    Where `digests` is false only ids and ends are compared, which is cheap enough for every ten seconds.
    """
    async with reader.lock:
        ends = await reader.ends([position.partition for position in positions])
        reasons = {}
        wanted = {}
        for position in positions:
            reason = compare_ends(position, topic, ends[position.partition])
            if reason is not None:
                reasons[position.partition] = reason
            elif position.last_offset is not None and position.last_offset >= ends[position.partition].low:
                wanted[position.partition] = position.last_offset
        if digests:
            found = await reader.digests(wanted)
            for position in positions:
                if position.partition in wanted:
                    digest = found.get(position.partition)
                    reason = compare_digest(position, topic, ends[position.partition], digest)
                    if reason is not None:
                        reasons[position.partition] = reason
        return reasons
