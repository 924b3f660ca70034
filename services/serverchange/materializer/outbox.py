"""The fenced outbox: publishes what the fold decided, in log order, exactly once to readers of committed records.

One transactional producer a partition, strictly fence → read → publish → commit. Fencing (`init_transactions`) comes
before reading, so that a worker which was paused and wakes late is refused by the broker instead of putting an old
version behind a newer one, where compaction would make it the snapshot. The published offset of the log is committed
for the group `outbox` in the same Kafka transaction: no repeats, no steps back. Where the group's offset has expired,
the lower bound in Postgres is used, which may repeat, never skip.

Once fenced, a partition is not started again without a newer assignment: two owners that fence each other in turn
would publish nothing for good.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFenced
from aiokafka.structs import TopicPartition
from kafka.errors import KafkaError as OffsetError

from serverchange.adapters import metrics
from serverchange.adapters.kafka.clients import make_async_producer
from serverchange.adapters.kafka.committed_offsets import CommittedOffsets
from serverchange.adapters.kafka.log_identity import TopicIdentity, home_partition
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.projection import ChangeRow, DeadLetterRow, OutboxWork
from serverchange.adapters.settings import Settings
from serverchange.adapters.tracing import SpanName, is_tracing, record_span
from serverchange.events import (
    KAFKA_HEADERS,
    ChangedData,
    ClusterChanged,
    DeadLetter,
    DeadLetterData,
    change_id,
    dead_letter_id,
)
from serverchange.materializer.fault_points import reach
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES, DEAD_LETTERS

_log = get_logger("outbox")

OUTBOX_GROUP: Final = "outbox"
AT_ONCE_MAX: Final = 8
"""Kafka transactions under way at once: each waits on the broker, and more would only queue there."""

TRANSACTION_TIMEOUT_MS: Final = 10_000
"""A dead owner's open transaction holds back readers of committed records for no longer than this."""

BATCH_BYTES: Final = 262_144
"""Of one batch of changes, some 500: larger than the largest change, far below the broker's limit of 1 MB."""

STEP_TIMEOUT_S: Final = 20.0
"""For one fence or one Kafka transaction, twice the broker's own limit: a producer whose connection or partition went
away may wait for ever, and the round would keep its slot and its partition."""

STOP_TIMEOUT_S: Final = 5.0

SWEEP_S: Final = 1.0
"""How often partitions without a nudge are looked at: what a dead owner left, and retries after an error."""

SOURCE: Final = "serverchange/materializer"


