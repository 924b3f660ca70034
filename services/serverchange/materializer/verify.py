"""Proves that the tables are the fold of the log, and that `cluster-changes` is a snapshot of them.

Shares nothing with the worker but the contracts (`serverchange.events`) and the pure rule: own consumers
(kafka-python), own queries, own comparison, so that a fault of the worker's reading, batching or writing cannot hide.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg
from kafka import TopicPartition
from kafka.partitioner.default import murmur2
from psycopg import IsolationLevel

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.postgres.connections import connect_blocking
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.events import CHANNEL_PATTERN, ClusterChanged, Rejected, parse_change, parse_channel_event
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES, Topic
from serverchange.tracker.channel_state import Change, ChannelState, fold

FAULTS_MAX: Final = 20
"""Faults told; the rest are counted."""

OUTBOX_WAIT_S: Final = 10.0
"""How long the newest changes may take to reach `cluster-changes`; the outbox needs a second."""

POLL_MS: Final = 1_000
STANDSTILL_S: Final = 30.0
STATEMENT_TIMEOUT_S: Final = 600.0


class VerifyError(Exception):
    """Kafka or the tables could not be read to their end; nothing is proved."""


@dataclass(slots=True)
class Report:
    """What was compared and what differs; `ok` is the verdict.

    Attributes:
        records: of the log, folded.
        channels: states compared.
        changes: published changes compared.
        faults: the first few differences, each a sentence.
        fault_count: all of them.
    """

    records: int = 0
    channels: int = 0
    changes: int = 0
    dead_letters: int = 0
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    @property
    def ok(self) -> bool:
        """Whether tables, log and published changes agree."""
        return not self.fault_count

    def fault(self, text: str) -> None:
        """Note a difference."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(slots=True)
