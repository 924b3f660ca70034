"""Decides whom to ask next, and by which of the platform's two requests.

What matters is *exposure*: seconds in which a channel streams on a cluster other than the one we believe. A channel
moves only while offline (the platform's forum, thread 4877), so the moment to know is when it goes live. The streams
request tells of a hundred channels who is live; the servers request tells one channel's cluster. Everything is
weighed in one currency, the seconds of exposure that a request is expected to save, so that the shares of the two
kinds find themselves:

- a channel has moved with a *chance* that grows with the time since it was verified, by a hazard learned from what
  moves in its cohort (:mod:`~serverchange.tracker.move_hazard`) and from its neighbours in the alphabet
  (:mod:`~serverchange.tracker.neighbours`);
- it goes live at a *rate* learned from its own habits and the crowd's (:mod:`~serverchange.tracker.habits`);
- scanning it is worth ``chance * rate * age**2 / 2``, age being the time since its last scan
  (:mod:`~serverchange.tracker.scan_lanes`); asking it ahead, while offline, ``chance * rate * delay * age / 2``,
  age since it was verified, delay what a scan would leave exposed; asking it when it has just gone live, ``chance``
  times the rest of its stream. (For a fixed budget the sum of rate times delay is least when the frequency grows with
  the square root of the hazard: asking by ``hazard * age**2`` does that.)

Nothing here does I/O or reads a clock: every method is told the time, in seconds of the *platform's* clock. A caller
whose platform runs k times too fast (the simulator) multiplies its own clock by k, and divides ``Wait.until_s``.
A decision weighs a few channels anew in turn and takes the best of what it knows: its cost does not grow with the
number of channels. Group channels never move and must never be tracked here.
"""

import math
from array import array
from collections.abc import Collection, Sequence
from typing import NamedTuple

from serverchange.tracker.habits import Habits
from serverchange.tracker.lookup_request import Explanation, Lookup, Request, ScheduleSettings, StreamsScan, Wait
from serverchange.tracker.move_hazard import FORGET_S, CohortKey, MoveHazard
from serverchange.tracker.neighbours import Neighbours, Standing
from serverchange.tracker.questions import Question, Questions
from serverchange.tracker.scan_lanes import ScanLanes

__all__ = ["Explanation", "Lookup", "LookupSchedule", "Request", "ScheduleSettings", "StreamsScan", "Wait"]

LIVE, UNVERIFIED, FREE, ASKED = 1, 2, 4, 8
"""Bits of a row: it streams; no lookup has agreed with the belief; it belongs to nobody; it was verified since it
went live."""

SWEEP = 6
"""Channels weighed anew at each decision, in turn: all of them about every N / 6 requests."""
REST_SHARE, REST_ROUNDS = 0.1, 3
"""Offline rows of a cohort with less than this part of the highest hazard are weighed only each third round."""
TICK_S, SLOW_TICK_S = 5.0, 60.0
STREAM_LASTS_S = 3_600.0
"""What is exposed if a channel goes live on another cluster and nobody asks: about the rest of its stream."""
LAG_S = 60.0
"""How long the API goes on telling the old cluster (seconds to minutes): e-folding time assumed."""
LOOKS_S = (25.0, 75.0, 180.0)
"""Second looks after a channel went live, since the API lags; each if it is worth it."""
PASSED_LOOKS_S = (30.0, 75.0, 150.0, 300.0, 900.0, 2_400.0)
"""Further looks at a channel between two that moved: its turn is late, or the API's knowledge of it."""
PASSED_CHANCE, PASSED_FADE = 0.3, 0.7
"""How likely such a channel has moved, and what is left of that after each answer that contradicts it."""
LIVE_SHARE = 0.02
"""Part of its cohort's hazard that a channel keeps while it is thought to stream: it may have broken off unseen."""
LIVE_SCAN_PER_S = 3e-4
"""Weight of scanning a streaming channel, a second, to see a short break: breaks a second of stream (about one in ten
hours) times how much longer a missed one stays unknown than it lasts (about ten times)."""
SCAN_DELAY_S = 15.0
"""What is exposed beside half a scan's interval when a channel goes live: waiting, the lookup, the API's lag."""
SCAN_AGAIN_S, LOOK_AGAIN_S = 5.0, 10.0
"""Nobody is scanned, or looked up by weight alone, sooner again."""
NEIGHBOUR_WORTH, CONFIRM_WORTH, UNKNOWN_WORTH, URGENT_WORTH = 5.0, 1.0, 1_000.0, 1e6
NEIGHBOUR_WORTH_MAX = 20.0
"""A neighbour comes before the scan, but where requests are so few that every scan is worth more than this, the scan
comes first: most neighbours stay offline for hours, and chases that took all requests left live channels unseen."""
CONFIRM_WITHIN_S = 600.0
"""So fast grows what it is worth to confirm a change that a lookup has already told."""
RETRIED = frozenset({"went live", "second look", "passed over", "unverified", "notice or doubt"})
"""Questions that are repeated when they fail. The others come back by themselves, by the sweep."""
UNSAMPLED = frozenset({"neighbour moved", "passed over", "unverified", "notice or doubt"})
"""Questions asked because something had moved: their answers say nothing of how many move."""


