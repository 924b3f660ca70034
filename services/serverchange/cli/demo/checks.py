"""Judges a run of the demo from the collected facts; pure.

Every line that the simulator sent and no reader got falls in one of three windows: before our change event
(`lost_undetected`), between the change event and the confirmation on the new side (`lost_in_handover`), or
`lost_otherwise`, which must be empty: then we were in the right room, or had been, and the line is gone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from serverchange.cli.demo.facts import Belief, Facts, Move, Published, SentLine, Stay
from serverchange.cli.demo.timeline import (
    Timeline,
    believed_timelines,
    exposure_minutes,
    round_robin_timelines,
)
from serverchange.events import ChangeKind, Channel, Cluster

CLOCK_GRAIN_S: Final = 0.002
"""Kafka's append times are whole milliseconds, cut off: a change may seem that much older than its cause."""

REACTION_S: Final = 3.0
"""In so long a shard has read a change; on an idle machine it takes 20 ms, under load a second was seen."""

SLOWEST_SHOWN: Final = 3

SETTLED: Final = "settled"

Rooms: TypeAlias = Mapping[tuple[Channel, Cluster], Sequence[Stay]]


class Window(StrEnum):
    """Why a line got lost."""

    UNDETECTED = "undetected"
    IN_HANDOVER = "in handover"
    OTHERWISE = "otherwise"


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of durations in milliseconds, by nearest rank; None where there is nothing to measure."""

    p50: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values_ms: Iterable[float]) -> Spread:
        """Return the percentiles of these values."""
        ordered = sorted(values_ms)
        if not ordered:
            return cls()
        return cls(*(round(ordered[math.ceil(share * len(ordered)) - 1], 1) for share in (0.50, 0.99)))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A channel of which somebody believes something else than the truth."""

    channel: Channel
    truth: Cluster
    postgres: Belief | None
    api: Belief | None
    fold: Belief | None


@dataclass(frozen=True, slots=True)
class Handover:
    """A shard followed a move: change event at `at_s`, confirmed on `cluster` after `elapsed_ms`."""

    channel: Channel
    cluster: Cluster
    at_s: float
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What a run of the demo showed; the field names are those of its JSON report."""

    channels: int
    moves: int
    changes: int
    needless_changes: int
    state_mismatches: tuple[Mismatch, ...]
    mismatch_channel_seconds: float
    changes_missing: int
    changes_out_of_order: int
    chat_sent: int
    chat_received: int
    duplicates: int
    lost_undetected: int
    lost_in_handover: int
    lost_otherwise: tuple[SentLine, ...]
    handover_ms: Spread
    slowest_handovers: tuple[Handover, ...]
    detection_ms: Spread
    budget_violations: Mapping[str, int]
    unjoined_channels: tuple[Channel, ...]
    dead_letters: int
    api_unanswered: int
    lookups: int
    exposure_ours_minutes: float
    exposure_round_robin_minutes: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and the number that decided it."""

    name: str
    found: int
    passed: bool


def judge(facts: Facts) -> Findings:
    """Return what the facts show."""
    believed = believed_timelines(facts)
    detected, needless = match_changes(facts.moves, facts.changes)
    rooms = stays_by_room(facts.stays)
    lost = [
        (line, window_of(line, believed, rooms))
        for line in facts.lines
        if (line.channel, line.number) not in facts.received
    ]
    windows = [window for _, window in lost]
    handovers = list(find_handovers(facts.changes, rooms))
    return Findings(
        channels=len(facts.tracked),
        moves=len(facts.moves),
        changes=len(facts.changes),
        needless_changes=needless,
        state_mismatches=tuple(find_mismatches(facts)),
        mismatch_channel_seconds=round(facts.mismatch_channel_seconds, 1),
        changes_missing=count_missing(facts),
        changes_out_of_order=count_out_of_order(facts.changes),
        chat_sent=len(facts.lines),
        chat_received=len(facts.received),
        duplicates=sum(count - 1 for count in facts.received.values()),
        lost_undetected=windows.count(Window.UNDETECTED),
        lost_in_handover=windows.count(Window.IN_HANDOVER),
        lost_otherwise=tuple(line for line, window in lost if window is Window.OTHERWISE),
        handover_ms=Spread.of(one.elapsed_ms for one in handovers),
        slowest_handovers=tuple(sorted(handovers, key=lambda one: -one.elapsed_ms)[:SLOWEST_SHOWN]),
        detection_ms=Spread.of(detected),
        budget_violations={kind: count for kind, count in facts.violations.items() if count},
        unjoined_channels=tuple(
            channel for channel in facts.tracked if (channel, facts.truth[channel]) not in facts.joined
        ),
        dead_letters=facts.dead_letters,
        api_unanswered=facts.api_unanswered,
        lookups=facts.lookups,
        exposure_ours_minutes=round(exposure_minutes(facts, believed), 1),
        exposure_round_robin_minutes=round(exposure_minutes(facts, round_robin_timelines(facts)), 1),
        elapsed_s=round(facts.elapsed_s, 1),
    )


