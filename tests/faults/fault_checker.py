"""Judges a run from what is left: the log, the tables, samples of the tables while they changed, and the topics.

Knows nothing of the worker: it folds the log with the pure rule and its own loop, and compares.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from fault_arena import Arena
from kafka import TopicPartition
from kafka.partitioner.default import murmur2
from psycopg import IsolationLevel

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.events import CHANNEL_PATTERN, Rejected, parse_change, parse_channel_event
from serverchange.materializer.verify import read_topic
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES, DEAD_LETTERS
from serverchange.tracker.channel_state import ChannelState, fold

VIOLATIONS_MAX = 30
COLUMNS = (
    "channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version, since_ms,"
    " pinned, penalty, penalty_at_ms, evidence"
)


@dataclass
class Sample:
    """The tables at one instant."""

    positions: dict[int, int]
    rows: dict[str, tuple[Any, ...]]
    dead_letters: Counter[int]
    changes: Counter[int]


@dataclass
class Sampler:
    """Takes a sample in one snapshot, more than once a second, while PostgreSQL is there."""

    arena: Arena
    every_s: float = 0.5
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and take a last sample."""
        self._stopping.set()
        self._thread.join(30)
        self.samples.append(take_sample(self.arena))

    def _run(self) -> None:
        while not self._stopping.wait(self.every_s):
            try:
                self.samples.append(take_sample(self.arena))
            except psycopg.OperationalError:
                continue


def take_sample(arena: Arena) -> Sample:
    """Return the tables as of one snapshot."""
    with arena.database() as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            positions = dict(connection.execute("SELECT partition, position FROM log_position").fetchall())
            rows = connection.execute(f"SELECT {COLUMNS} FROM channel_state".encode()).fetchall()
            letters = connection.execute("SELECT partition FROM dead_letter").fetchall()
            changes = connection.execute("SELECT partition FROM cluster_change").fetchall()
    return Sample(
        positions,
        {row[0]: tuple(tuple(cell) if isinstance(cell, list) else cell for cell in row) for row in rows},
        Counter(row[0] for row in letters),
        Counter(row[0] for row in changes),
    )


def check(arena: Arena, samples: list[Sample]) -> list[str]:
    """Return every violation, each a sentence; the run must be over and the workers caught up."""
    found: list[str] = []
    for violation in _violations(arena, samples):
        found.append(violation)
        if len(found) >= VIOLATIONS_MAX:
            break
    return found


def _violations(arena: Arena, samples: list[Sample]) -> Iterator[str]:
    log: dict[int, list[Any]] = defaultdict(list)
    for record in read_topic(arena.settings.kafka, CHANNEL_EVENTS, None):
        log[record.partition].append(record)
    yield from _positions(samples)
    expected_changes: dict[str, list[Any]] = defaultdict(list)
    refused: set[tuple[int, int]] = set()
    for partition, records in log.items():
        yield from _fold_partition(partition, records, samples, expected_changes, refused)
    final = samples[-1]
    for partition, records in log.items():
        if final.positions.get(partition, 0) <= records[-1].offset:
            stands = final.positions.get(partition)
            yield f"partition {partition} stands at {stands}, the log's last record at {records[-1].offset}"
    yield from _tables(arena, expected_changes, refused)
    yield from _published(arena, expected_changes)
    yield from _dead_letters(arena, refused)


def _positions(samples: list[Sample]) -> Iterator[str]:
    for before, after in itertools.pairwise(samples):
        for partition, position in before.positions.items():
            if after.positions.get(partition, -1) < position:
                yield f"partition {partition}: the position fell from {position} to {after.positions.get(partition)}"


def _fold_partition(
    partition: int,
    records: list[Any],
    samples: list[Sample],
    expected_changes: dict[str, list[Any]],
    refused: set[tuple[int, int]],
) -> Iterator[str]:
    states: dict[str, ChannelState] = {}
    waiting = sorted((one for one in samples if partition in one.positions), key=lambda one: one.positions[partition])
    letters = changes = at = 0
    for record in [*records, None]:
        offset = records[-1].offset + 1 if record is None else record.offset
        while at < len(waiting) and (record is None or waiting[at].positions[partition] <= offset):
            sample = waiting[at]
            at += 1
            yield from _compare(partition, sample, states)
            if sample.dead_letters[partition] != letters or sample.changes[partition] != changes:
                told = f"{sample.dead_letters[partition]} dead letters, {sample.changes[partition]} changes"
                yield f"{partition}/{sample.positions[partition]}: {told}; the log says {letters}, {changes}"
        if record is None:
            return
        event, channel = _decode(record)
        folded = fold(states.get(channel) if channel else None, event, record.timestamp)
        if folded.state is not None and channel:
            states[channel] = folded.state
        if folded.refused is not None:
            refused.add((partition, record.offset))
            letters += 1
        if folded.change is not None:
            expected_changes[folded.change.channel].append(folded.change)
            changes += 1


