"""Decides whom to ask next, and by which of the platform's two requests.

What matters is *exposure*: minutes in which a channel streams on a cluster other than the one we believe.
A channel moves only while offline (the platform's forum, thread 4877), so the moment to know is when it goes
live: the streams request tells a hundred channels at a time who is live, the servers request tells one channel's
cluster. This module decides; it fetches nothing and reads no clock: every method is told the time.

Times are seconds of the *platform's* clock: a caller whose platform runs k times too fast (the simulator)
multiplies its own clock by k before it calls, and divides the ``until_s`` of a :class:`Wait` accordingly.

Group channels never move and must never be tracked here.
"""

import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest

from serverchange.tracker.habits import Habits
from serverchange.tracker.move_hazard import FORGET_S, CohortKey, MoveHazard
from serverchange.tracker.neighbours import Neighbours, Standing
from serverchange.tracker.scan_lanes import ScanLanes

__all__ = ["Explanation", "Lookup", "LookupSchedule", "Request", "ScheduleSettings", "StreamsScan", "Wait"]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask the servers list for one channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class StreamsScan:
    """Ask the streams list which of these channels are live; at most ``names_per_scan`` of them."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is worth a request before ``until_s``, unless the schedule is told something new."""

    until_s: float


Request = Lookup | StreamsScan


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """What the rule may not learn by itself.

    Attributes:
        names_per_scan: names a streams request may carry (the platform: 100).
        day_s: length of the platform's day, for daily habits.
        repeat_after_s: spacing of repeated questions about an unverified channel; the last one repeats.
        forget_in_flight_after_s: a request neither answered nor failed for so long is taken for failed.
        retry_failed_after_s: when a failed lookup is asked again, unless the platform named a time.
        seed: makes the arbitrary choices (phases, explorations) reproducible, and unlike in other pollers.
    """

    names_per_scan: int = 100
    day_s: float = 86_400.0
    repeat_after_s: tuple[float, ...] = (5.0, 30.0, 120.0)
    forget_in_flight_after_s: float = 120.0
    retry_failed_after_s: float = 5.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a channel is asked when it is.

    Attributes:
        channel: the channel explained.
        score: minutes of exposure that one lookup now is expected to save.
        parts: what the score is made of, by name, in the order in which it is multiplied up.
        reason: the strongest reason, in words.
        next_lookup_s: when it is expected to be asked next, in the schedule's clock.
    """

    channel: str
    score: float
    parts: dict[str, float]
    reason: str
    next_lookup_s: float


LIVE, UNVERIFIED, FREE = 1, 2, 4

SWEEP = 8
"""Channels weighed anew at each decision, in turn: the whole share about every N / 8 requests."""
READY = 256
"""Questions kept ready; beyond it the worse half is dropped, to be found again by the sweep."""
TICK_S, SLOW_TICK_S = 5.0, 60.0
STREAM_LASTS_S = 3_600.0
"""What is exposed if a channel goes live on another cluster and nobody asks: about the rest of its stream."""
LAG_S = 60.0
"""How long the API goes on telling the old cluster (seconds to minutes): e-folding time assumed."""
LOOKS_S = (25.0, 75.0, 180.0)
"""Second looks after a channel went live, since the API lags; each if it is worth it."""
PASSED_LOOKS_S = (30.0, 90.0, 240.0, 900.0, 2_400.0)
"""Further looks at a channel between two that moved."""
PASSED_FADE = 0.7
"""What is left of that chance after each answer that contradicts it."""
PASSED_CHANCE = 0.3
"""How likely such a channel is about to move, or has moved and the API lags."""
LIVE_SHARE = 0.02
"""Part of its cohort's hazard that a channel has while it is thought to stream: it may have broken off unseen."""
LIVE_SCAN_PER_S = 3e-4
"""Weight of scanning a streaming channel, a second, to see a short break: breaks a second of stream times how much
longer a missed one stays unknown than it lasts."""
SCAN_AGAIN_S = 5.0
LOOK_AGAIN_S = 10.0
NEIGHBOUR_WORTH = 5.0
CONFIRM_WORTH = 1.0
UNKNOWN_WORTH = 1_000.0
URGENT_WORTH = 1e6


