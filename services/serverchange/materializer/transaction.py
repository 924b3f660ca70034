"""The one transaction of a batch: Postgres is the fold of the log up to `log_position`, at every instant.

Order matters: the positions are locked first, so that the states read after it are those of that position, and what
another worker has applied meanwhile is dropped by contiguity. Nothing outside the transaction is trusted: not Faust's
offsets, not what this process wrote before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from serverchange.adapters.kafka.log_identity import TopicIdentity, record_sha256
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.projection import ChangeRow, HoleRow, LogPosition
from serverchange.materializer.fault_points import reach
from serverchange.materializer.folding import Decoded, Fold, PartitionLog, RefusedByPostgres, fold_records
from serverchange.tracker.channel_state import ChannelState

HOLE_MARKERS: Final = "markers"

Refused: TypeAlias = Mapping[int, Mapping[int, RefusedByPostgres]]
"""By partition and offset: records that PostgreSQL could not hold."""


@dataclass(frozen=True, slots=True)
class DecodedRun:
    """A `Run` whose records are decoded: nothing lies between `start` and the last record but what is here."""

    partition: int
    start: int | None
    decoded: Sequence[Decoded]
    next: int


@dataclass(slots=True)
class Applied:
    """What one transaction did.

    Attributes:
        records: records folded now (those folded before are not counted).
        changes: what changed, as `ChangeKind` values, one an entry.
        dead_letters: records refused.
        touched: partitions whose outbox has work.
        refused: partitions whose run was not contiguous: position them anew.
        holes: offsets that held no record and were passed.
        traced: the changes that belong to a trace.
    """

    records: int = 0
    changes: list[str] = field(default_factory=list)
    dead_letters: int = 0
    touched: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    holes: list[HoleRow] = field(default_factory=list)
    traced: list[ChangeRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Step:
    """The records of one partition that this transaction folds."""

    position: LogPosition
    decoded: Sequence[Decoded]
    next: int
    holes: tuple[HoleRow, ...]


async def apply_runs(
    connection: AsyncConnection,
    topic: TopicIdentity,
    runs: Sequence[DecodedRun],
    now: datetime,
    refused: Refused | None = None,
) -> Applied:
    """Fold the runs into the tables, in one transaction; returns once it is committed.

    `now` is for the notes on holes alone. `refused` names, by partition and offset, records that PostgreSQL could
    not hold.

    Raises:
        psycopg.Error: nothing was applied, unless the connection broke during the commit: read the position again.
    """
    applied = Applied()
    async with connection.transaction():
        positions = await projection.lock_positions(connection, {run.partition for run in runs})
        reach("positions-locked")
        steps = [step for run in runs if (step := _plan_step(run, positions.get(run.partition), topic, applied))]
        if not steps:
            return applied
        states = await projection.load_channels(connection, _channels(steps))
        folds = [_fold_step(step, topic, states, refused or {}) for step in steps]
        await _store(connection, steps, folds, now)
        reach("before-commit")
    reach("after-commit")
    for step, fold in zip(steps, folds, strict=True):
        _count(applied, step, fold)
    return applied


def _plan_step(run: DecodedRun, position: LogPosition | None, topic: TopicIdentity, applied: Applied) -> _Step | None:
    """Return what of a run comes next, or None; a run that does not connect to the position is refused."""
    if position is None or position.topic_id != topic.topic_id or run.start is None or run.start > position.position:
        applied.refused.add(run.partition)
        return None
    decoded = run.decoded
    if decoded and decoded[0].record.offset < position.position:
        decoded = [one for one in decoded if one.record.offset >= position.position]
    if run.next <= position.position:
        return None
    return _Step(position, decoded, run.next, _holes(position, decoded, run.next))


def _holes(position: LogPosition, decoded: Sequence[Decoded], behind: int) -> tuple[HoleRow, ...]:
    if behind - position.position == len(decoded):
        return ()
    holes, expected = [], position.position
    for offset in [*(one.record.offset for one in decoded), behind]:
        if offset > expected:
            holes.append(HoleRow(position.partition, expected, offset, HOLE_MARKERS))
        expected = offset + 1
    return tuple(holes)


def _channels(steps: Sequence[_Step]) -> list[str]:
    return list({one.channel for step in steps for one in step.decoded if one.channel is not None})


def _fold_step(
    step: _Step,
    topic: TopicIdentity,
    states: Mapping[int, Mapping[str, ChannelState]],
    refused: Refused,
) -> Fold:
    position = step.position
    log = PartitionLog(topic.name, topic.topic_id, position.partition, topic.partitions, position.generation)
    return fold_records(step.decoded, log, states.get(position.partition, {}), refused.get(position.partition))


async def _store(connection: AsyncConnection, steps: Sequence[_Step], folds: Sequence[Fold], now: datetime) -> None:
    whole: list[tuple[int, ChannelState]] = []
    seqs: list[tuple[str, int]] = []
    for fold in folds:
        states, only_seqs = fold.changed_states()
        whole.extend((fold.log.partition, state) for state in states)
        seqs.extend(only_seqs)
    await projection.store_states(connection, whole)
    await projection.store_seqs(connection, seqs)
    await projection.store_changes(connection, [row for fold in folds for row in fold.changes])
    await projection.store_dead_letters(connection, [row for fold in folds for row in fold.dead_letters])
    for step in steps:
        for hole in step.holes:
            await projection.store_hole(connection, hole, now)
    await projection.store_positions(connection, [_next_position(step) for step in steps])


def _next_position(step: _Step) -> tuple[int, int, bytes | None, int | None, int]:
    before = step.position
    if not step.decoded:
        return before.partition, step.next, before.last_sha256, before.last_offset, before.appended_ms
    last = step.decoded[-1].record
    digest = record_sha256(last.key, last.value, last.timestamp)
    return before.partition, step.next, digest, last.offset, last.timestamp


def _count(applied: Applied, step: _Step, fold: Fold) -> None:
    applied.records += len(step.decoded)
    applied.changes.extend(row.change.what.value for row in fold.changes)
    applied.traced.extend(row for row in fold.changes if row.traceparent is not None)
    applied.dead_letters += len(fold.dead_letters)
    applied.holes.extend(step.holes)
    if fold.changes or fold.dead_letters:
        applied.touched.add(step.position.partition)
