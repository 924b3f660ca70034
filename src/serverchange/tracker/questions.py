"""Keeps the few questions worth asking soon: those ready, best first, and those for later, by time.

Bounded: of the ready ones the worse half is dropped when there are too many, because whatever drops out is found
again by the schedule's sweep over all channels. Later ones are few by nature (a handful a channel that went live).
"""

from heapq import heappop, heappush
from typing import NamedTuple

__all__ = ["Question", "Questions"]

READY = 256
"""Questions kept ready; at 20 requests a second some ten seconds' work."""


class Question(NamedTuple):
    """One possible lookup. The order of the fields is the order in a heap."""

    key: float
    """Of a ready question minus its worth; of a later one the time when it is due."""
    at_s: float
    """When a ready question was put: an answer after that makes it void. Of equal worth the older comes first."""
    row: int
    reason: str
    worth: float


class Questions:
    """Two heaps."""

    def __init__(self) -> None:
        self._ready: list[Question] = []
        self._later: list[Question] = []
        self.bar = 0.0
        """What a question must be worth to be put; rises when too many are, sinks by :meth:`lower_bar`."""

    @property
    def best(self) -> float:
        """The worth of the best ready question; zero without any."""
        return -self._ready[0].key if self._ready else 0.0

    @property
    def next_due_s(self) -> float:
        """When the next later question is due; infinity without any."""
        return self._later[0].key if self._later else float("inf")

    def __len__(self) -> int:
        return len(self._ready)

    def put(self, row: int, worth: float, reason: str, now_s: float) -> list[Question]:
        """Make a question ready; return those that had to go for it, if any."""
        heappush(self._ready, Question(-worth, now_s, row, reason, worth))
        if len(self._ready) <= READY:
            return []
        self._ready.sort()
        dropped = self._ready[READY // 2 :]
        del self._ready[READY // 2 :]
        self.bar = max(self.bar, self._ready[-1].worth)
        return dropped

    def pop(self) -> Question:
        """Take the best ready question."""
        return heappop(self._ready)

    def put_later(self, due_s: float, row: int, worth: float, reason: str) -> None:
        """Keep a question until it is due."""
        heappush(self._later, Question(due_s, due_s, row, reason, worth))

    def pop_due(self, now_s: float) -> Question | None:
        """Take a later question that is due, if there is one."""
        return heappop(self._later) if self._later and self._later[0].key <= now_s else None

    def lower_bar(self, marginal: float) -> None:
        """Let more in: few are ready, or the bar is above what the other kind of request is worth."""
        if len(self._ready) < READY // 16 or self.bar > marginal:
            self.bar *= 0.95
