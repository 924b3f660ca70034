"""Faust's transport with runs: a whole fetch becomes one message, and Postgres says where to read on.

Faust hands an agent one event at a time through three tasks; measured with 300,000 events into Postgres that made
11,700 a second with `take(2000)`, with runs 38,000. A driver class is Faust's own seam for this; what we override is
held by `tests/unit/test_materializer_transport.py` against the pinned version (0.15.3).

A `Run` says where the fetcher started (`start`), so that a hole inside it holds no record (transaction markers,
aborted records), while a hole before it means that something was lost between broker and agent: the transaction
refuses such a run, and the partition is positioned anew. Faust's own bookkeeping of offsets is switched off: it
drops and acks nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import IllegalStateError
from aiokafka.structs import ConsumerRecord, TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

_log = logging.getLogger("faust.runs")

FETCH_WAIT_MS: Final = 100
"""Longest wait of the broker for more data; an event that arrives ends the wait at once."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive records of one partition: nothing lies between `start` and the last record but what is here.

    Attributes:
        start: where the fetcher stood before; None where it was not positioned by us: such a run must be refused.
        records: in ascending order of offsets; none where only markers or aborted records were passed.
        next: where the fetcher stands now; below `start` where the broker made it go back.
    """

    partition: int
    start: int | None
    records: tuple[ConsumerRecord, ...]
    next: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """One fetch: the runs of several partitions, as the one message that the agent sees."""

    runs: tuple[Run, ...]


Position = Callable[[frozenset[int]], Awaitable[Mapping[int, int]]]
"""Tells the next offset to fold of each partition that may be read; those it leaves out stay unread."""


class RunsThread(AIOKafkaConsumerThread):
    """The thread that owns the aiokafka consumer; it alone knows where each delivery started."""

    logger = _log

    def __post_init__(self) -> None:
        super().__post_init__()
        self._delivered: dict[TP, tuple[object, int]] = {}

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        # The driver reads uncommitted records unless Faust runs its own transactions.
        consumer._isolation_level = "read_committed"
        return consumer

    async def _seek_wait(self, consumer: AIOKafkaConsumer, partitions: Mapping[TP, int]) -> None:
        assignment = consumer._subscription.subscription.assignment
        for tp, offset in partitions.items():
            consumer.seek(tp, offset)
            self._delivered[tp] = (assignment, offset)
        await asyncio.gather(*(consumer.position(tp) for tp in partitions))

    async def set_readable(self, partitions: Iterable[TP], readable: Iterable[TP]) -> None:
        """Fetch, of `partitions`, those in `readable`, and no others."""
        await self.call_thread(self._set_readable, frozenset(partitions), frozenset(readable))

    async def _set_readable(self, partitions: frozenset[TP], readable: frozenset[TP]) -> None:
        consumer = self._ensure_consumer()
        for assigned in consumer.assignment():
            tp = TP(assigned.topic, assigned.partition)
            if tp in readable:
                consumer.resume(assigned)
            elif tp in partitions:
                consumer.pause(assigned)

    async def _fetch_records(  # type: ignore[override]  # `RunsConsumer._getmany`, its one caller, knows
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109  (Faust's signature)
        max_records: int | None = None,
    ) -> Fetched | None:
        records = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        # Nothing is awaited from here on, so no seek can fall between the delivery and this bookkeeping.
        subscription = consumer._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            return None
        runs = [self._run(tp, tuple(records.get(tp, ())), assignment) for tp in assignment.tps]
        found = tuple(run for run in runs if run is not None)
        return Fetched(found) if found and self.consumer.flow_active else None

    def _run(self, aiokafka_tp: TopicPartition, records: tuple[ConsumerRecord, ...], assignment: Any) -> Run | None:
        """Return what was delivered of one partition since the last time, or None for nothing at all."""
        tp = TP(aiokafka_tp.topic, aiokafka_tp.partition)
        state = assignment.state_value(aiokafka_tp)
        positioned_in, start = self._delivered.get(tp, (None, 0))
        if positioned_in is not assignment:
            return Run(tp.partition, None, records, records[-1].offset + 1) if records else None
        behind = state.position if state.has_valid_position else start
        if not records and behind == start:
            return None
        self._delivered[tp] = (assignment, behind)
        return Run(tp.partition, start, records, behind)


class _ForgetsOffsets(dict[TP, int | None]):
    """Faust's `_read_offset`: answers None for everything, so that Faust never drops a message by its offset."""

    def __missing__(self, key: TP) -> None:
        return None

    def __setitem__(self, key: TP, value: int | None) -> None:
        """Remember nothing."""

    def update(self, *_args: Any, **_kwargs: Any) -> None:
        """Remember nothing."""