def check(findings: Findings) -> list[Check]:
    """Return every check with its result; the run is good only if all passed."""
    must_be_zero = (
        ("state mismatches at rest", len(findings.state_mismatches)),
        ("changes missing", findings.changes_missing),
        ("changes out of order", findings.changes_out_of_order),
        ("duplicate lines", findings.duplicates),
        ("lines lost otherwise", len(findings.lost_otherwise)),
        ("budget violations", sum(findings.budget_violations.values())),
        ("unjoined channels", len(findings.unjoined_channels)),
        ("dead letters", findings.dead_letters),
    )
    accounted = (
        findings.chat_received
        + findings.lost_undetected
        + findings.lost_in_handover
        + len(findings.lost_otherwise)
        - findings.chat_sent
    )
    must_be_some = (("moves", findings.moves), ("changes", findings.changes), ("chat lines", findings.chat_received))
    return [
        *(Check(name, found, found == 0) for name, found in must_be_zero),
        Check("lines unaccounted for", accounted, accounted == 0),
        *(Check(f"{name} seen", found, found > 0) for name, found in must_be_some),
    ]


def find_mismatches(facts: Facts) -> Iterator[Mismatch]:
    """Yield the channels that PostgreSQL, the API or our own fold have elsewhere than the ledger, or unsettled."""
    for channel in facts.tracked:
        truth = facts.truth[channel]
        beliefs = facts.rows.get(channel), facts.answers.get(channel), facts.folded.get(channel)
        if any(belief != Belief(truth, SETTLED) for belief in beliefs):
            yield Mismatch(channel, truth, *beliefs)


def match_changes(moves: Sequence[Move], changes: Sequence[Published]) -> tuple[list[float], int]:
    """Return how long each noticed move took to be noticed (ms), and how many changes had no new move behind them.

    A change belongs to the latest move to its cluster that came before it; a second change of one move is needless,
    and so is one without a move, except the first of a channel.
    """
    by_target: dict[tuple[Channel, Cluster | None], list[Move]] = defaultdict(list)
    for move in moves:
        by_target[move.channel, move.cluster].append(move)
    noticed: set[Move] = set()
    detected_ms, needless = [], 0
    for change in changes:
        if change.what is not ChangeKind.MOVED:
            continue
        before = [m for m in by_target[change.channel, change.cluster] if m.at_s <= change.at_s + CLOCK_GRAIN_S]
        if before and before[-1] not in noticed:
            noticed.add(before[-1])
            detected_ms.append(max(0.0, change.at_s - before[-1].at_s) * 1000.0)
        else:
            needless += 1
    return detected_ms, needless


def stays_by_room(stays: Iterable[Stay]) -> Rooms:
    """Return the stays of our readers' links by channel and cluster."""
    rooms: dict[tuple[Channel, Cluster], list[Stay]] = defaultdict(list)
    for stay in stays:
        rooms[stay.channel, stay.cluster].append(stay)
    return rooms


def confirms(stay: Stay, changed_s: float) -> bool:
    """Return whether a stay on the new side is the confirmation that a handover begun at `changed_s` waits for.

    It began later, or we were in the room already and stayed. Left within `REACTION_S`, it is what an earlier
    handover left behind: its old side, parted before the shard could have read of the change.
    """
    return stay.from_s >= changed_s or stay.until_s > changed_s + REACTION_S


def find_handovers(changes: Sequence[Published], rooms: Rooms) -> Iterator[Handover]:
    """Yield each move's handover, from its change event to the confirmation on the new side (0 ms: joined already).

    A move that the next one overtook before its confirmation is no handover.
    """
    following: dict[Channel, float] = {}
    for change in sorted(changes, key=lambda one: one.at_s, reverse=True):
        until_s = following.get(change.channel, math.inf)
        if change.what is not ChangeKind.LABELLED:
            following[change.channel] = change.at_s
        if change.what is not ChangeKind.MOVED or change.cluster is None:
            continue
        confirmed_s = min(
            (
                max(stay.from_s, change.at_s)
                for stay in rooms.get((change.channel, change.cluster), ())
                if confirms(stay, change.at_s) and stay.from_s < until_s
            ),
            default=None,
        )
        if confirmed_s is not None:
            elapsed_ms = (confirmed_s - change.at_s) * 1000.0
            yield Handover(change.channel, change.cluster, change.at_s, elapsed_ms)


def window_of(line: SentLine, believed: Mapping[Channel, Timeline], rooms: Rooms) -> Window:
    """Return why nobody got this line."""
    if line.reached:
        return Window.OTHERWISE
    timeline = believed.get(line.channel)
    if timeline is None or timeline.at(line.at_s) != line.cluster:
        return Window.UNDETECTED
    changed_s = timeline.since(line.at_s)
    stays = rooms.get((line.channel, line.cluster), ())
    was_there = any(stay.from_s <= line.at_s and confirms(stay, changed_s) for stay in stays)
    return Window.OTHERWISE if was_there else Window.IN_HANDOVER


def count_missing(facts: Facts) -> int:
    """Return how many changes that our own fold decided are not on `cluster-changes`, or say another cluster."""
    published = {(change.channel, change.version): change.cluster for change in facts.changes}
    missing = object()
    return sum(1 for one in facts.decided if published.get((one.channel, one.version), missing) != one.cluster)


def count_out_of_order(changes: Sequence[Published]) -> int:
    """Return how many records do not follow the one before of their channel: a repeat, a step back."""
    last: dict[Channel, tuple[int, int]] = {}
    wrong = 0
    for change in changes:
        order = change.generation, change.version
        if order <= last.get(change.channel, (0, 0)):
            wrong += 1
        last[change.channel] = max(order, last.get(change.channel, (0, 0)))
    return wrong
