"""The worker: what Faust fetched goes through the one transaction; what stands in the way is retried, split or told.

Errors by what to do about them (PostgreSQL's SQLSTATE classes): serialization failures and deadlocks are retried at
once; a lost connection, a full disk or a server that shuts down with back-off, without end, while /readyz says so;
data that PostgreSQL refuses is a bug of ours and becomes a dead letter, found by splitting the batch; anything else
ends the process, since its position is durable and a crash is free.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import psycopg
from psycopg import errors

from serverchange.adapters import metrics
from serverchange.adapters.kafka.log_identity import TopicIdentity
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import Settings
from serverchange.adapters.tracing import SpanName, is_tracing, record_span
from serverchange.materializer.fault_points import reach
from serverchange.materializer.folding import RefusedByPostgres, decode_records
from serverchange.materializer.log_matching import LogReader, match_log
from serverchange.materializer.outbox import Outbox
from serverchange.materializer.runs import Fetched, Run
from serverchange.materializer.transaction import Applied, DecodedRun, apply_runs
from serverchange.tracker.channel_state import RULES_VERSION

_log = get_logger("materializer")

SEEK_TIMEOUT_S: Final = 15.0
"""A positioning must end or raise well within Faust's `broker_request_timeout` (30 s): later, its recovery task
dies and the worker is a zombie that never consumes."""

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
AT_ONCE_RETRIES_MAX: Final = 20
"""Serialization failures and deadlocks in a row before they, too, wait."""

_AT_ONCE: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_DATA: Final = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)


class RulesDifferError(Exception):
    """The tables were made by other rules; they are not this release's fold until `serverchange rebuild` has run."""