def _decode(record: Any) -> tuple[Any, str | None]:
    try:
        event = parse_channel_event(record.key, record.value)
    except Rejected as rejected:
        text = (record.key or b"").decode("ascii", "replace")
        return rejected, text if re.fullmatch(CHANNEL_PATTERN.strip("^$"), text) else None
    return event, event.subject


def _compare(partition: int, sample: Sample, states: dict[str, ChannelState]) -> Iterator[str]:
    rows = {channel: row for channel, row in sample.rows.items() if _home(channel, sample) == partition}
    for channel in rows.keys() | states.keys():
        expected = _row(states[channel]) if channel in states else None
        if rows.get(channel) != expected:
            yield (
                f"{channel} at {partition}/{sample.positions[partition]}: the table has {rows.get(channel)}, "
                f"the log says {expected}"
            )


def _home(channel: str, sample: Sample) -> int:
    return int((murmur2(channel.encode()) & 0x7FFFFFFF) % len(sample.positions))


def _row(state: ChannelState) -> tuple[Any, ...]:
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
        state.pinned,
        state.penalty,
        state.penalty_at_ms,
        state.evidence,
    )


def _tables(arena: Arena, expected: dict[str, list[Any]], refused: set[tuple[int, int]]) -> Iterator[str]:
    with arena.database() as connection:
        rows = connection.execute(
            "SELECT channel, version, what, previous, cluster FROM cluster_change ORDER BY channel, version"
        ).fetchall()
        letters = set(connection.execute("SELECT partition, log_offset FROM dead_letter").fetchall())
    history: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for channel, *rest in rows:
        history[channel].append(tuple(rest))
    for channel in history.keys() | expected.keys():
        wanted = [(one.version, one.what.value, one.previous, one.cluster) for one in expected.get(channel, [])]
        if history.get(channel, []) != wanted:
            yield f"{channel}: history {history.get(channel)}, the log says {wanted}"
    if letters != refused:
        yield f"dead letters differ: {sorted(letters ^ refused)[:10]}"


def _published(arena: Arena, expected: dict[str, list[Any]]) -> Iterator[str]:
    """Readers of committed records see versions 1, 2, 3 … of each channel, each once, in order."""
    published: dict[str, list[tuple[int, str, str | None]]] = defaultdict(list)
    for record in read_topic(arena.settings.kafka, CLUSTER_CHANGES, None):
        change = parse_change(record.key, record.value)
        published[change.subject].append((change.data.version, change.data.what.value, change.data.cluster))
    for channel in published.keys() | expected.keys():
        wanted = [(one.version, one.what.value, one.cluster) for one in expected.get(channel, [])]
        if published.get(channel, []) != wanted:
            versions = [one[0] for one in published.get(channel, [])]
            yield f"{channel}: published versions {versions}, the log says 1 to {len(wanted)}"


def _dead_letters(arena: Arena, refused: set[tuple[int, int]]) -> Iterator[str]:
    told: Counter[tuple[int, int]] = Counter()
    for record in read_topic(arena.settings.kafka, DEAD_LETTERS, None):
        data = json.loads(record.value)["data"]
        told[data["partition"], data["offset"]] += 1
    for place in refused | told.keys():
        if told[place] != (1 if place in refused else 0):
            yield f"record {place}: {told[place]} dead letters published, {int(place in refused)} expected"


def wait_caught_up(arena: Arena, timeout_s: float) -> str | None:
    """Wait until the tables stand at the log's end and everything is published; returns what is missing, or None."""
    deadline = time.monotonic() + timeout_s
    name = topic_name(arena.settings.kafka, CHANNEL_EVENTS)
    consumer = make_consumer(arena.settings.kafka, client_id="faults", group=None)
    try:
        places = [TopicPartition(name, one) for one in consumer.partitions_for_topic(name)]
        ends = {place.partition: end for place, end in consumer.end_offsets(places).items()}
    finally:
        consumer.close()
    while True:
        with arena.database() as connection:
            rows = connection.execute(
                "SELECT p.partition, p.position, EXISTS (SELECT 1 FROM cluster_change c"
                " WHERE c.partition = p.partition AND c.log_offset >= p.published)"
                " OR EXISTS (SELECT 1 FROM dead_letter d"
                " WHERE d.partition = p.partition AND d.log_offset >= p.published) FROM log_position p"
            ).fetchall()
        behind = [(p, position, ends[p]) for p, position, owed in rows if position < ends[p] or owed]
        if rows and not behind:
            return None
        if time.monotonic() > deadline:
            return f"after {timeout_s:.0f} s still behind (partition, position, end): {behind}"
        time.sleep(0.1)
