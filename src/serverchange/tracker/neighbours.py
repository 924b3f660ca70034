"""Follows a batch of moves along the alphabet: who stands beside a moved channel has often moved with it.

Around each channel found moved a *chase* asks outwards, in the order of names within the same labels, in both
directions, until two answers in a row contradict it. A chase that found several keeps a *sentinel* at each end: the
script often goes on where it stopped. How often a neighbour had really moved is learned; where batches tell nothing
of neighbours, chases become rare by themselves.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Neighbours", "Standing"]

Standing = Literal["askable", "moved", "other"]
"""Still in the chase's cohort and worth a question; moved where the chase's finds moved; or neither."""

MISSES_TO_STOP = 2
WINDOW = 4
"""Questions of one chase and direction under way at once."""
CHASES = 48
"""Chases remembered; the one whose last find is oldest is forgotten first."""
GOOD_FINDS, GOOD_ASKED_A_FIND = 2.8, 14.0
"""Finds after which a chase is believed and keeps sentinels, and how many questions each may have taken."""
FADE_CHASE = 0.99
CHASE_LASTS_S = 5_400.0
WATCH_FIRST_S = 40.0
WATCH_LAST_S = 2_400.0
WATCH_GROWS = 1.2
"""A sentinel looks first so soon after the last find, then ever more rarely."""
LOOK_EVERY_S = 5.0
"""How often the chases are looked through for sentinels that are due, when nothing else has happened."""
STRIDE = 64
"""Rows looked at for one proposal: those that moved already or stream are passed over."""
PASSED = 256
"""Rows passed over since the last find that are remembered, to be asked once more if a find follows."""
FADE = 0.995
"""What is known of neighbours fades with each answer: two hundred answers of memory."""
COMMON = 0.1
"""Share of first neighbours found moved above which they are asked like those of a chase that found several."""
RARE = 0.02
"""Share of neighbours found moved below which only every eighth find starts a chase."""


@dataclass(slots=True, eq=False)
class _Side:
    """One direction of a chase; ``passed`` are the rows beyond the last find that had not moved or streamed."""

    step: int
    edge: int
    misses: int = 0
    first_miss: int | None = None
    asked: int = 0
    watch_s: float = WATCH_FIRST_S
    watch_at_s: float = 0.0
    passed: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Chase:
    order: int
    cohort: int
    sides: tuple[_Side, _Side]
    finds: float = 1.0
    asked: float = 0.0
    last_find_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether it found enough to be believed, and to keep sentinels."""
        return self.finds >= GOOD_FINDS and self.finds * GOOD_ASKED_A_FIND >= self.asked

    def note(self, moved: float) -> None:
        """An answer came."""
        self.finds = self.finds * FADE_CHASE + moved
        self.asked = self.asked * FADE_CHASE + 1.0