class _Flight(NamedTuple):
    sent_s: float
    reason: str
    worth: float


class LookupSchedule:
    """What one poller knows of its share of the channels, in columns: one row a channel, some 240 bytes."""

    def __init__(self, settings: ScheduleSettings, *, now_s: float) -> None:
        self._settings = settings
        self._rows: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._flags = bytearray()
        self._cohorts = array("H")
        self._verified_s = array("d")
        self._integral = array("f")
        self._habits = Habits(day_s=settings.day_s, now_s=now_s)
        self._hazard = MoveHazard(now_s=now_s)
        self._lanes = ScanLanes()
        self._neighbours = Neighbours()
        self._in_line = 0
        self._questions = Questions()
        self._flying: dict[int, _Flight] = {}
        self._repeats: dict[int, tuple[int, float]] = {}
        self._left: dict[int, str | None] = {}
        self._suspects: dict[int, float] = {}
        self._alarmed: set[int] = set()
        self._live: set[str] = set()
        self._unknown = 0
        self._cursor = settings.seed
        self._round = 0
        self._resting: list[bool] = []
        self._lane_order: list[tuple[float, int]] = []
        self._lanes_hold = 0
        self._scan_worth = 0.0
        self._tick_s = self._slow_tick_s = self._started_s = now_s
        self._asked_since_tick = 0
        self._rate_per_s = 1.0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, channel: object) -> bool:
        return channel in self._rows

    def believed(self, channel: str) -> str | None:
        """The cluster that the schedule reckons with.

        Raises:
            KeyError: the channel is not tracked here.
        """
        return self._hazard.keys[self._cohorts[self._rows[channel]]][1]

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
        """Take a channel in, newly tracked or read from Postgres at a start; many at once cause no burst.

        Args:
            channel: the login.
            labels: e.g. staff, partner: channels that share them tend to move together.
            cluster: the believed cluster, or None while unknown.
            verified: whether a lookup has agreed with it.
            urgent: a notice or a doubt stands: ask at once.
            now_s: the time.
            verified_at_s: when a lookup last agreed; None for just now or never.
        """
        row = self._rows.get(channel)
        if row is not None:
            key = self._hazard.keys[self._cohorts[row]]
            if labels != key[0]:
                self._change_cohort(row, (labels, key[1]))
            self.update(channel, cluster=cluster, verified=verified, urgent=urgent, moved=False, now_s=now_s)
            return
        row = self._new_row(channel, (labels, cluster), now_s)
        if verified_at_s is not None:
            self._verified_s[row] = min(now_s, verified_at_s)
        if not verified:
            self._mark_unverified(row)
        if urgent:
            self._alarm(row, now_s)
        elif not verified and self._questions.bar < UNKNOWN_WORTH:
            self._put(row, UNKNOWN_WORTH, "unverified", now_s)

    def update(
        self, channel: str, *, cluster: str | None, verified: bool, urgent: bool, moved: bool, now_s: float
    ) -> None:
        """The fold of the log changed what is known of a channel; one that is not tracked here is ignored.

        Args:
            channel: the login.
            cluster: what is believed now.
            verified: whether a lookup has agreed with it; if not, it is asked again, spaced ever wider.
            urgent: a notice or a doubt: to the front.
            moved: the believed cluster is another one than before: also evidence about its cohort and neighbours.
            now_s: the time.
        """
        row = self._rows.get(channel)
        if row is None:
            return
        key = self._hazard.keys[self._cohorts[row]]
        if cluster != key[1]:
            if moved and key[1] is not None:
                self._found(row, sampled=False, now_s=now_s)
            self._believe(row, (key[0], cluster), now_s)
        if verified:
            self._mark_verified(row)
            return
        self._mark_unverified(row)
        if urgent:
            self._repeats.pop(row, None)
            self._alarm(row, now_s)
        elif row not in self._repeats or self._repeats[row][1] < now_s:
            self._ask_again(row, now_s)

    def untrack(self, channel: str) -> None:
        """Forget a channel; what was learned about its cohort stays."""
        row = self._rows.pop(channel, None)
        if row is None:
            return
        self._mark_verified(row)
        self._hazard.members[self._cohorts[row]] -= 1
        self._lanes.remove(row)
        self._flags[row] = FREE
        self._live.discard(channel)
        self._suspects.pop(row, None)
        self._flying.pop(row, None)
        self._neighbours.dropped(row)
        self._names[row] = ""
        self._free.append(row)

    def next_request(self, now_s: float) -> Request | Wait:
        """Choose the best request and mark it in flight until it is answered, scanned or failed.

        The caller keeps to its own budget: every call that returns a request spends one.
        """
        if now_s >= self._tick_s:
            self._tick(now_s)
        self._asked_since_tick += 1
        while (due := self._questions.pop_due(now_s)) is not None:
            self._make_ready(due, now_s)
        self._sweep(now_s)
        self._follow_neighbours(now_s)
        self._weigh_scan(now_s)
        questions = self._questions
        while questions.best >= self._scan_worth and len(questions):
            question = questions.pop()
            if self._is_open(question, now_s):
                self._flying[question.row] = _Flight(now_s, question.reason, question.worth)
                return Lookup(self._names[question.row])
        questions.lower_bar(self._scan_worth)
        return self._scan(now_s) if self._scan_worth > 0.0 else self._wait(now_s)

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        """A lookup was answered.

        Args:
            channel: the login.
            cluster: the answer.
            changed: whether it contradicted what was believed. What the fold makes of it comes by :meth:`update`;
                until then the answer is believed, except one that contradicts a change just made.
            now_s: the time of the answer.
        """
        row = self._rows.get(channel)
        if row is None:
            return
        flight = self._flying.pop(row, None)
        sampled = flight is not None and flight.reason not in UNSAMPLED
        key = self._hazard.keys[self._cohorts[row]]
        if cluster == key[1] or not changed:
            self._agreed(row, cluster, sampled=sampled, now_s=now_s)
        elif self._left.get(row, "") == cluster:
            self._ask_again(row, now_s)
        else:
            if key[1] is not None:
                self._found(row, sampled=sampled, now_s=now_s)
            self._believe(row, (key[0], cluster), now_s)
            self._left[row] = key[1]
            self._mark_unverified(row)
            self._ask_again(row, now_s)

    def scanned(self, channels: Sequence[str], live: Collection[str], now_s: float) -> None:
        """A streams scan was answered: of ``channels`` exactly those in ``live`` are live."""
        listed = live if isinstance(live, (set, frozenset)) else frozenset(live)
        for channel in self._live.intersection(channels) - listed:
            self.heard_offline(channel, now_s)
        for channel in listed - self._live:
            self.heard_live(channel, now_s)

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        """A request brought no information: what mattered is asked again later, nothing is lost.

        Args:
            request: as :meth:`next_request` gave it.
            now_s: the time.
            retry_after_s: what the platform asked for, if it did.
        """
        wait_s = self._settings.retry_failed_after_s if retry_after_s is None else retry_after_s
        if isinstance(request, Lookup):
            row = self._rows.get(request.channel)
            if row is not None and row in self._flying:
                self._retry(row, now_s + wait_s)
            return
        for channel in request.channels:
            row = self._rows.get(channel)
            if row is not None:
                self._lanes.to_front(row)

    def heard_live(self, channel: str, now_s: float) -> None:
        """A channel is live: a scan says so, or a hint from elsewhere (chat traffic, another poller's scan)."""
        row = self._rows.get(channel)
        if row is None or self._flags[row] & LIVE:
            return
        chance = self._chance(row, now_s)
        pause_s = max(1.0, now_s - self._habits.ended_s(row))
        self._live.add(channel)
        self._flags[row] = (self._flags[row] | LIVE) & ~ASKED
        self._habits.went_live(row, now_s)
        self._lanes.weigh(row, chance * LIVE_SCAN_PER_S, live=True)
        self._put(row, chance * STREAM_LASTS_S, "went live", now_s)
        unseen = chance * min(1.0, LAG_S / pause_s) * STREAM_LASTS_S
        for wait_s in LOOKS_S:
            worth = unseen * math.exp(-wait_s / LAG_S)
            if worth > 0.5 * self._questions.bar:
                self._questions.put_later(now_s + wait_s, row, worth, "second look")

    def heard_offline(self, channel: str, now_s: float) -> None:
        """A channel is offline: a scan says so, or a hint from elsewhere. Now it can be moved."""
        row = self._rows.get(channel)
        if row is None or not self._flags[row] & LIVE:
            return
        self._live.discard(channel)
        self._flags[row] &= ~(LIVE | ASKED)
        self._habits.went_offline(row, now_s)
        if row in self._suspects:
            self._look_at_passed(row, now_s)
        self._weigh(row, now_s)

    def explain(self, channel: str, now_s: float) -> Explanation:
        """Say why and when a channel is asked next; for people.

        Raises:
            KeyError: the channel is not tracked here.
        """
        row = self._rows[channel]
        worth, age_s = self._weigh(row, now_s), now_s - self._verified_s[row]
        parts = {
            "chance of having moved": self._chance(row, now_s),
            "moves an hour in its cohort": self._hazard.per_s[self._cohorts[row]] * 3_600.0,
            "seconds since verified": age_s,
            "seconds between scans": self._lanes.age_s(row, now_s),
        }
        if not self._flags[row] & LIVE:
            now_per_s, soon_per_s = self._habits.starts_per_s(row, now_s)
            parts |= {"streams an hour now": now_per_s * 3_600.0, "streams an hour soon": soon_per_s * 3_600.0}
        if row in self._suspects:
            parts["chance by neighbours and notices"] = self._suspects[row]
        sources = self._sources(row, worth, now_s)
        reason, next_s = self._outlook(row, worth, age_s, now_s)
        return Explanation(channel, max(sources.values()), sources, parts, reason, next_s)

    def suggested_rate_per_s(self, now_s: float, budget_per_s: float) -> float:
        """The part of ``budget_per_s`` that is worth spending now.

        All of it while channels move or something is unverified; after ``quiet_after_s`` without a move it falls
        with the time since (the rule of succession's hazard), down to a trickle, and is all back with the first move.
        """
        if self._repeats or self._unknown:
            return budget_per_s
        last_s = self._hazard.last_move_s
        quiet_s = now_s - (self._started_s if last_s is None else last_s)
        part = self._settings.quiet_after_s / max(quiet_s, 1.0)
        return budget_per_s * min(1.0, max(self._settings.trickle, part))

    # What a row is believed to be.

    def _new_row(self, channel: str, key: CohortKey, now_s: float) -> int:
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
        cohort = self._cohort(key)
        self._hazard.members[cohort] += 1
        self._flags[row] = 0
        self._cohorts[row] = cohort
        self._verified_s[row] = now_s
        self._integral[row] = self._hazard.integral[cohort]
        self._lanes.add(row, self._chance(row, now_s) * self._habits.starts_per_s(row, now_s)[0], now_s - LAG_S)
        self._rows[channel] = row
        return row

    def _cohort(self, key: CohortKey) -> int:
        cohort = self._hazard.cohort(key)
        if cohort == len(self._resting):
            self._resting.append(False)
        return cohort

    def _change_cohort(self, row: int, key: CohortKey) -> None:
        cohort = self._cohort(key)
        self._hazard.members[self._cohorts[row]] -= 1
        self._hazard.members[cohort] += 1
        self._cohorts[row] = cohort
        self._integral[row] = self._hazard.integral[cohort]

    def _believe(self, row: int, key: CohortKey, now_s: float) -> None:
        """Another cluster is believed from now on."""
        self._hazard.targets[self._cohorts[row]] = key[1]
        self._change_cohort(row, key)
        self._verified_s[row] = now_s
        self._suspects.pop(row, None)
        self._alarmed.discard(row)
        self._left.pop(row, None)

    def _agreed(self, row: int, cluster: str, *, sampled: bool, now_s: float) -> None:
        """A lookup agreed with the belief, or the caller believes its answer already."""
        cohort = self._cohorts[row]
        if cluster != self._hazard.keys[cohort][1]:
            self._believe(row, (self._hazard.keys[cohort][0], cluster), now_s)
            cohort = self._cohorts[row]
        elif sampled and not self._flags[row] & LIVE:
            age_s = now_s - self._verified_s[row]
            self._hazard.examined(cohort, age_s, moved=False, sampled=True, now_s=now_s)
        self._neighbours.missed(row, now_s)
        self._mark_verified(row)
        if self._flags[row] & LIVE:
            self._flags[row] |= ASKED
        self._verified_s[row] = now_s
        self._integral[row] = self._hazard.integral[cohort]
        if row in self._suspects and not self._flags[row] & LIVE:
            self._suspects[row] *= PASSED_FADE
            if self._suspects[row] < PASSED_CHANCE * PASSED_FADE ** len(PASSED_LOOKS_S):
                del self._suspects[row]

    def _mark_verified(self, row: int) -> None:
        self._unknown -= (self._flags[row] & UNVERIFIED) // UNVERIFIED
        self._flags[row] &= ~UNVERIFIED
        self._alarmed.discard(row)
        self._repeats.pop(row, None)
        self._left.pop(row, None)

    def _mark_unverified(self, row: int) -> None:
        self._unknown += 1 - (self._flags[row] & UNVERIFIED) // UNVERIFIED
        self._flags[row] |= UNVERIFIED

    def _found(self, row: int, *, sampled: bool, now_s: float) -> None:
        """A row has moved: its cohort and its neighbours are now more likely to."""
        cohort = self._cohorts[row]
        age_s = now_s - self._verified_s[row]
        self._hazard.examined(cohort, age_s, moved=True, sampled=sampled, now_s=now_s)
        self._neighbours.found(row, cohort, now_s)

    # Questions.

    def _put(self, row: int, worth: float, reason: str, now_s: float) -> None:
        for dropped in self._questions.put(row, worth, reason, now_s):
            if dropped.reason == "neighbour moved":
                self._neighbours.dropped(dropped.row)

    def _is_open(self, question: Question, now_s: float) -> bool:
        """Whether the question still makes sense: it may have been answered meanwhile, or be under way."""
        row = question.row
        flags = self._flags[row]
        if flags & FREE or row in self._flying:
            if question.reason == "neighbour moved":
                self._neighbours.dropped(row)
            return False
        if question.reason == "unverified" and row in self._repeats and self._repeats[row][1] > now_s:
            return False
        return bool(flags & UNVERIFIED) or self._verified_s[row] < question.at_s

    def _make_ready(self, due: Question, now_s: float) -> None:
        row, flags = due.row, self._flags[due.row]
        is_void = (
            flags & FREE
            or (due.reason == "second look" and not flags & LIVE)
            or (due.reason == "passed over" and row not in self._suspects)
            or (due.reason == "unverified" and not flags & UNVERIFIED)
        )
        if not is_void and due.worth > self._questions.bar:
            self._put(row, due.worth, due.reason, now_s)

    def _alarm(self, row: int, now_s: float) -> None:
        """A notice or a doubt: to the front, and looked at for longer than the API may lag, whatever it says first."""
        self._alarmed.add(row)
        self._put(row, URGENT_WORTH, "notice or doubt", now_s)
        if row not in self._suspects:
            self._suspects[row] = PASSED_CHANCE
            self._look_at_passed(row, now_s)

    def _ask_again(self, row: int, now_s: float) -> None:
        """The belief is not verified: ask again, later each time."""
        spacing = self._settings.repeat_after_s
        tries = self._repeats[row][0] if row in self._repeats else 0
        due_s = now_s + spacing[min(tries, len(spacing) - 1)]
        self._repeats[row] = (tries + 1, due_s)
        self._questions.put_later(due_s, row, self._doubt_worth(row, now_s), "unverified")

    def _doubt_worth(self, row: int, now_s: float) -> float:
        """What it is worth to verify a belief: much while it is unknown or a notice stands, else ever more."""
        if row in self._alarmed or self._hazard.keys[self._cohorts[row]][1] is None:
            return UNKNOWN_WORTH
        return CONFIRM_WORTH + (now_s - self._verified_s[row]) / CONFIRM_WITHIN_S

    def _retry(self, row: int, due_s: float) -> None:
        flight = self._flying.pop(row)
        self._neighbours.dropped(row)
        if self._flags[row] & UNVERIFIED:
            tries = self._repeats[row][0] if row in self._repeats else 0
            self._repeats[row] = (tries, due_s)
            # A notice that came while this very lookup was under way lost its own question to it (`_is_open`).
            worth = URGENT_WORTH if row in self._alarmed else max(flight.worth, CONFIRM_WORTH)
            self._questions.put_later(due_s, row, worth, "unverified")
        elif flight.reason in RETRIED:
            self._questions.put_later(due_s, row, flight.worth, flight.reason)

    def _follow_neighbours(self, now_s: float) -> None:
        while (proposed := self._neighbours.propose(now_s, self._standing)) is not None:
            row, chance = proposed
            worth = chance * max(NEIGHBOUR_WORTH, min(NEIGHBOUR_WORTH_MAX, 2.0 * self._scan_worth))
            self._put(row, worth, "neighbour moved", now_s)
        for row in self._neighbours.take_between():
            if not self._flags[row] & FREE and row not in self._suspects:
                self._suspects[row] = PASSED_CHANCE
                if self._flags[row] & LIVE:
                    self._weigh(row, now_s)
                else:
                    self._look_at_passed(row, now_s)

    def _look_at_passed(self, row: int, now_s: float) -> None:
        for wait_s in PASSED_LOOKS_S:
            self._questions.put_later(now_s + wait_s, row, NEIGHBOUR_WORTH, "passed over")

    def _standing(self, row: int, cohort: int) -> Standing:
        """How a row stands to a chase after the moves of ``cohort``."""
        if self._cohorts[row] != cohort:
            hazard = self._hazard
            return "moved" if hazard.targets[cohort] == hazard.keys[self._cohorts[row]][1] else "other"
        return "other" if self._flags[row] & (LIVE | FREE) or row in self._flying else "askable"

    # Weighing.

    def _chance(self, row: int, now_s: float) -> float:
        """How likely the row has moved since it was verified, or within the API's lag before that."""
        cohort, hazard = self._cohorts[row], self._hazard
        expected = hazard.per_s[cohort] * min(now_s - self._verified_s[row] + LAG_S, 3.0 * FORGET_S)
        expected = max(expected, hazard.integral[cohort] - self._integral[row])
        chance = expected if expected < 0.1 else 1.0 - math.exp(-expected)
        return max(chance, self._suspects.get(row, 0.0)) if self._suspects else chance

    def _weigh(self, row: int, now_s: float) -> float:
        """Put the row into its scan lane; return what a lookup of it is worth now."""
        chance = self._chance(row, now_s)
        age_s = now_s - self._verified_s[row]
        if self._flags[row] & LIVE:
            self._lanes.weigh(row, chance * LIVE_SCAN_PER_S, live=True)
            if not self._flags[row] & ASKED:
                return chance * STREAM_LASTS_S
            return 0.5 * LIVE_SHARE * chance * age_s
        now_per_s, soon_per_s = self._habits.starts_per_s(row, now_s)
        self._lanes.weigh(row, chance * now_per_s)
        delay_s = min(STREAM_LASTS_S, 0.5 * self._lanes.age_s(row, now_s) + SCAN_DELAY_S)
        return 0.25 * chance * (now_per_s + soon_per_s) * delay_s * age_s

    def _sweep(self, now_s: float) -> None:
        """Weigh the next few rows anew and make ready whoever is worth a lookup."""
        flags, size = self._flags, len(self._flags)
        cohorts, resting = self._cohorts, self._resting
        row, left = self._cursor, min(SWEEP, size)
        for _ in range(min(4 * SWEEP, size)):
            row += 1
            if row >= size:
                row, self._round = 0, self._round + 1
            state = flags[row]
            if state & FREE or (resting[cohorts[row]] and not state and (row + self._round) % REST_ROUNDS):
                continue
            self._consider(row, state, now_s)
            left -= 1
            if left <= 0:
                break
        self._cursor = row

    def _consider(self, row: int, state: int, now_s: float) -> None:
        worth = self._weigh(row, now_s)
        if state & UNVERIFIED:
            if row not in self._flying and (row not in self._repeats or self._repeats[row][1] < now_s):
                self._put(row, UNKNOWN_WORTH, "unverified", now_s)
        elif worth > self._questions.bar and now_s - self._verified_s[row] > LOOK_AGAIN_S and row not in self._flying:
            self._put(row, worth, "live" if state & LIVE else "offline", now_s)

    def _weigh_scan(self, now_s: float) -> None:
        """Look every few decisions what the best scan would be worth."""
        self._lanes_hold -= 1
        if self._lanes_hold > 0:
            return
        self._lanes_hold = SWEEP
        self._lane_order = self._lanes.order(now_s, SCAN_AGAIN_S)
        worth, left = 0.0, self._settings.names_per_scan
        for each, lane in self._lane_order:
            count = min(left, self._lanes.sizes[lane])
            worth += each * count
            left -= count
            if left <= 0:
                break
        self._scan_worth = worth

    def _scan(self, now_s: float) -> Request | Wait:
        rows: list[int] = []
        wanted = self._settings.names_per_scan
        for _, lane in self._lane_order:
            rows += self._lanes.take(lane, wanted - len(rows), now_s, SCAN_AGAIN_S)
            if len(rows) >= wanted:
                break
            self._lanes_hold = 0
        self._lanes_hold -= SWEEP // 2
        names = self._names
        return StreamsScan(tuple([names[row] for row in rows])) if rows else self._wait(now_s)

    def _wait(self, now_s: float) -> Wait:
        return Wait(min(self._questions.next_due_s, now_s + SCAN_AGAIN_S))

    def _sources(self, row: int, worth: float, now_s: float) -> dict[str, float]:
        """Split what a lookup is worth by what says so; ``worth`` is as :meth:`_weigh` gave it."""
        chance = max(self._chance(row, now_s), 1e-12)
        suspected = self._suspects.pop(row, 0.0)
        unsuspected = self._chance(row, now_s)
        if suspected:
            self._suspects[row] = suspected
        if not self._flags[row] & LIVE:
            when = "it may go live"
        elif self._flags[row] & ASKED:
            when = "it may have broken off unseen"
        else:
            when = "it streams and was not asked since"
        sources = {f"moves in its cohort, and {when}": worth * unsuspected / chance}
        if suspected:
            sources[f"neighbours that moved, or a notice, and {when}"] = worth * suspected / chance
        if row in self._alarmed:
            sources["a notice or a doubt that stands"] = URGENT_WORTH
        if self._flags[row] & UNVERIFIED:
            sources["no lookup has agreed yet"] = self._doubt_worth(row, now_s)
        return sources

    def _outlook(self, row: int, worth: float, age_s: float, now_s: float) -> tuple[str, float]:
        """The strongest reason to ask a row, and when that is expected."""
        if row in self._flying:
            return f"asked just now: {self._flying[row].reason}", now_s
        if row in self._repeats:
            return "not verified yet", self._repeats[row][1]
        if self._flags[row] & UNVERIFIED:
            return "not verified yet", now_s
        if row in self._suspects:
            return "its neighbours moved, or a notice was heard", now_s + PASSED_LOOKS_S[0]
        reason = "streams: may have broken off unseen" if self._flags[row] & LIVE else "may go live elsewhere"
        due = max(self._questions.bar, self._scan_worth) / max(worth, 1e-12)
        return reason, now_s + age_s * max(0.0, math.sqrt(due) - 1.0)

    # Ticking.

    def _tick(self, now_s: float) -> None:
        self._hazard.tick(now_s)
        busy = REST_SHARE * max(self._hazard.per_s, default=0.0)
        self._resting = [per_s < busy for per_s in self._hazard.per_s]
        passed_s = now_s - self._tick_s + TICK_S
        self._rate_per_s += 0.05 * (self._asked_since_tick / passed_s - self._rate_per_s)
        self._asked_since_tick = 0
        self._tick_s = now_s + TICK_S
        self._neighbours.slowness = max(1.0, 1.0 / max(self._rate_per_s, 1e-3))
        forgotten_s = now_s - self._settings.forget_in_flight_after_s
        for row in [row for row, flight in self._flying.items() if flight.sent_s < forgotten_s]:
            self._retry(row, now_s)
        if now_s >= self._slow_tick_s:
            self._habits.tick(now_s)
            self._slow_tick_s = now_s + SLOW_TICK_S
            if abs(len(self._names) - self._in_line) > len(self._names) // 100:
                self._stand_in_line()

    def _stand_in_line(self) -> None:
        """Order the rows by name within their labels, for the neighbours; when one in a hundred is new."""
        lines: dict[frozenset[str], list[int]] = {}
        for row, cohort in enumerate(self._cohorts):
            if not self._flags[row] & FREE:
                lines.setdefault(self._hazard.keys[cohort][0], []).append(row)
        orders = [array("i", sorted(rows, key=self._names.__getitem__)) for rows in lines.values()]
        self._neighbours.set_orders(orders, len(self._names))
        self._in_line = len(self._names)