@dataclass(slots=True)
class _Owned:
    """One partition of ours, in one assignment; once `fenced` it publishes nothing more in this assignment."""

    partition: int
    producer: AIOKafkaProducer | None = None
    generation: int = 0
    published: int = 0
    fenced: bool = False
    nudged: bool = False
    round: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a round is under way."""
        return self.round is not None and not self.round.done()


@dataclass(frozen=True, slots=True)
class _Message:
    """One record to publish, and the offset of the log that caused it."""

    offset: int
    topic: str
    key: bytes | None
    value: bytes
    kind: str = field(default="change")
    traceparent: str | None = None


class Outbox:
    """Publishes for the partitions of the present assignment. One task runs it (`run`)."""

    def __init__(self, settings: Settings, topic: TopicIdentity) -> None:
        self._settings = settings
        self._topic = topic
        self._owned: dict[int, _Owned] = {}
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._retired: set[asyncio.Task[None]] = set()
        self._group = settings.kafka.topic_prefix + OUTBOX_GROUP
        self._offsets = CommittedOffsets(settings.kafka, client_id=f"{settings.process.name}-outbox")
        self._offsets_thread = ThreadPoolExecutor(1, thread_name_prefix="outbox-offsets")
        self._connections: list[AsyncConnection] = []
        self._failure: BaseException | None = None
        self._owing: dict[int, float] = {}

    @property
    def owed(self) -> int:
        """How many partitions have something to publish."""
        return len(self._owing)

    def standing_still_s(self) -> float:
        """Return for how long the worst partition has owed something without publishing anything."""
        now = time.monotonic()
        return max((now - since for since in self._owing.values()), default=0.0)

    def forgive(self) -> None:
        """Count the time anew: what the outbox needs is away."""
        self._owing = dict.fromkeys(self._owing, time.monotonic())

    def assign(self, partitions: Iterable[int]) -> None:
        """Take over `partitions` and no others: call at each new assignment, which also lifts a fence."""
        for owned in self._owned.values():
            if owned.round is not None:
                owned.round.cancel()
            self._retire(owned)
        self._owned = {partition: _Owned(partition) for partition in partitions}
        self._owing.clear()
        self._wake.set()

    def nudge(self, partitions: Iterable[int]) -> None:
        """Say that the fold left something to publish for `partitions`."""
        for partition in partitions:
            if partition in self._owned:
                self._owned[partition].nudged = True
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled; errors of Kafka and Postgres are retried by the next sweep.

        Raises:
            Exception: a bug; the process must end.
        """
        try:
            while True:
                await self._start_rounds(await self._partitions_with_work())
                if self._failure is not None:
                    raise self._failure
                try:
                    async with asyncio.timeout(SWEEP_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
        finally:
            await self._close()

    async def _partitions_with_work(self) -> list[int]:
        nudged = [owned.partition for owned in self._owned.values() if owned.nudged]
        return nudged or list(self._owned)

    async def _start_rounds(self, partitions: Sequence[int]) -> None:
        idle = [p for p in partitions if not (self._owned[p].busy or self._owned[p].fenced)]
        if not idle:
            return
        try:
            connection = await self._borrow()
            try:
                work = await projection.load_outbox_work(connection, idle)
            finally:
                self._give_back(connection)
        except psycopg.OperationalError as error:
            _log.warning(LogEvent.POSTGRES_LOST, part="outbox", error=str(error).strip())
            return
        for one in work:
            owned = self._owned.get(one.partition)
            if owned is None or owned.busy:
                continue
            owned.nudged = False
            if owned.generation != one.generation:
                self._retire(owned)  # a rebuild: what was published before is no measure any more
            published = max(one.published, owned.published if owned.producer is not None else 0)
            if not one.republish and (one.newest is None or one.newest < published):
                self._owing.pop(one.partition, None)
                continue
            self._owing.setdefault(one.partition, time.monotonic())
            owned.round = asyncio.create_task(self._round(owned, one), name=f"outbox-{one.partition}")
            self._tasks.add(owned.round)
            owned.round.add_done_callback(self._tasks.discard)

    async def _round(self, owned: _Owned, work: OutboxWork) -> None:
        """Publish all that one partition owes; whatever goes wrong is left to the next sweep."""
        try:
            async with self._slots:
                await self._publish_partition(owned, work)
            self._owing.pop(owned.partition, None)
        except ProducerFenced:
            _log.warning(LogEvent.OUTBOX_FENCED, partition=owned.partition)
            owned.fenced = True
            self._retire(owned)
        except (KafkaError, OffsetError, psycopg.OperationalError, TimeoutError, OSError) as error:
            _log.warning(LogEvent.KAFKA_LOST, part="outbox", partition=owned.partition, error=repr(error))
            self._retire(owned)
        except Exception as error:  # noqa: BLE001  (handed to `run`, which ends the process)
            self._failure = error
            self._wake.set()
        finally:
            if owned.nudged:
                self._wake.set()

    async def _publish_partition(self, owned: _Owned, work: OutboxWork) -> None:
        group = self._group_of(work.generation)
        if owned.producer is None:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                owned.producer, owned.published = await self._fence(owned.partition, work, group)
            owned.generation = work.generation
        connection = await self._borrow()
        try:
            if work.republish:
                await self._publish_again(connection, owned)
            while owned.producer is not None:
                messages = await self._read(connection, owned)
                reach("outbox-read")
                if not messages:
                    break
                await self._send(owned.producer, owned.partition, messages, group)
                owned.published = messages[-1].offset + 1
                self._count(messages)
                reach("outbox-committed")
            await projection.store_published(connection, owned.partition, owned.published)
        except BaseException:
            await connection.close()  # it may be in the midst of a query
            raise
        self._give_back(connection)

    async def _publish_again(self, connection: AsyncConnection, owned: _Owned) -> None:
        """Publish what a rebuild altered; what is not published yet comes by itself, in its turn."""
        limit = self._settings.materializer.outbox_batch
        while owned.producer is not None:
            rows = await projection.load_republications(connection, owned.partition, limit)
            if not rows:
                return
            messages = [self._change_message(row) for row in rows if row.offset < owned.published]
            if messages:
                await self._send(owned.producer, owned.partition, messages, None)
                self._count(messages)
            channels = [row.change.channel for row in rows]
            await projection.delete_republications(connection, owned.partition, channels)

    def _group_of(self, generation: int) -> str:
        """Return the group whose offset says what is published of this topic in this generation.

        A topic made anew or tables rebuilt by other rules start another count: an old offset would skip changes.
        """
        return f"{self._group}-{self._topic.topic_id}-{generation}"

    async def _fence(self, partition: int, work: OutboxWork, group: str) -> tuple[AIOKafkaProducer, int]:
        """Refuse every earlier producer of this partition from now on; only then is the published offset final."""
        producer = make_async_producer(
            self._settings.kafka,
            client_id=f"{self._settings.process.name}-outbox-{partition}",
            transactional_id=f"{self._group}-{self._topic.topic_id}-{partition}",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_batch_size=BATCH_BYTES,
        )
        try:
            await producer.start()
            reach("outbox-fenced")
            committed = await self._committed(partition, group)
        except BaseException:
            await _stop_quietly(producer)
            raise
        return producer, max(committed or 0, work.published)

    async def _committed(self, partition: int, group: str) -> int | None:
        """Return the published offset as Kafka has it, None where it has none.

        Raises:
            kafka.errors.KafkaError: the broker does not know yet, after its own restart for instance.
        """
        topic = topic_name(self._settings.kafka, CHANNEL_EVENTS)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._offsets_thread, self._offsets.read, group, topic, partition)

    async def _read(self, connection: AsyncConnection, owned: _Owned) -> list[_Message]:
        """Return the next messages in log order.

        The two queries see two instants: only what lies below a position read before both is complete in each, and
        where one of them stops at its limit the other must not go further. (Without the position a dead letter
        committed between the two queries carried the published offset over changes that the first had not seen.)
        """
        limit, since = self._settings.materializer.outbox_batch, owned.published
        position = (await projection.load_positions(connection, [owned.partition]))[0].position
        changes = await projection.load_unpublished_changes(connection, owned.partition, since, position, limit)
        before = changes[-1].offset + 1 if len(changes) == limit else position
        letters = await projection.load_unpublished_dead_letters(connection, owned.partition, since, before, limit)
        if len(letters) == limit:
            changes = [row for row in changes if row.offset <= letters[-1].offset]
        messages = [self._change_message(row) for row in changes] + [self._letter_message(row) for row in letters]
        return sorted(messages, key=lambda message: message.offset)

    async def _send(
        self, producer: AIOKafkaProducer, partition: int, messages: Sequence[_Message], group: str | None
    ) -> None:
        """Publish the messages, and the offset behind them, in one Kafka transaction.

        Nothing is aborted here: whoever fails drops the producer, and the next fence, or the broker's time-out, aborts
        what it left. (An abort of a producer that is being stopped waits for ever.)
        """
        log = TopicPartition(topic_name(self._settings.kafka, CHANNEL_EVENTS), partition)
        started_s = time.time()
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await producer.begin_transaction()
            await asyncio.gather(*await self._hand_over(producer, messages))
            reach("outbox-sent")
            if group is not None:
                await producer.send_offsets_to_transaction({log: messages[-1].offset + 1}, group)
            await producer.commit_transaction()
        if is_tracing():
            _trace(messages, started_s, time.time())
        if partition in self._owing:
            self._owing[partition] = time.monotonic()

    async def _hand_over(
        self, producer: AIOKafkaProducer, messages: Sequence[_Message]
    ) -> list[asyncio.Future[object]]:
        """Give the messages to the producer; changes as whole batches."""
        sent = []
        changes: dict[tuple[str, int], list[_Message]] = defaultdict(list)
        for message in messages:
            if message.kind == "change" and message.key is not None:
                partitions = len(await producer.partitions_for(message.topic))
                changes[message.topic, home_partition(message.key, partitions)].append(message)
            else:
                headers = list(KAFKA_HEADERS)
                sent.append(await producer.send(message.topic, value=message.value, key=message.key, headers=headers))
        for (topic, partition), group in changes.items():
            batches = _batches(producer, group)
            sent += [await producer.send_batch(batch, topic, partition=partition) for batch in batches]
        return sent

    def _change_message(self, row: ChangeRow) -> _Message:
        event = change_event(row)
        topic = topic_name(self._settings.kafka, CLUSTER_CHANGES)
        return _Message(row.offset, topic, event.subject.encode(), event.to_record(), traceparent=row.traceparent)

    def _letter_message(self, row: DeadLetterRow) -> _Message:
        topic = topic_name(self._settings.kafka, DEAD_LETTERS)
        return _Message(row.offset, topic, row.key, dead_letter_event(row).to_record(), "dead-letter")

    def _count(self, messages: Sequence[_Message]) -> None:
        changes = sum(message.kind == "change" for message in messages)
        metrics.CHANGES_PUBLISHED.inc(changes)
        _log.debug(LogEvent.OUTBOX_PUBLISHED, changes=changes, dead_letters=len(messages) - changes)

    def _retire(self, owned: _Owned) -> None:
        """Stop a partition's producer beside the work; a round that still uses it fails and is dropped."""
        producer, owned.producer = owned.producer, None
        if producer is not None:
            task = asyncio.create_task(_stop_quietly(producer))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def _borrow(self) -> AsyncConnection:
        while self._connections:
            connection = self._connections.pop()
            if not connection.closed:
                return connection
        return await connect(self._settings.postgres, application=f"{self._settings.process.name} outbox")

    def _give_back(self, connection: AsyncConnection) -> None:
        if not connection.closed:
            self._connections.append(connection)

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for owned in self._owned.values():
            self._retire(owned)
        await asyncio.gather(*self._retired, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._offsets_thread, self._offsets.close)
        self._offsets_thread.shutdown(wait=False)
        for connection in self._connections:
            await connection.close()