class Neighbours:
    """Which rows to ask because of their neighbours. The caller asks, and reports what it found."""

    def __init__(self) -> None:
        self._place = array("i")
        self._orders: list[array[int]] = []
        self._order_of = array("i")
        self._chases: list[_Chase] = []
        self._asked_for: dict[int, tuple[_Chase, _Side]] = {}
        self._asked = 8.0
        self._moved = 4.0
        self._passed_over = 0
        self._between: list[int] = []
        self._changed = False
        self._look_at_s = 0.0
        self.slowness = 1.0

    def set_orders(self, orders: list["array[int]"], rows: int) -> None:
        """Stand the rows in line anew: one line a set of labels, in order of names; running chases end."""
        self._orders = orders
        self._place = array("i", [-1]) * rows
        self._order_of = array("i", [-1]) * rows
        for number, order in enumerate(orders):
            for place, row in enumerate(order):
                self._place[row], self._order_of[row] = place, number
        self._chases.clear()
        self._asked_for.clear()
        self._between.clear()

    @property
    def moved_share(self) -> float:
        """How large a part of the first neighbours asked in a chase had moved, lately."""
        return self._moved / self._asked

    @property
    def chases(self) -> int:
        """How many chases are remembered."""
        return len(self._chases)

    def found(self, row: int, cohort: int, now_s: float) -> None:
        """A move was found, by a chase or otherwise."""
        self._changed = True
        if row in self._asked_for:
            chase, side = self._asked_for.pop(row)
            self._note(chase, moved=True)
            side.asked -= 1
            side.watch_s = WATCH_FIRST_S
            if side.first_miss is None or (self._place[row] - side.first_miss) * side.step > 0:
                side.misses, side.first_miss = 0, None
            chase.last_find_s = now_s
            self._surround(chase, side)
            return
        if row >= len(self._place) or self._place[row] < 0:
            return
        number, place = self._order_of[row], self._place[row]
        for chase in self._chases:
            if chase.order == number and chase.cohort == cohort and chase.sides[0].edge < place < chase.sides[1].edge:
                return
        self._passed_over += 1
        if self.moved_share >= RARE or self._passed_over % 8 == 0:
            self._begin(number, place, cohort, now_s)

    def missed(self, row: int, now_s: float) -> None:
        """The row was asked and has not moved; heeded only if a chase asked."""
        if row not in self._asked_for:
            return
        self._changed = True
        chase, side = self._asked_for.pop(row)
        self._note(chase, moved=False)
        side.asked -= 1
        side.misses += 1
        side.passed.append(row)
        place = self._place[row]
        if side.first_miss is None or (place - side.first_miss) * side.step < 0:
            side.first_miss = place
        if side.misses == MISSES_TO_STOP:
            side.watch_at_s = now_s + side.watch_s * self.slowness
            side.watch_s = min(WATCH_LAST_S, side.watch_s * WATCH_GROWS)

    def dropped(self, row: int) -> None:
        """The row was proposed, but the question brought nothing: it counts as passed over."""
        if row in self._asked_for:
            self._changed = True
            _, side = self._asked_for.pop(row)
            side.asked -= 1
            side.passed.append(row)

    def propose(self, now_s: float, standing: Callable[[int, int], Standing]) -> tuple[int, float] | None:
        """The next row that some chase wants asked and the chance that it moved, or None.

        Args:
            now_s: the time.
            standing: how a row stands to the cohort of a chase.
        """
        if not self._changed and now_s < self._look_at_s:
            return None
        for chase in self._chases:
            for side in chase.sides:
                if side.misses >= MISSES_TO_STOP and not self._resume(chase, side, now_s):
                    continue
                row = self._advance(chase, side, standing)
                if row is not None:
                    self._changed = True
                    return row, 1.0 if chase.is_good or self.moved_share > COMMON else self.moved_share
        self._changed = False
        self._look_at_s = now_s + LOOK_EVERY_S
        return None

    def take_between(self) -> list[int]:
        """Rows passed over between moved ones since the last call: late themselves, or the API's knowledge is."""
        between, self._between = self._between, []
        return between

    def _resume(self, chase: _Chase, side: _Side, now_s: float) -> bool:
        """A stopped side looks again where it first missed, if its chase found several and not too long ago."""
        if not chase.is_good or side.asked or now_s < side.watch_at_s:
            return False
        if now_s - chase.last_find_s > CHASE_LASTS_S:
            return False
        if side.first_miss is not None:
            side.edge = side.first_miss
        side.misses, side.first_miss, side.passed = 0, None, []
        return True

    def _advance(self, chase: _Chase, side: _Side, standing: Callable[[int, int], Standing]) -> int | None:
        order = self._orders[chase.order]
        for _ in range(STRIDE):
            if side.asked + side.misses >= WINDOW or not 0 <= side.edge < len(order):
                return None
            row = order[side.edge]
            side.edge += side.step
            if row in self._asked_for:
                continue
            stands = standing(row, chase.cohort)
            if stands == "askable":
                side.asked += 1
                self._asked_for[row] = (chase, side)
                return row
            if stands == "moved":
                self._surround(chase, side)
            elif len(side.passed) < PASSED:
                side.passed.append(row)
        return None

    def _surround(self, chase: _Chase, side: _Side) -> None:
        """What was passed over is seen to lie between moved rows."""
        if chase.is_good:
            self._between += side.passed
            side.passed = []

    def _begin(self, order: int, place: int, cohort: int, now_s: float) -> None:
        chase = _Chase(order, cohort, (_Side(-1, place - 1), _Side(1, place + 1)), last_find_s=now_s)
        self._chases.append(chase)
        if len(self._chases) > CHASES:
            oldest = min(self._chases, key=lambda other: other.last_find_s)
            self._chases.remove(oldest)

    def _note(self, chase: _Chase, *, moved: bool) -> None:
        if not chase.is_good:
            self._asked = self._asked * FADE + 1.0
            self._moved = self._moved * FADE + moved
        chase.note(moved)
