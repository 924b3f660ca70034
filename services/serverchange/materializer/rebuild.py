"""Folds the whole log again, in bulk, beside the live tables; then compares with them or takes their place.

The shadow tables stand in schema `rebuild`, made by the same migrations. One partition after the other is fetched
and folded in memory, and written with COPY in chunks; each chunk is one transaction with its position, so a rebuild
that was interrupted goes on where it stopped. The live worker is not disturbed until the swap, which waits for its
transaction, folds the last few records, and exchanges the tables in one transaction.

A swap that alters any row raises the generation: subscribers order by (generation, version), and the channels whose
newest change differs are published once more.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from psycopg import IsolationLevel

from serverchange.adapters.cycle_collection import rare_cycle_collection
from serverchange.adapters.kafka.clients import make_async_consumer
from serverchange.adapters.kafka.log_identity import TopicIdentity, record_sha256
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import AsyncConnection, connect, connect_blocking
from serverchange.adapters.postgres.projection import LogPosition
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.postgres.sql import queries
from serverchange.adapters.settings import Settings
from serverchange.materializer.bulk import copy_changes, copy_dead_letters, copy_states
from serverchange.materializer.folding import Fold, PartitionLog, RefusedByPostgres, decode_records, fold_records
from serverchange.materializer.log_matching import LogReader
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.channel_state import RULES_VERSION, ChannelState

_SQL: Final = queries("rebuild")

CHUNK_RECORDS: Final = 500_000
"""Records folded between two commits: at 100,000 a second an interruption costs five seconds."""

FETCH_BYTES: Final = 8 * 2**20
ROWS_AT_ONCE: Final = 5_000
DIFFERENCES_MAX: Final = 20
"""Differences told; more would not help a person."""

STATEMENT_TIMEOUT_S: Final = 3_600.0
STANDSTILL_S: Final = 30.0
"""Without a record for so long, although the log goes on: Kafka is away, and the rebuild gives up (it can go on)."""

Progress = Callable[[int, int], None]
"""Told the records folded so far and in all."""


class RebuildError(Exception):
    """The rebuild cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that differs: `live` or `rebuilt` is None where the row is missing there."""

    table: str
    key: str
    live: str | None
    rebuilt: str | None


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild found and did.

    Attributes:
        records: folded in this run.
        seconds: for folding them.
        differences: the first few rows that differ, when compared; None when not compared.
        swapped: the shadow tables are the live ones now.
        generation: of the tables after a swap.
        altered: rows that a swap altered.
        missing_before: by partition, the first offset still in the log where older records were deleted: the
            rebuilt tables are the fold of what is left.
    """

    records: int = 0
    seconds: float = 0.0
    differences: list[Difference] | None = None
    swapped: bool = False
    generation: int | None = None
    altered: int = 0
    missing_before: dict[int, int] = field(default_factory=dict)


def run(
    settings: Settings, *, swap: bool = False, compare: bool = False, progress: Progress | None = None
) -> RebuildReport:
    """Fold the log into shadow tables, going on where an earlier run stopped; then compare, swap, or leave them.

    Raises:
        RebuildError: Kafka stopped answering.
        psycopg.Error: PostgreSQL refused.
    """
    with rare_cycle_collection():
        return asyncio.run(rebuild(settings, swap=swap, compare=compare, progress=progress))


async def rebuild(
    settings: Settings, *, swap: bool = False, compare: bool = False, progress: Progress | None = None
) -> RebuildReport:
    """Do what `run` does, inside an event loop."""
    await asyncio.to_thread(_migrate_live, settings)
    name = topic_name(settings.kafka, CHANNEL_EVENTS)
    reader = LogReader(settings.kafka, name, client_id="serverchange-rebuild")
    consumer = make_async_consumer(
        settings.kafka, client_id="serverchange-rebuild", max_partition_fetch_bytes=FETCH_BYTES
    )
    await consumer.start()
    try:
        async with await _connect(settings) as connection:
            rebuilding = _Rebuild(settings, await reader.identity(), reader, consumer, connection, progress)
            await rebuilding.prepare()
            await rebuilding.fold_all()
            if compare:
                await rebuilding.compare()
            if swap:
                await rebuilding.swap()
            return rebuilding.report
    finally:
        await consumer.stop()
        await reader.close()