class LookupSchedule:
    """The state of one poller's share of the channels: columns, one row a channel."""

    def __init__(self, settings: ScheduleSettings, *, now_s: float) -> None:
        self._settings = settings
        self._rows: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._flags = bytearray()
        self._cohorts = array("H")
        self._verified_s = array("d")
        self._integral = array("d")
        self._labels: list[frozenset[str]] = []
        self._habits = Habits(day_s=settings.day_s, now_s=now_s)
        self._hazard = MoveHazard(now_s=now_s)
        self._lanes = ScanLanes()
        self._neighbours = Neighbours()
        self._ordered = 0
        self._ready: list[tuple[float, int, str, float]] = []
        self._timed: list[tuple[float, int, str, float]] = []
        self._flying: dict[int, tuple[float, str, float]] = {}
        self._questions: dict[int, list[float]] = {}
        self._suspects: dict[int, float] = {}
        self._targets: dict[int, str | None] = {}
        self._live: set[str] = set()
        self._cursor = 0
        self._bar = 1e-6
        self._lane_order: list[tuple[float, int]] = []
        self._lanes_seen = 0
        self._tick_s = self._slow_tick_s = now_s
        self._asked_since_tick = 0
        self._rate_per_s = 1.0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, channel: object) -> bool:
        return channel in self._rows

    def track(
        self,
        channel: str,
        *,
        labels: frozenset[str],
        cluster: str | None,
        verified: bool,
        urgent: bool,
        now_s: float,
        verified_at_s: float | None = None,
    ) -> None:
        row = self._rows.get(channel)
        if row is not None:
            self._relabel(row, labels)
            self.update(channel, cluster=cluster, verified=verified, urgent=urgent, moved=False, now_s=now_s)
            return
        row = self._new_row(channel, now_s)
        cohort = self._hazard.cohort((labels, cluster))
        self._hazard.members[cohort] += 1
        self._cohorts[row] = cohort
        self._verified_s[row] = now_s if verified_at_s is None else min(now_s, verified_at_s)
        self._integral[row] = self._hazard.integral[cohort]
        self._flags[row] = 0 if verified else UNVERIFIED
        if urgent or (not verified and len(self._ready) < READY):
            self._put(row, URGENT_WORTH if urgent else UNKNOWN_WORTH, "unverified", now_s)

    def update(
        self, channel: str, *, cluster: str | None, verified: bool, urgent: bool, moved: bool, now_s: float
    ) -> None:
        row = self._rows.get(channel)
        if row is None:
            return
        key = self._hazard.keys[self._cohorts[row]]
        if cluster != key[1]:
            if moved and key[1] is not None:
                self._found(row, sampled=False, now_s=now_s)
            self._join(row, (key[0], cluster), now_s)
        if verified:
            self._flags[row] &= ~UNVERIFIED
            self._questions.pop(row, None)
            return
        self._flags[row] |= UNVERIFIED
        if urgent:
            self._questions.pop(row, None)
            self._put(row, URGENT_WORTH, "notice or doubt", now_s)
        elif row not in self._questions or self._questions[row][1] < now_s:
            self._ask_again(row, now_s)

    def untrack(self, channel: str) -> None:
        row = self._rows.pop(channel, None)
        if row is None:
            return
        self._hazard.members[self._cohorts[row]] -= 1
        self._lanes.remove(row)
        self._flags[row] = FREE
        self._live.discard(channel)
        self._questions.pop(row, None)
        self._suspects.pop(row, None)
        self._flying.pop(row, None)
        self._neighbours.dropped(row)
        self._names[row] = ""
        self._free.append(row)

    def next_request(self, now_s: float) -> Request | Wait:
        """Choose the best request and mark it in flight until it is answered, scanned or failed."""
        if now_s >= self._tick_s:
            self._tick(now_s)
        self._asked_since_tick += 1
        timed = self._timed
        while timed and timed[0][0] <= now_s:
            self._release(heappop(timed), now_s)
        self._sweep(now_s)
        while (proposed := self._neighbours.propose(now_s, self._standing)) is not None:
            self._put(proposed[0], NEIGHBOUR_WORTH * proposed[1], "neighbour moved", now_s)
        if between := self._neighbours.take_between():
            self._suspect(between, now_s)
        scan_worth = self._scan_worth(now_s)
        ready = self._ready
        while ready and -ready[0][0] >= scan_worth:
            _, row, reason, put_s = heappop(ready)
            if self._is_due(row, reason, put_s):
                self._flying[row] = (now_s, reason, self._verified_s[row])
                return Lookup(self._names[row])
        if len(ready) < READY // 16 or self._bar > scan_worth:
            self._bar *= 0.95
        if scan_worth > 0.0:
            return self._scan(now_s)
        if ready:
            _, row, reason, put_s = heappop(ready)
            if self._is_due(row, reason, put_s):
                self._flying[row] = (now_s, reason, self._verified_s[row])
                return Lookup(self._names[row])
        return Wait(min(now_s + SCAN_AGAIN_S, timed[0][0] if timed else now_s + SCAN_AGAIN_S))

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        row = self._rows.get(channel)
        if row is None:
            return
        _, reason, _ = self._flying.pop(row, (now_s, "told", 0.0))
        sampled = reason not in ("neighbour moved", "passed over", "unverified", "notice or doubt")
        key = self._hazard.keys[self._cohorts[row]]
        if changed and cluster != key[1]:
            if key[1] is not None:
                self._found(row, sampled=sampled, now_s=now_s)
            self._join(row, (key[0], cluster), now_s)
            self._flags[row] |= UNVERIFIED
            self._questions.pop(row, None)
            self._ask_again(row, now_s)
            return
        if sampled and not self._flags[row] & LIVE:
            self._hazard.examined(
                self._cohorts[row], now_s - self._verified_s[row], moved=False, sampled=True, now_s=now_s
            )
        self._neighbours.missed(row, now_s)
        if row in self._suspects and not self._flags[row] & LIVE:
            self._suspects[row] *= PASSED_FADE
            if self._suspects[row] < PASSED_CHANCE * PASSED_FADE ** len(PASSED_LOOKS_S):
                del self._suspects[row]
        self._verified_s[row] = now_s
        self._integral[row] = self._hazard.integral[self._cohorts[row]]
        self._flags[row] &= ~UNVERIFIED
        self._questions.pop(row, None)

    def scanned(self, channels: Sequence[str], live: Collection[str], now_s: float) -> None:
        live = live if isinstance(live, (set, frozenset)) else frozenset(live)
        for channel in self._live.intersection(channels) - live:
            self.heard_offline(channel, now_s)
        for channel in live - self._live:
            self.heard_live(channel, now_s)

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        wait_s = self._settings.retry_failed_after_s if retry_after_s is None else retry_after_s
        if isinstance(request, StreamsScan):
            for channel in request.channels:
                row = self._rows.get(channel)
                if row is not None:
                    self._lanes.to_front(row)
            return
        row = self._rows.get(request.channel)
        if row is not None and row in self._flying:
            self._retry(row, now_s + wait_s)

    def heard_live(self, channel: str, now_s: float) -> None:
        row = self._rows.get(channel)
        if row is None or self._flags[row] & LIVE:
            return
        self._live.add(channel)
        chance = self._chance(row, now_s)
        self._flags[row] |= LIVE
        pause_s = now_s - self._habits.ended_s(row)
        self._habits.went_live(row, now_s)
        self._put(row, chance * STREAM_LASTS_S, "went live", now_s)
        unseen = chance * min(1.0, LAG_S / max(pause_s, 1.0))
        for wait_s in LOOKS_S:
            heappush(
                self._timed,
                (now_s + wait_s, row, "second look", unseen * math.exp(-wait_s / LAG_S) * STREAM_LASTS_S),
            )
        self._lanes.weigh(row, chance * LIVE_SCAN_PER_S)

    def heard_offline(self, channel: str, now_s: float) -> None:
        row = self._rows.get(channel)
        if row is None or not self._flags[row] & LIVE:
            return
        self._live.discard(channel)
        self._flags[row] &= ~LIVE
        self._habits.went_offline(row, now_s)
        if row in self._suspects:
            self._look_at_passed(row, now_s)
        self._weigh(row, now_s)

    def explain(self, channel: str, now_s: float) -> Explanation:
        row = self._rows[channel]
        worth, parts = self._worth(row, now_s)
        return Explanation(channel, worth / 60.0, parts, "", now_s)

    def suggested_rate_per_s(self, now_s: float, budget_per_s: float) -> float:
        del now_s
        return budget_per_s

    # rows

    def _new_row(self, channel: str, now_s: float) -> int:
        if self._free:
            row = self._free.pop()
            self._names[row] = channel
            self._habits.reset(row, now_s)
        else:
            row = len(self._names)
            self._names.append(channel)
            self._flags.append(0)
            self._cohorts.append(0)
            self._verified_s.append(now_s)
            self._integral.append(0.0)
            self._habits.add(now_s)
        self._lanes.add(row, 1e-7, now_s - 1_000.0)
        self._rows[channel] = row
        return row

    def _relabel(self, row: int, labels: frozenset[str]) -> None:
        key = self._hazard.keys[self._cohorts[row]]
        if labels != key[0]:
            cohort = self._hazard.cohort((labels, key[1]))
            self._hazard.members[self._cohorts[row]] -= 1
            self._hazard.members[cohort] += 1
            self._cohorts[row] = cohort

    def _join(self, row: int, key: CohortKey, now_s: float) -> None:
        cohort = self._hazard.cohort(key)
        self._suspects.pop(row, None)
        self._targets[self._cohorts[row]] = key[1]
        self._hazard.members[self._cohorts[row]] -= 1
        self._hazard.members[cohort] += 1
        self._cohorts[row] = cohort
        self._verified_s[row] = now_s
        self._integral[row] = self._hazard.integral[cohort]

    def _found(self, row: int, *, sampled: bool, now_s: float) -> None:
        cohort = self._cohorts[row]
        self._hazard.examined(cohort, now_s - self._verified_s[row], moved=True, sampled=sampled, now_s=now_s)
        self._neighbours.found(row, cohort, now_s)

    def _suspect(self, rows: list[int], now_s: float) -> None:
        """Rows between moved ones: ask them again soon, or once they stop streaming."""
        for row in rows:
            if self._flags[row] & FREE or row in self._suspects:
                continue
            self._suspects[row] = PASSED_CHANCE
            if self._flags[row] & LIVE:
                self._lanes.weigh(row, PASSED_CHANCE * LIVE_SCAN_PER_S)
            else:
                self._look_at_passed(row, now_s)

    def _look_at_passed(self, row: int, now_s: float) -> None:
        for wait_s in PASSED_LOOKS_S:
            heappush(self._timed, (now_s + wait_s, row, "passed over", NEIGHBOUR_WORTH))

    def _standing(self, row: int, cohort: int) -> Standing:
        if self._cohorts[row] != cohort:
            keys = self._hazard.keys
            moved = self._targets.get(cohort) == keys[self._cohorts[row]][1]
            return "moved" if moved else "other"
        return "other" if self._flags[row] & (LIVE | FREE) or row in self._flying else "askable"

    # questions

    def _put(self, row: int, worth: float, reason: str, now_s: float) -> None:
        heappush(self._ready, (-worth, row, reason, now_s))
        if len(self._ready) > READY:
            self._thin()

    def _thin(self) -> None:
        self._ready.sort()
        for _, row, reason, _ in self._ready[READY // 2 :]:
            if reason == "neighbour moved":
                self._neighbours.dropped(row)
        del self._ready[READY // 2 :]
        self._bar = max(self._bar, -self._ready[-1][0])

    def _is_due(self, row: int, reason: str, put_s: float) -> bool:
        flags = self._flags[row]
        if flags & FREE or row in self._flying:
            if reason == "neighbour moved":
                self._neighbours.dropped(row)
            return False
        return bool(flags & UNVERIFIED) or self._verified_s[row] <= put_s

    def _ask_again(self, row: int, now_s: float) -> None:
        spacing = self._settings.repeat_after_s
        tries = int(self._questions[row][0]) if row in self._questions else 0
        due_s = now_s + spacing[min(tries, len(spacing) - 1)]
        self._questions[row] = [tries + 1.0, due_s]
        heappush(self._timed, (due_s, row, "unverified", CONFIRM_WORTH))

    def _retry(self, row: int, due_s: float) -> None:
        _, reason, _ = self._flying.pop(row)
        self._neighbours.dropped(row)
        heappush(self._timed, (due_s, row, reason, UNKNOWN_WORTH))

    def _release(self, entry: tuple[float, int, str, float], now_s: float) -> None:
        due_s, row, reason, worth = entry
        flags = self._flags[row]
        if flags & FREE:
            return
        if reason == "second look" and not flags & LIVE:
            return
        if reason == "passed over" and row not in self._suspects:
            return
        if reason == "unverified" and not flags & UNVERIFIED:
            return
        if worth > self._bar:
            self._put(row, worth, reason, now_s)

    # weighing

    def _chance(self, row: int, now_s: float) -> float:
        cohort = self._cohorts[row]
        hazard = self._hazard
        x = max(
            hazard.per_s[cohort] * min(now_s - self._verified_s[row] + LAG_S, FORGET_S * 3),
            hazard.integral[cohort] - self._integral[row],
        )
        if self._suspects and row in self._suspects:
            return max(self._suspects[row], x if x < 0.1 else 1.0 - math.exp(-x))
        return x if x < 0.1 else 1.0 - math.exp(-x)

    def _weigh(self, row: int, now_s: float) -> float:
        """Put the row into its scan lane; return what a lookup of it is worth now."""
        chance = self._chance(row, now_s)
        age_s = now_s - self._verified_s[row]
        if self._flags[row] & LIVE:
            self._lanes.weigh(row, chance * LIVE_SCAN_PER_S)
            return LIVE_SHARE * chance * age_s * 0.5
        starts = self._habits.starts_per_s(row, now_s)
        self._lanes.weigh(row, chance * starts)
        starts = 0.5 * starts + 0.5 * self._habits.starts_soon_per_s(row, now_s)
        return chance * starts * age_s * 0.5 * (self._lanes.age_s(row, now_s) * 0.5 + 15.0)

    def _worth(self, row: int, now_s: float) -> tuple[float, dict[str, float]]:
        worth = self._weigh(row, now_s)
        return worth, {"chance of having moved": self._chance(row, now_s)}

    def _sweep(self, now_s: float) -> None:
        flags, size = self._flags, len(self._flags)
        row = self._cursor
        for _ in range(min(SWEEP, size)):
            row = row + 1 if row + 1 < size else 0
            state = flags[row]
            if state & FREE:
                continue
            worth = self._weigh(row, now_s)
            if state & UNVERIFIED and row not in self._questions:
                worth += UNKNOWN_WORTH
            if worth > self._bar and row not in self._flying:
                if now_s - self._verified_s[row] < LOOK_AGAIN_S:
                    continue
                self._put(row, worth, "live" if state & LIVE else "offline", now_s)
        self._cursor = row

    def _scan_worth(self, now_s: float) -> float:
        self._lanes_seen -= 1
        if self._lanes_seen <= 0:
            self._lane_order = self._lanes.order(now_s, SCAN_AGAIN_S)
            self._lanes_seen = 6
            total, left = 0.0, self._settings.names_per_scan
            for worth, lane in self._lane_order:
                count = min(left, self._lanes.sizes[lane])
                total += worth * count
                left -= count
                if left <= 0:
                    break
            self._worth_of_scan = total
        return self._worth_of_scan

    def _scan(self, now_s: float) -> Request | Wait:
        rows: list[int] = []
        for _, lane in self._lane_order:
            rows += self._lanes.take(lane, self._settings.names_per_scan - len(rows), now_s, SCAN_AGAIN_S)
            if len(rows) >= self._settings.names_per_scan:
                break
        self._lanes_seen = 0
        names = self._names
        if not rows:
            return Wait(now_s + 1.0)
        return StreamsScan(tuple([names[row] for row in rows]))

    def _tick(self, now_s: float) -> None:
        self._hazard.tick(now_s)
        passed_s = now_s - self._tick_s + TICK_S
        self._rate_per_s += 0.05 * (self._asked_since_tick / passed_s - self._rate_per_s)
        self._asked_since_tick = 0
        self._neighbours.slowness = max(1.0, 1.0 / max(self._rate_per_s, 1e-3))
        lost = [
            row
            for row, (sent_s, _, _) in self._flying.items()
            if now_s - sent_s > self._settings.forget_in_flight_after_s
        ]
        for row in lost:
            self._retry(row, now_s)
        if now_s >= self._slow_tick_s:
            self._habits.tick(now_s)
            self._slow_tick_s = now_s + SLOW_TICK_S
            if abs(len(self._names) - self._ordered) > len(self._names) // 100:
                self._stand_in_line()
        self._tick_s = now_s + TICK_S

    def _stand_in_line(self) -> None:
        lines: dict[frozenset[str], list[int]] = {}
        for row, cohort in enumerate(self._cohorts):
            if not self._flags[row] & FREE:
                lines.setdefault(self._hazard.keys[cohort][0], []).append(row)
        orders = [array("i", sorted(rows, key=self._names.__getitem__)) for rows in lines.values()]
        self._neighbours.set_orders(orders, len(self._names))
        self._ordered = len(self._names)
