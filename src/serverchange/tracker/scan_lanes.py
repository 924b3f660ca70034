"""Keeps all channels in the order in which a streams scan should ask for them.

A channel whose going live unseen would cost ``u`` (exposed channels a second) is worth ``u * age**2 / 2`` once it has
not been scanned for ``age`` seconds. Weights are rounded to powers of two: a lane each, in which the order is simply
first come, first served. So the best hundred are the heads of few lanes, and taking them costs nothing that grows
with the number of channels. The lanes are linked lists in columns: 17 bytes a channel.
"""

import math
from array import array

__all__ = ["ScanLanes"]

KINDS = 40
LANES = 2 * KINDS
"""Lanes of offline rows, then as many of streaming ones."""
LOWEST_EXPONENT = -44
"""Lane 0 holds weights below 2**-44: somebody who goes live once in a million years."""
STREAM_LASTS_S, BREAK_LASTS_S = 3_600.0, 300.0
"""What a scan can save does not grow for ever: a stream that was missed is over after an hour or so, a break of one
after minutes."""


class ScanLanes:
    """Rows in lanes, each lane ordered by the time of the last scan."""

    def __init__(self) -> None:
        self._next = array("i")
        self._previous = array("i")
        self._lane = bytearray()
        self.scanned_s = array("d")
        self._head = [-1] * LANES
        self._tail = [-1] * LANES
        self.sizes = [0] * LANES
        self.weights = [math.ldexp(0.75, LOWEST_EXPONENT + lane % KINDS) for lane in range(LANES)]

    def add(self, row: int, weight: float, scanned_s: float) -> None:
        """Take a row in; a row one past the last makes the columns grow."""
        if row == len(self._lane):
            self._next.append(-1)
            self._previous.append(-1)
            self._lane.append(0)
            self.scanned_s.append(scanned_s)
        self.scanned_s[row] = scanned_s
        lane = self._lane_of(weight, live=False)
        self._lane[row] = lane
        self._append(row, lane)

    def remove(self, row: int) -> None:
        """Take a row out."""
        lane = self._lane[row]
        before, after = self._previous[row], self._next[row]
        if before >= 0:
            self._next[before] = after
        else:
            self._head[lane] = after
        if after >= 0:
            self._previous[after] = before
        else:
            self._tail[lane] = before
        self.sizes[lane] -= 1

    def weigh(self, row: int, weight: float, *, live: bool = False) -> None:
        """Move a row to the lane of its new weight; to the front if it waited longer than the lane's first."""
        lane = self._lane_of(weight, live=live)
        if lane == self._lane[row]:
            return
        self.remove(row)
        self._lane[row] = lane
        head = self._head[lane]
        if head >= 0 and self.scanned_s[head] > self.scanned_s[row]:
            self._prepend(row, lane)
        else:
            self._append(row, lane)

    def to_front(self, row: int) -> None:
        """The scan of this row failed: it is first in its lane again."""
        lane = self._lane[row]
        self.remove(row)
        head = self._head[lane]
        self.scanned_s[row] = min(self.scanned_s[row], self.scanned_s[head]) if head >= 0 else self.scanned_s[row] - 60
        self._prepend(row, lane)

    def age_s(self, row: int, now_s: float) -> float:
        """How long the first of this row's lane has waited: the lane's interval between scans."""
        return now_s - self.scanned_s[self._head[self._lane[row]]]

    def order(self, now_s: float, at_least_s: float) -> list[tuple[float, int]]:
        """The lanes worth scanning with the worth of their first row, best first."""
        worths = []
        for lane in range(LANES):
            head = self._head[lane]
            if head >= 0:
                age_s = now_s - self.scanned_s[head]
                if age_s >= at_least_s:
                    worths.append((0.5 * self.weights[lane] * self._seconds_squared(lane, age_s), lane))
        worths.sort(reverse=True)
        return worths

    def take(self, lane: int, count: int, now_s: float, at_least_s: float) -> list[int]:
        """Take up to ``count`` rows that have waited longest, mark them scanned now, put them last."""
        rows: list[int] = []
        row = first = self._head[lane]
        scanned_s, following, append = self.scanned_s, self._next, rows.append
        latest_s = now_s - at_least_s
        for _ in range(count):
            if row < 0 or scanned_s[row] > latest_s:
                break
            scanned_s[row] = now_s
            append(row)
            row = following[row]
        last = rows[-1] if rows else -1
        if last >= 0 and row >= 0:
            self._head[lane] = row
            self._previous[row] = -1
            tail = self._tail[lane]
            self._next[tail] = first
            self._previous[first] = tail
            self._next[last] = -1
            self._tail[lane] = last
        return rows

    @staticmethod
    def _lane_of(weight: float, *, live: bool) -> int:
        lane = min(KINDS - 1, max(0, math.frexp(weight)[1] - LOWEST_EXPONENT))
        return lane + KINDS if live else lane

    @staticmethod
    def _seconds_squared(lane: int, age_s: float) -> float:
        """Twice what a second of cost a second would have added up to, unseen for so long."""
        if lane >= KINDS:
            age_s = min(age_s, BREAK_LASTS_S)
        if age_s > STREAM_LASTS_S:
            return STREAM_LASTS_S * (2.0 * age_s - STREAM_LASTS_S)
        return age_s * age_s

    def _append(self, row: int, lane: int) -> None:
        tail = self._tail[lane]
        self._previous[row], self._next[row] = tail, -1
        if tail >= 0:
            self._next[tail] = row
        else:
            self._head[lane] = row
        self._tail[lane] = row
        self.sizes[lane] += 1

    def _prepend(self, row: int, lane: int) -> None:
        head = self._head[lane]
        self._previous[row], self._next[row] = -1, head
        if head >= 0:
            self._previous[head] = row
        else:
            self._tail[lane] = row
        self._head[lane] = row
        self.sizes[lane] += 1
