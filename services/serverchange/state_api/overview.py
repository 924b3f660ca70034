"""Counts the channels of each cluster every few seconds and keeps how that went: what the live page draws.

One pass over the table takes 30 ms for 200,000 channels. It may use a fiftieth of the time at most, so with ten
million channels the counts come every minute or two. Old samples are thinned out: a day of them fits two thousand.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

import psycopg

from serverchange.adapters.budget_standing import standing
from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.fleet import Brake, ShardReport, load_brake, load_reports
from serverchange.adapters.postgres.join_budget import LedgerBudget, load_ledger
from serverchange.adapters.postgres.state import Count, VerifiedCounts, count_channels, count_verification_ages
from serverchange.events import ChangeKind
from serverchange.state_api.change_ring import ChangeRing
from serverchange.state_api.parts import now_ms
from serverchange.state_api.problems import ApiProblem
from serverchange.state_api.reads import BULK_TIMEOUT_S, Reader
from serverchange.views import BudgetView, ClusterCount, OverviewSample, RecentChange, ShardView, VerificationAges

INTERVAL_S: Final = 2.0
SHARE_MAX: Final = 0.02
SAMPLES_MAX: Final = 2_000
RECENT_MAX: Final = 50
AGES_INTERVAL_S: Final = 30.0
RATE_WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Counted:
    """One pass over all channels."""

    at: datetime
    clusters: tuple[ClusterCount, ...]
    unknown: int
    untracked: int


def summarise(counts: Sequence[Count], at: datetime) -> Counted:
    """Return the rows of (cluster, status) as counts of clusters, the largest first."""
    tracked = [count for count in counts if count.status != "untracked"]
    names = {count.cluster for count in tracked if count.cluster}
    clusters = [
        ClusterCount(
            cluster=name,
            channels=sum(count.channels for count in tracked if count.cluster == name),
            moving=sum(count.channels for count in tracked if count.cluster == name and count.status == "moving"),
            unverified=sum(count.unverified for count in tracked if count.cluster == name),
            flapping=sum(count.flapping for count in tracked if count.cluster == name),
        )
        for name in names
    ]
    return Counted(
        at=at,
        clusters=tuple(sorted(clusters, key=lambda one: (-one.channels, one.cluster))),
        unknown=sum(count.channels for count in tracked if not count.cluster),
        untracked=sum(count.channels for count in counts if count.status == "untracked"),
    )


def thinned(samples: Sequence[OverviewSample]) -> list[OverviewSample]:
    """Return the samples with every second one of the older half left out."""
    half = len(samples) // 2
    return [*samples[:half:2], *samples[half:]]


def shard_views(reports: Sequence[ShardReport]) -> tuple[ShardView, ...]:
    """Return what the shards told, as it is answered."""
    return tuple(
        ShardView(
            process=report.process,
            account=report.account,
            wanted=report.wanted,
            confirmed=report.confirmed,
            links=report.links,
            joins_waiting=report.joins_waiting,
            moves_held=report.moves_held,
            fresh=report.fresh,
        )
        for report in reports
    )


def budget_views(
    budgets: Sequence[LedgerBudget], reports: Sequence[ShardReport], window_s: float
) -> tuple[BudgetView, ...]:
    """Return what the ledger and the shards say of each budget."""
    stand = [(budget, standing(budget, reports, window_s)) for budget in budgets]
    return tuple(
        BudgetView(
            account=budget.account,
            kind=budget.kind.value,
            window_s=now.window_s,
            used=now.used,
            leased=now.leased,
            waiting=now.waiting_total,
        )
        for budget, now in stand
    )


class _Looked(NamedTuple):
    """What one look at the database brought."""

    counts: list[Count]
    reports: list[ShardReport]
    brake: Brake | None
    budgets: list[LedgerBudget]
    ages: VerifiedCounts | None


@dataclass(slots=True)
class Overview:
    """The newest counts, what the shards told, and the samples, kept by a task.

    Attributes:
        window_s: in which the platform counts JOINs and logins.
    """

    window_s: float
    counted: Counted | None = None
    verified: VerificationAges | None = None
    budgets: tuple[BudgetView, ...] = ()
    shards: tuple[ShardView, ...] = ()
    held: str | None = None
    samples: list[OverviewSample] = field(default_factory=list)

    async def run(self, reader: Reader) -> None:
        """Count for ever."""
        ages_at_s = float("-inf")

        async def look(connection: AsyncConnection) -> _Looked:
            due = time.monotonic() >= ages_at_s + AGES_INTERVAL_S
            return _Looked(
                await count_channels(connection, now_ms()),
                await load_reports(connection),
                await load_brake(connection),
                await load_ledger(connection),
                await count_verification_ages(connection) if due else None,
            )

        while True:
            started_s = time.monotonic()
            with suppress(psycopg.Error, ApiProblem):  # the board of freshness says it; counts stay as they were
                looked = await reader.read(look, timeout_s=BULK_TIMEOUT_S)
                if looked.ages is not None:
                    ages_at_s, self.verified = started_s, VerificationAges(**looked.ages._asdict())
                self._take(looked)
            await asyncio.sleep(max(INTERVAL_S, (time.monotonic() - started_s) / SHARE_MAX))

    def _take(self, looked: _Looked) -> None:
        self.shards = shard_views(looked.reports)
        self.budgets = budget_views(looked.budgets, looked.reports, self.window_s)
        self.held = None if looked.brake is None else f"{looked.brake.reason} ({looked.brake.held_by})"
        self._note(summarise(looked.counts, datetime.now(UTC)))

    def _note(self, counted: Counted) -> None:
        self.counted = counted
        sample = OverviewSample(at=counted.at, channels={one.cluster: one.channels for one in counted.clusters})
        self.samples.append(sample)
        if len(self.samples) > SAMPLES_MAX:
            self.samples = thinned(self.samples)


class RecentMoves:
    """The newest changes of the ring, and how many moves came within the last minute."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._ring: ChangeRing | None = None
        self._number = 0

    def moves_last_minute(self, ring: ChangeRing | None, now_s: float) -> int:
        """Count what came since the last call, and forget what is older than a minute."""
        if ring is None:
            return 0
        if ring is not self._ring:
            self._ring, self._number = ring, ring.next
        since = max(self._number, ring.first)
        moves = sum(
            entry.change.event.data.what is ChangeKind.MOVED for entry in ring.entries(since, ring.next - since)
        )
        self._number = ring.next
        self._times.extend([now_s] * moves)
        while self._times and self._times[0] < now_s - RATE_WINDOW_S:
            self._times.popleft()
        return len(self._times)


def recent_changes(ring: ChangeRing | None) -> list[RecentChange]:
    """Return the newest changes, the newest first."""
    if ring is None:
        return []
    since = max(ring.first, ring.next - RECENT_MAX)
    found = [entry.change for entry in ring.entries(since, RECENT_MAX)]
    return [
        RecentChange(
            channel=change.event.subject,
            what=change.event.data.what,
            previous=change.event.data.previous,
            cluster=change.event.data.cluster,
            version=change.event.data.version,
            since=change.event.data.since,
            published_after_ms=change.published_after_ms,
        )
        for change in reversed(found)
    ]