class _Truth:
    """The fold of the log up to the positions of the tables."""

    states: dict[str, ChannelState] = field(default_factory=dict)
    changes: dict[tuple[str, int], tuple[Change, int, int]] = field(default_factory=dict)
    refused: dict[tuple[int, int], str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Tables:
    """The tables at one instant."""

    positions: dict[int, tuple[int, int]]
    states: dict[str, tuple[Any, ...]]
    changes: dict[tuple[str, int], tuple[Any, ...]]
    dead_letters: dict[tuple[int, int], tuple[str, str | None]]


def run(settings: Settings, *, progress: Callable[[int, int], None] | None = None) -> Report:
    """Compare tables, log and published changes; takes as long as reading the whole log does.

    Raises:
        VerifyError: Kafka stopped answering.
        psycopg.Error: PostgreSQL could not be read.
    """
    report = Report()
    tables = _read_tables(settings)
    truth = _fold_log(settings.kafka, tables, report, progress)
    _compare_states(truth, tables, report)
    _compare_changes(truth, tables, report)
    _compare_dead_letters(truth, tables, report)
    _compare_published(settings.kafka, truth, report)
    return report


def _read_tables(settings: Settings) -> _Tables:
    with connect_blocking(
        settings.postgres, application="serverchange verify", statement_timeout_s=STATEMENT_TIMEOUT_S
    ) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            positions = _rows(connection, "SELECT partition, position, generation FROM log_position")
            states = _rows(
                connection,
                "SELECT channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts,"
                " version, since_ms, kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence"
                " FROM channel_state",
            )
            changes = _rows(
                connection,
                "SELECT channel, version, what, previous, cluster, since_ms, kind, labels, account, evidence,"
                " partition, log_offset FROM cluster_change",
            )
            letters = _rows(connection, "SELECT partition, log_offset, reason, sqlstate FROM dead_letter")
    return _Tables(
        positions={row[0]: (row[1], row[2]) for row in positions},
        states={row[0]: row for row in states},
        changes={(row[0], row[1]): row for row in changes},
        dead_letters={(row[0], row[1]): (row[2], row[3]) for row in letters},
    )


def _rows(connection: psycopg.Connection[Any], sql: Any) -> list[tuple[Any, ...]]:
    return connection.execute(sql).fetchall()


def _fold_log(
    settings: KafkaSettings, tables: _Tables, report: Report, progress: Callable[[int, int], None] | None
) -> _Truth:
    truth = _Truth()
    ends = {partition: position for partition, (position, _) in tables.positions.items()}
    total = sum(ends.values())
    for record in read_topic(settings, CHANNEL_EVENTS, ends):
        _fold_record(record, truth, tables, len(ends))
        report.records += 1
        if progress is not None and report.records % 10_000 == 0:
            progress(report.records, total)
    return truth


def _fold_record(record: Any, truth: _Truth, tables: _Tables, partitions: int) -> None:
    place = (record.partition, record.offset)
    event: Any
    try:
        event = parse_channel_event(record.key, record.value)
        channel: str | None = event.subject
    except Rejected as rejected:
        event, channel = rejected, _channel_in(record.key)
    reason, sqlstate = tables.dead_letters.get(place, ("", None))
    if sqlstate is not None:
        event = Rejected(reason)
    elif channel is not None and not isinstance(event, Rejected) and not _at_home(record, partitions):
        event, channel = Rejected("misplaced"), None
    state = truth.states.get(channel) if channel is not None else None
    folded = fold(state, event, record.timestamp)
    if folded.state is not None and channel is not None:
        truth.states[channel] = folded.state
    if folded.refused is not None:
        truth.refused[place] = folded.refused
    if folded.change is not None:
        change = folded.change
        truth.changes[change.channel, change.version] = (change, record.partition, record.offset)
        truth.newest[change.channel] = change.version


def _channel_in(key: bytes | None) -> str | None:
    text = (key or b"").decode("ascii", "replace")
    return text if re.fullmatch(CHANNEL_PATTERN.strip("^$"), text) else None


def _at_home(record: Any, partitions: int) -> bool:
    return bool((murmur2(record.key) & 0x7FFFFFFF) % partitions == record.partition)


def _compare_states(truth: _Truth, tables: _Tables, report: Report) -> None:
    for channel in sorted(truth.states.keys() | tables.states.keys()):
        report.channels += 1
        state, row = truth.states.get(channel), tables.states.get(channel)
        expected = None if state is None else _state_row(state)
        if expected != row:
            report.fault(f"channel {channel}: the log says {expected}, the table {row}")


def _state_row(state: ChannelState) -> tuple[Any, ...]:
    labels = sorted({label for wanting in state.wanting for label in wanting.labels})
    wanting = [[one.service, list(one.labels), one.account] for one in state.wanting]
    return (
        state.channel,
        state.seq,
        state.known_after,
        state.status.value,
        state.cluster,
        state.left_cluster,
        state.left_at_ms,
        state.verified,
        state.doubts,
        state.version,
        state.since_ms,
        state.kind.value,
        labels,
        wanting,
        state.pinned,
        state.room_id,
        state.penalty,
        state.penalty_at_ms,
        list(state.evidence),
    )


def _compare_changes(truth: _Truth, tables: _Tables, report: Report) -> None:
    versions: dict[str, list[int]] = defaultdict(list)
    for channel, version in tables.changes:
        versions[channel].append(version)
    for channel, found in versions.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            report.fault(f"channel {channel}: versions {sorted(found)[:10]} are not 1, 2, 3 …")
    for key in sorted(truth.changes.keys() | tables.changes.keys()):
        report.changes += 1
        expected = _change_row(*truth.changes[key]) if key in truth.changes else None
        if expected != tables.changes.get(key):
            report.fault(f"change {key}: the log says {expected}, the table {tables.changes.get(key)}")


def _change_row(change: Change, partition: int, offset: int) -> tuple[Any, ...]:
    return (
        change.channel,
        change.version,
        change.what.value,
        change.previous,
        change.cluster,
        change.since_ms,
        change.kind.value,
        list(change.labels),
        change.account,
        list(change.evidence),
        partition,
        offset,
    )


def _compare_dead_letters(truth: _Truth, tables: _Tables, report: Report) -> None:
    within = {place for place in tables.dead_letters if place[1] < tables.positions.get(place[0], (0, 0))[0]}
    report.dead_letters = len(within)
    for place in sorted(truth.refused.keys() - within):
        report.fault(f"record {place}: refused ({truth.refused[place]}), but no dead letter")
    for place in sorted(within - truth.refused.keys()):
        report.fault(f"record {place}: a dead letter, but the log has a sound event there")


def _compare_published(settings: KafkaSettings, truth: _Truth, report: Report) -> None:
    """The newest record of each channel is its newest change: the outbox gets a moment for the last of them."""
    deadline = time.monotonic() + OUTBOX_WAIT_S
    while True:
        faults = list(_published_faults(settings, truth))
        if not faults or time.monotonic() > deadline:
            break
        time.sleep(POLL_MS / 1000)
    for fault in faults:
        report.fault(fault)


def _published_faults(settings: KafkaSettings, truth: _Truth) -> Iterator[str]:
    last: dict[str, ClusterChanged] = {}
    found: dict[tuple[str, int], ClusterChanged] = {}
    for record in read_topic(settings, CLUSTER_CHANGES, None):
        try:
            change = parse_change(record.key, record.value)
        except Rejected as rejected:
            yield f"cluster-changes {record.partition}/{record.offset}: {rejected}"
            continue
        last[change.subject] = change
        found[change.subject, change.data.version] = change
    for channel, version in truth.newest.items():
        published = last.get(channel)
        # A worker goes on while we read: a newer version than the snapshot's is no fault, an older one is.
        if published is None or published.data.version < version:
            told = None if published is None else published.data.version
            yield f"channel {channel}: cluster-changes ends at version {told}, the log at {version}"
        elif published.data.version == version and not _same(published, truth.changes[channel, version][0]):
            yield f"channel {channel}: version {version} was published as {published.data}"
    for channel in last.keys() - truth.newest.keys():
        if (channel, 1) not in found:
            yield f"channel {channel}: published, but the log has no change of it"


def _same(published: ClusterChanged, change: Change) -> bool:
    data = published.data
    return (data.what, data.previous, data.cluster, data.kind, data.labels, data.account, data.evidence) == (
        change.what,
        change.previous,
        change.cluster,
        change.kind,
        change.labels,
        change.account,
        change.evidence,
    )


def read_topic(settings: KafkaSettings, topic: Topic, ends: dict[int, int] | None) -> Iterator[Any]:
    """Yield the committed records of a topic, partition by partition, up to `ends` (None: the present end)."""
    consumer = make_consumer(settings, client_id="serverchange-verify", group=None)
    try:
        name = topic_name(settings, topic)
        partitions = consumer.partitions_for_topic(name)
        if not partitions:
            raise VerifyError(f"topic {name} does not exist")
        places = [TopicPartition(name, partition) for partition in sorted(partitions)]
        stops = consumer.end_offsets(places)
        if ends is not None:
            stops = {place: min(ends.get(place.partition, 0), stops[place]) for place in places}
        for place in places:
            yield from _read_partition(consumer, place, stops[place])
    finally:
        consumer.close()


def _read_partition(consumer: Any, place: TopicPartition, end: int) -> Iterable[Any]:
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    moved_at = time.monotonic()
    while (position := consumer.position(place)) < end:
        for record in consumer.poll(timeout_ms=POLL_MS).get(place, []):
            if record.offset < end:
                yield record
        if consumer.position(place) > position:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STANDSTILL_S:
            raise VerifyError(f"{place.topic}/{place.partition}: no record came for {STANDSTILL_S:.0f} s at {position}")