def _migrate_live(settings: Settings) -> None:
    with connect_blocking(settings.postgres, application="serverchange rebuild") as connection:
        migrate(connection)


async def _connect(settings: Settings) -> AsyncConnection:
    connection = await connect(
        settings.postgres, application="serverchange rebuild", statement_timeout_s=STATEMENT_TIMEOUT_S
    )
    # Folding between two statements of the swap may take longer than an idle worker may hold its locks.
    await connection.execute("SET idle_in_transaction_session_timeout = '60s'")
    await connection.execute("SET search_path = rebuild, public")
    return connection


class _Rebuild:
    """One run: the connection writes to the shadow tables (they stand first in its search path)."""

    def __init__(
        self,
        settings: Settings,
        topic: TopicIdentity,
        reader: LogReader,
        consumer: AIOKafkaConsumer,
        connection: AsyncConnection,
        progress: Progress | None,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._reader = reader
        self._consumer = consumer
        self._connection = connection
        self._progress = progress
        self._refused: dict[int, dict[int, RefusedByPostgres]] = {}
        self._total = 0
        self.report = RebuildReport()

    async def prepare(self) -> None:
        """Make the shadow tables, or keep those of an earlier run of the same rules on the same topic."""
        if not await self._shadow_fits():
            await self._connection.execute("DROP SCHEMA IF EXISTS rebuild CASCADE")
            await self._connection.execute("CREATE SCHEMA rebuild")
            await asyncio.to_thread(_migrate_shadow, self._settings)
            await projection.create_positions(
                self._connection,
                range(self._topic.partitions),
                topic_id=self._topic.topic_id,
                rules_version=RULES_VERSION,
            )
        for partition, offsets in (await _load_live_refused(self._connection, self._topic.topic_id)).items():
            self._refused[partition] = {
                offset: RefusedByPostgres(reason, sqlstate) for offset, (reason, sqlstate) in offsets.items()
            }

    async def _shadow_fits(self) -> bool:
        cursor = await self._connection.execute(_SQL["shadow_exists"])
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return False
        positions = await projection.load_positions(self._connection)
        return len(positions) == self._topic.partitions and all(
            one.topic_id == self._topic.topic_id and one.rules_version == RULES_VERSION for one in positions
        )

    async def fold_all(self) -> None:
        """Fold every partition up to where the live tables stand, or to the log's end where they are of another log."""
        targets = await self._targets(await self._live_positions())
        shadow = {one.partition: one for one in await projection.load_positions(self._connection)}
        self._total = sum(max(0, targets[p] - shadow[p].position) for p in targets)
        started = time.monotonic()
        for partition, target in sorted(targets.items()):
            await self._fold_partition(partition, target)
        self.report.seconds += time.monotonic() - started

    async def _live_positions(self, connection: AsyncConnection | None = None) -> list[LogPosition]:
        cursor = await (connection or self._connection).execute(_SQL["live_positions"])
        return [LogPosition(*row) for row in await cursor.fetchall()]

    async def _targets(self, live: Sequence[LogPosition]) -> dict[int, int]:
        ends = await self._reader.ends(range(self._topic.partitions))
        self.report.missing_before = {partition: one.low for partition, one in ends.items() if one.low > 0}
        targets = {partition: one.end for partition, one in ends.items()}
        same_partitions = len(live) == self._topic.partitions
        for position in live:
            ours = position.topic_id == self._topic.topic_id and same_partitions
            if ours and position.position <= targets[position.partition]:
                targets[position.partition] = position.position
        return targets

    async def _fold_partition(self, partition: int, target: int) -> None:
        """Fold one partition from where its shadow stands up to `target`, a chunk a transaction."""
        position = (await projection.load_positions(self._connection, [partition]))[0]
        if position.position >= target:
            return
        known = await self._load_shadow_states(partition) if position.position else {}
        log = PartitionLog(
            self._topic.name, self._topic.topic_id, partition, self._topic.partitions, position.generation
        )
        chunk = _Chunk(log, stored=set(known), known=known, refused=self._refused.get(partition))
        async for records, behind in self._read(partition, position.position, target):
            chunk.fold(records, behind)
            self.report.records += len(records)
            if self._progress is not None:
                self._progress(self.report.records, max(self._total, self.report.records))
            if chunk.records >= CHUNK_RECORDS:
                await chunk.store(self._connection)
        await chunk.store(self._connection)

    async def _load_shadow_states(self, partition: int) -> dict[str, ChannelState]:
        states, _ = await projection.load_states_in(self._connection, [partition])
        return {state.channel: state for state in states}

    async def _read(self, partition: int, start: int, end: int) -> AsyncIterator[tuple[list[Any], int]]:
        """Yield the records from `start` up to `end`, and each time the offset behind what was read."""
        tp = TopicPartition(self._topic.name, partition)
        self._consumer.assign([tp])
        self._consumer.seek(tp, start)
        moved_at = time.monotonic()
        while (behind := await self._consumer.position(tp)) < end:
            fetched = await self._consumer.getmany(tp, timeout_ms=500)
            records = fetched.get(tp, [])
            after = await self._consumer.position(tp)
            if after == behind:
                if time.monotonic() - moved_at > STANDSTILL_S:
                    raise RebuildError(f"{tp.topic}/{partition}: no record came for {STANDSTILL_S:.0f} s at {behind}")
                continue
            moved_at = time.monotonic()
            if records and records[-1].offset >= end:
                records = [record for record in records if record.offset < end]
            yield records, min(after, end)

    async def compare(self) -> None:
        """Compare with the live tables at one instant: a snapshot first, then the shadow is folded up to it."""
        async with await connect(
            self._settings.postgres, application="serverchange compare", statement_timeout_s=STATEMENT_TIMEOUT_S
        ) as live:
            await live.execute("SET idle_in_transaction_session_timeout = 0")
            await live.set_isolation_level(IsolationLevel.REPEATABLE_READ)
            async with live.transaction():
                targets = await self._targets(await self._live_positions(live))
                for partition, target in sorted(targets.items()):
                    await self._fold_partition(partition, target)
                self.report.differences = await _compare_tables(live, self._connection)

    async def swap(self) -> None:
        """Take the live tables' place, in one transaction."""
        await self.fold_all()
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL lock_timeout = '60s'")
            await self._connection.execute(_SQL["lock_live"])
            live = await self._live_positions()
            for partition, target in sorted((await self._targets(live)).items()):
                await self._fold_partition(partition, target)
            generation = max((one.generation for one in live), default=1)
            self.report.altered = await self._count("channels_that_differ") + await self._count("changes_that_differ")
            if self.report.altered and live:
                generation += 1
                await self._connection.execute(_SQL["raise_generation"], {"generation": generation})
                await self._connection.execute(_SQL["note_republications"])
            else:
                await self._connection.execute(_SQL["keep_generations"])
            await self._connection.execute(_SQL["keep_republications"])
            await self._connection.execute(_SQL["finish_positions"], {"generation": generation})
            await self._connection.execute(_SQL["swap_tables"])
        self.report.swapped, self.report.generation = True, generation

    async def _count(self, query: str) -> int:
        cursor = await self._connection.execute(_SQL[query])
        row = await cursor.fetchone()
        return int(row[0]) if row else 0


def _migrate_shadow(settings: Settings) -> None:
    with connect_blocking(settings.postgres, application="serverchange rebuild") as connection:
        connection.execute("SET search_path = rebuild")
        migrate(connection)


async def _load_live_refused(connection: AsyncConnection, topic_id: str) -> Mapping[int, Mapping[int, tuple[str, str]]]:
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = public")
        return await projection.load_refused(connection, topic_id)


@dataclass(slots=True)
class _Chunk:
    """Records of one partition, folded and not stored yet.

    Attributes:
        known: the states of all channels of the partition.
        stored: channels that have a row.
        touched: channels whose row must be written.
    """

    log: PartitionLog
    known: dict[str, ChannelState]
    stored: set[str]
    refused: Mapping[int, RefusedByPostgres] | None
    touched: set[str] = field(default_factory=set)
    folds: list[Fold] = field(default_factory=list)
    records: int = 0
    behind: int | None = None
    last: Any = None

    def fold(self, records: Sequence[Any], behind: int) -> None:
        """Fold records that follow on what was folded before."""
        if records:
            fold = fold_records(decode_records(records), self.log, self.known, self.refused)
            self.known.update(fold.states)
            self.touched.update(fold.states)
            self.folds.append(fold)
            self.last = records[-1]
            self.records += len(records)
        self.behind = behind

    async def store(self, connection: AsyncConnection) -> None:
        """Write the chunk and its position, in one transaction, and start the next."""
        if self.behind is None:
            return
        partition = self.log.partition
        async with connection.transaction():
            await copy_states(connection, partition, [self.known[one] for one in sorted(self.touched - self.stored)])
            rows = [(partition, self.known[one]) for one in sorted(self.touched & self.stored)]
            for first in range(0, len(rows), ROWS_AT_ONCE):
                await projection.store_states(connection, rows[first : first + ROWS_AT_ONCE])
            await copy_changes(connection, itertools.chain.from_iterable(fold.changes for fold in self.folds))
            await copy_dead_letters(connection, itertools.chain.from_iterable(fold.dead_letters for fold in self.folds))
            await self._store_position(connection)
        self.stored |= self.touched
        self.touched, self.folds, self.records, self.behind = set(), [], 0, None

    async def _store_position(self, connection: AsyncConnection) -> None:
        before = (await projection.load_positions(connection, [self.log.partition]))[0]
        digest, offset, appended_ms = before.last_sha256, before.last_offset, before.appended_ms
        if self.last is not None:
            digest = record_sha256(self.last.key, self.last.value, self.last.timestamp)
            offset, appended_ms = self.last.offset, self.last.timestamp
        values = (self.log.partition, self.behind or 0, digest, offset, appended_ms)
        await projection.store_positions(connection, [values])


async def _compare_tables(live: AsyncConnection, shadow: AsyncConnection) -> list[Difference]:
    differences: list[Difference] = []
    for table in ("channels", "changes", "dead_letters"):
        sql = _SQL[f"compared_{table}"]
        async with (
            shadow.transaction(),
            live.cursor(f"live_{table}") as left,
            shadow.cursor(f"shadow_{table}") as right,
        ):
            await left.execute(sql)
            await right.execute(sql)
            async for difference in _merge(table, left, right):
                differences.append(difference)
                if len(differences) >= DIFFERENCES_MAX:
                    return differences
    return differences


async def _merge(table: str, left: Any, right: Any) -> AsyncIterator[Difference]:
    """Yield what differs between two cursors that are sorted by their first column."""
    one, other = await left.fetchone(), await right.fetchone()
    while one is not None or other is not None:
        if one == other:
            one, other = await left.fetchone(), await right.fetchone()
        elif other is None or (one is not None and _before(one[0], other[0])):
            yield Difference(table, one[0], repr(one[1:]), None)
            one = await left.fetchone()
        elif one is None or _before(other[0], one[0]):
            yield Difference(table, other[0], None, repr(other[1:]))
            other = await right.fetchone()
        else:
            yield Difference(table, one[0], repr(one[1:]), repr(other[1:]))
            one, other = await left.fetchone(), await right.fetchone()


def _before(one: str, other: str) -> bool:
    """Order keys as the queries do: names by bytes, the numbers behind a slash as numbers."""
    return _key(one) < _key(other)


def _key(text: str) -> tuple[Any, ...]:
    name, *numbers = text.split("/")
    return (name, *(int(number) for number in numbers))