def _trace(messages: Sequence[_Message], started_s: float, ended_s: float) -> None:
    """Record the Kafka transaction in the trace of every change in it."""
    for message in messages:
        if message.traceparent is not None and message.key is not None:
            record_span(
                SpanName.PUBLISH,
                parent=message.traceparent,
                started_s=started_s,
                ended_s=ended_s,
                attributes={"channel": message.key.decode(), "messages": len(messages)},
            )


def _batches(producer: AIOKafkaProducer, messages: Sequence[_Message]) -> Iterator[Any]:
    """Yield batches that hold the messages in order.

    Raises:
        MessageSizeTooLargeError: one message alone fills more than a batch.
    """
    builder = producer.create_batch()
    for message in messages:
        appended = _append(builder, message)
        if not appended:
            yield builder
            builder = producer.create_batch()
            if not _append(builder, message):
                raise MessageSizeTooLargeError(f"{len(message.value)} bytes exceed a batch of {BATCH_BYTES}")
    yield builder


def _append(builder: Any, message: _Message) -> bool:
    return builder.append(timestamp=None, key=message.key, value=message.value, headers=list(KAFKA_HEADERS)) is not None


async def _stop_quietly(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await producer.stop()
    except (KafkaError, OSError, AssertionError, TimeoutError):
        # A producer that was fenced or lost its broker may refuse to stop; its sockets are closed all the same.
        _log.debug(LogEvent.OUTBOX_FENCED, exc_info=True)


def change_event(row: ChangeRow) -> ClusterChanged:
    """Return the event of a change; the same row gives the same event and id, in any rebuild."""
    change = row.change
    since = _moment(change.since_ms)
    return ClusterChanged(
        id=change_id(change.channel, row.generation, change.version),
        source=SOURCE,
        time=since,
        traceparent=row.traceparent,
        subject=change.channel,
        data=ChangedData(
            what=change.what,
            previous=change.previous,
            cluster=change.cluster,
            generation=row.generation,
            version=change.version,
            since=since,
            kind=change.kind,
            labels=change.labels,
            account=change.account,
            evidence=change.evidence,
        ),
    )


def dead_letter_event(row: DeadLetterRow) -> DeadLetter:
    """Return the event of a dead letter; its id comes from where the record stands in the log."""
    return DeadLetter(
        id=dead_letter_id(row.topic_id, row.partition, row.offset),
        source=SOURCE,
        time=_moment(row.appended_ms),
        subject=f"{row.topic}/{row.partition}/{row.offset}",
        data=DeadLetterData(
            reason=row.reason,
            topic=row.topic,
            topic_id=row.topic_id,
            partition=row.partition,
            offset=row.offset,
            key_base64=_base64(row.key),
            value_base64=_base64(row.value),
            sqlstate=row.sqlstate,
        ),
    )


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