class Worker:
    """Applies fetches to Postgres. One task calls `apply`; Faust's drain loop calls `position`.

    Attributes:
        stopped: partitions whose log is not the one that was folded, with the reason; nothing of them is applied.
        lost: partitions to position anew; the transport empties it.
        owned: partitions of the present assignment.
        applied_at: monotonic time of the last commit, for the progress watchdog.
    """

    def __init__(self, settings: Settings, topic: TopicIdentity, outbox: Outbox, readiness: Readiness) -> None:
        self._settings = settings
        self._topic = topic
        self._outbox = outbox
        self._readiness = readiness
        self._connection: AsyncConnection | None = None
        self._refused: dict[int, dict[int, RefusedByPostgres]] = defaultdict(dict)
        self.reader = LogReader(settings.kafka, topic.name, client_id=settings.process.name)
        self.stopped: dict[int, str] = {}
        self.lost: set[int] = set()
        self.owned: frozenset[int] = frozenset()
        self.applied_at = time.monotonic()

    async def position(self, partitions: frozenset[int]) -> Mapping[int, int]:
        """Return the next offset to fold of each partition whose log matches; the others stay unread.

        Raises:
            TimeoutError: Postgres or Kafka did not answer in time; the process must end and start anew.
            RulesDifferError: the tables are not of our rules.
        """
        async with asyncio.timeout(SEEK_TIMEOUT_S):
            async with await connect(self._settings.postgres, application=self._name("seek")) as connection:
                await projection.create_positions(
                    connection, partitions, topic_id=self._topic.topic_id, rules_version=RULES_VERSION
                )
                positions = await projection.load_positions(connection, partitions)
            reach("seek")
            refuse_other_rules(positions)
            reasons = await match_log(self.reader, await self.reader.identity(), positions, digests=True)
        for partition in partitions:
            self.judge(partition, reasons.get(partition))
        return {one.partition: one.position for one in positions if one.partition not in reasons}

    def judge(self, partition: int, reason: str | None) -> None:
        """Stop a partition for `reason`, or let it run (again) where there is none, or where it is no longer ours."""
        part = f"log/{partition}"
        if reason is None or partition not in self.owned:
            if self.stopped.pop(partition, None) is not None:
                self.lost.add(partition)
            self._readiness.found(part)
        else:
            if self.stopped.get(partition) != reason:
                _log.error(LogEvent.LOG_MISMATCH_FOUND, partition=partition, reason=reason)
                self.lost.add(partition)  # positioning it anew is what stops its fetches
            self.stopped[partition] = reason
            self._readiness.wait_for(part, reason)

    def judge_topic(self, topic: TopicIdentity) -> None:
        """Say that the topic is another than at the start, which only a restart can judge anew."""
        if topic.topic_id == self._topic.topic_id:
            self._readiness.found("log")
        else:
            self._readiness.wait_for(
                "log",
                f"topic {topic.name} was made anew (id {topic.topic_id}, ours was {self._topic.topic_id}); restore it, "
                "or start over with an empty database",
            )

    def assign(self, partitions: frozenset[int]) -> None:
        """Take note of a new assignment, complete and positioned."""
        for partition in self.owned - partitions:
            self.stopped.pop(partition, None)
            self._readiness.found(f"log/{partition}")
        self.owned = partitions
        self.applied_at = time.monotonic()
        metrics.PARTITIONS_OWNED.set(len(partitions))
        self._outbox.assign(partitions)

    async def apply(self, fetched: Fetched) -> None:
        """Apply one fetch; returns once Postgres has it, however long that takes.

        Raises:
            Exception: a bug, or an error of Postgres that no retry mends.
        """
        runs = await self._examine([run for run in fetched.runs if run.partition not in self.stopped])
        decoded = [DecodedRun(run.partition, run.start, decode_records(run.records), run.next) for run in runs]
        if decoded:
            await self._apply_or_split(decoded)

    async def _examine(self, runs: Sequence[Run]) -> list[Run]:
        """Stop the partitions of runs that came unasked or have holes, unless the log proves to be the one folded."""
        doubtful = [run.partition for run in runs if _came_unasked(run) or _has_hole(run)]
        if not doubtful:
            return list(runs)
        positions = await self._load_positions(doubtful)
        reasons = await match_log(self.reader, self._topic, positions, digests=True)
        for partition in doubtful:
            self.judge(partition, reasons.get(partition))
        return [run for run in runs if run.partition not in reasons]

    async def _load_positions(self, partitions: Sequence[int]) -> list[projection.LogPosition]:
        connection = await self._connected()
        return await projection.load_positions(connection, partitions)

    async def _apply_or_split(self, runs: Sequence[DecodedRun]) -> None:
        try:
            applied = await self._apply_retrying(runs)
        except _DATA as error:
            records = sum(len(run.decoded) for run in runs)
            _log.warning(LogEvent.BATCH_SPLIT, records=records, sqlstate=error.sqlstate, error=str(error).strip())
            if records == 1:
                self._refuse_record(runs, error)
                await self._apply_or_split(runs)
                return
            for half in _halves(runs):
                await self._apply_or_split(half)
        else:
            self._note(applied)

    def _refuse_record(self, runs: Sequence[DecodedRun], error: psycopg.Error) -> None:
        """Make a dead letter of the one record that PostgreSQL refuses.

        Raises:
            psycopg.Error: it was refused as a dead letter, too.
        """
        run = next(run for run in runs if run.decoded)
        offset = run.decoded[0].record.offset
        if offset in self._refused[run.partition]:
            raise error
        reason = f"PostgreSQL refused it: {str(error).strip()}"
        self._refused[run.partition][offset] = RefusedByPostgres(reason, error.sqlstate)

    async def _apply_retrying(self, runs: Sequence[DecodedRun]) -> Applied:
        """Apply until Postgres has it or refuses the data; an unknown commit is settled by reading the position."""
        failures = 0
        while True:
            try:
                connection = await self._connected()
                started = time.monotonic()
                applied = await apply_runs(connection, self._topic, runs, datetime.now(UTC), self._refused)
            except _AT_ONCE as error:
                failures += 1
                _log.info(LogEvent.BATCH_RETRIED, sqlstate=error.sqlstate, failures=failures)
                if failures > AT_ONCE_RETRIES_MAX:
                    await _back_off(failures)
            except _DATA:
                raise
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                failures += 1
                self._lose_postgres(error)
                await _back_off(failures)
            else:
                self._readiness.found("postgres")
                metrics.BATCH_SECONDS.observe(time.monotonic() - started)
                return applied

    async def _connected(self) -> AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._settings.postgres, application=self._name("fold"))
        return self._connection

    def _lose_postgres(self, error: psycopg.Error) -> None:
        text = str(error).strip() or type(error).__name__
        _log.warning(LogEvent.POSTGRES_LOST, part="fold", sqlstate=error.sqlstate, error=text)
        if isinstance(error, errors.LockNotAvailable):
            return  # another worker is at work: no outage
        self._readiness.wait_for("postgres", text)

    def _note(self, applied: Applied) -> None:
        self.applied_at = time.monotonic()
        if is_tracing():
            _trace(applied.traced)
        self.lost |= applied.refused & self.owned
        metrics.RECORDS_FOLDED.inc(applied.records)
        metrics.DEAD_LETTERS.inc(applied.dead_letters)
        for what in set(applied.changes):
            metrics.CHANGES_DECIDED.labels(what=what).inc(applied.changes.count(what))
        for hole in applied.holes:
            metrics.LOG_HOLES.inc(hole.next_offset - hole.first_offset)
            _log.warning(
                LogEvent.LOG_HOLE_PASSED, partition=hole.partition, first=hole.first_offset, next=hole.next_offset
            )
        if applied.touched:
            self._outbox.nudge(applied.touched)
        _log.debug(LogEvent.BATCH_APPLIED, records=applied.records, refused=sorted(applied.refused))

    def _name(self, part: str) -> str:
        return f"{self._settings.process.name} {part}"

    async def close(self) -> None:
        """Close what is open."""
        await self.reader.close()
        if self._connection is not None:
            await self._connection.close()


