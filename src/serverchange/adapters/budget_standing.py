"""How one budget stands: the ledger's leases and what shards tell that waits, for people; nothing decides by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serverchange.adapters.postgres.fleet import ShardReport
from serverchange.adapters.postgres.join_budget import LedgerBudget
from serverchange.tracker.budget import Limit, Usage, usage_by_holder


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    """One budget at one moment.

    Attributes:
        window_s: the platform's window, seconds.
        usages: by holder.
        waiting: events that wait for it, by process; only shards that told of late.
    """

    window_s: float
    usages: Mapping[str, Usage]
    waiting: Mapping[str, int]

    @property
    def used(self) -> int:
        """Events spent within the window."""
        return sum(one.used for one in self.usages.values())

    @property
    def leased(self) -> int:
        """Events in a process's hand: they may be spent this very moment."""
        return sum(one.leased for one in self.usages.values())

    @property
    def waiting_total(self) -> int:
        """Events that wait, of all processes."""
        return sum(self.waiting.values())


def standing(budget: LedgerBudget, reports: Iterable[ShardReport], window_s: float) -> BudgetStanding:
    """Return how the budget stands. All classes of accounts share one window, so the class need not be known."""
    return BudgetStanding(
        window_s,
        usage_by_holder(budget.leases, Limit(1, window_s), budget.now),
        {
            report.process: report.waiting[budget.account].get(budget.kind, 0)
            for report in reports
            if report.fresh and budget.account in report.waiting
        },
    )