class RunsConsumer(FaustConsumer):
    """The consumer: positions from Postgres, one message a fetch, no acks, no commits.

    `app` is a `RunsApp`, which says where to read (`position`) and which partitions lost something (`lost`).
    """

    logger = _log
    app: RunsApp
    _thread: RunsThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _ForgetsOffsets()

    def _new_consumer_thread(self) -> RunsThread:
        return RunsThread(self, loop=self.loop, beacon=self.beacon)

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: a message carries all partitions; the queue's own bound is the back-pressure."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Do nothing, like `on_buffer_full`."""

    async def perform_seek(self) -> None:
        """Position every assigned partition where Postgres says; the one place where no race is possible.

        Faust calls it once the assignment is complete and before the flow resumes. It only reads Postgres.
        """
        await self._position(self.assignment())

    async def _position(self, partitions: Iterable[TP]) -> None:
        topics = {tp.partition: tp for tp in partitions}
        if not topics:
            return
        offsets = await self.app.position(frozenset(topics))
        wanted = {topics[partition]: offset for partition, offset in offsets.items()}
        await self.seek_wait(wanted)
        await self._thread.set_readable(topics.values(), wanted)
        self._committed_offset.update(wanted)

    async def getmany(self, timeout: float) -> Any:  # noqa: ASYNC109  (Faust's signature)
        """Position anew what lost something, then fetch. Runs in Faust's drain loop, so nothing races with it."""
        self.app.drained()
        if self.app.lost and self.flow_active:
            again = [tp for tp in self.assignment() if tp.partition in self.app.lost]
            self.app.lost.clear()
            # An IllegalStateError says that it was revoked meanwhile: the next assignment positions it.
            with contextlib.suppress(IllegalStateError):
                await self._position(again)
        async for tp, message in super().getmany(timeout):
            yield tp, message

    async def _getmany(
        self,
        active_partitions: set[TP] | None,
        timeout: float,  # noqa: ASYNC109  (Faust's signature)
    ) -> dict[TP, list[Fetched]]:
        fetched: Any = await self._thread.getmany(active_partitions, timeout)
        if fetched is None:
            return {}
        first = next(iter(active_partitions or self.assignment()), None)
        return {first: [fetched]} if first is not None else {}

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.runs[0].next,
            time.time(),
            0,
            None,
            None,
            record,
            None,
            None,
            None,
            tp,
            generation_id=self.app.consumer_generation_id,
        )


class RunsTransport(FaustTransport):
    """The driver: Faust's own with our consumer."""

    Consumer = RunsConsumer


class RunsSchema(faust.Schema[Any, Any]):
    """Hands a message's value over as it is: we decode in bulk, since Faust acks and drops what it cannot decode."""

    def loads_key(self, *_args: Any, **_kwargs: Any) -> None:
        """Return None: a fetch has no key."""

    def loads_value(self, _app: Any, message: Any, **_kwargs: Any) -> Fetched:  # type: ignore[override]
        """Return the fetch."""
        fetched: Fetched = message.value
        return fetched


class RunsApp(faust.App):
    """A Faust app whose messages are fetches.

    Set `position` before the start. `drained` is called at each turn of the fetch loop (the watchdog's pulse); put
    partitions that lost something into `lost`.
    """

    logger = _log
    position: Position
    lost: set[int]
    drained: Callable[[], None]
    assignment_handlers: tuple[object, ...]

    def _new_transport(self) -> RunsTransport:
        return RunsTransport(self.conf.broker_consumer, self)