def refuse_other_rules(positions: Sequence[projection.LogPosition]) -> None:
    """Refuse tables that other rules made.

    Raises:
        RulesDifferError: says which rules, and what to do.
    """
    for position in positions:
        if position.rules_version != RULES_VERSION:
            raise RulesDifferError(
                f"the tables were made by rules {position.rules_version}, this release has rules {RULES_VERSION}: "
                "run serverchange rebuild --swap, then start again"
            )


def _trace(rows: Sequence[projection.ChangeRow]) -> None:
    """Record, of each change, the time from the append of the record that decided it to the commit just done."""
    for row in rows:
        record_span(
            SpanName.FOLD,
            parent=row.traceparent,
            started_s=row.change.since_ms / 1000,
            ended_s=time.time(),
            attributes={
                "channel": row.change.channel,
                "cluster": row.change.cluster,
                "version": row.change.version,
                "partition": row.partition,
                "offset": row.offset,
            },
        )


def _came_unasked(run: Run) -> bool:
    return run.start is not None and (run.next < run.start or (bool(run.records) and run.records[0].offset < run.start))


def _has_hole(run: Run) -> bool:
    return run.start is not None and run.next - run.start > len(run.records)


def _halves(runs: Sequence[DecodedRun]) -> tuple[list[DecodedRun], list[DecodedRun]]:
    """Split a batch in two, by partitions while there are several, then by offset; the order a partition stays."""
    runs = [run for run in runs if run.decoded]
    if len(runs) > 1:
        middle = len(runs) // 2
        return list(runs[:middle]), list(runs[middle:])
    run, middle = runs[0], len(runs[0].decoded) // 2
    first, second = run.decoded[:middle], run.decoded[middle:]
    behind = first[-1].record.offset + 1
    return [DecodedRun(run.partition, run.start, first, behind)], [DecodedRun(run.partition, behind, second, run.next)]


async def _back_off(failures: int) -> None:
    longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 10))
    await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  (jitter, no secret)
