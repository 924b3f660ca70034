"""Follows a batch of moves along the alphabet: who stands beside a moved channel has often moved with it.

Around each channel found moved a *chase* asks outwards, in the order of names within the same labels, in both
directions, until two answers in a row contradict it. A chase that found several keeps a *sentinel* at each end: the
script often goes on where it stopped. How often a neighbour had really moved is learned; where batches tell nothing
of neighbours, chases become rare by themselves.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Neighbours"]

MISSES_TO_STOP = 2
WINDOW = 4
"""Questions of one chase and direction under way at once."""
CHASES = 48
"""Chases remembered; the one whose last find is oldest is forgotten first."""
SENTINEL_FINDS = 3
"""Finds after which a chase keeps sentinels."""
CHASE_LASTS_S = 5_400.0
WATCH_FIRST_S = 40.0
WATCH_LAST_S = 2_400.0
WATCH_GROWS = 1.2
"""A sentinel looks first so soon after the last find, then ever more rarely."""
STRIDE = 64
"""Rows looked at for one proposal: those that moved already or stream are passed over."""
PASSED = 256
"""Rows passed over since the last find that are remembered, to be asked once more if a find follows."""
FADE = 0.995
"""What is known of neighbours fades with each answer: two hundred answers of memory."""
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
    finds: int = 1
    last_find_s: float = 0.0


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

    @property
    def moved_share(self) -> float:
        """How large a part of the asked neighbours had moved, lately."""
        return self._moved / self._asked

    @property
    def chases(self) -> int:
        """How many chases are remembered."""
        return len(self._chases)

    def found(self, row: int, cohort: int, now_s: float) -> list[int]:
        """A move was found, by a chase or otherwise.

        Returns:
            Rows passed over between moved ones: their own move is late, or the API's knowledge of it.
        """
        if row in self._asked_for:
            chase, side = self._asked_for.pop(row)
            self._note(moved=True)
            side.asked -= 1
            side.misses, side.first_miss, side.watch_s = 0, None, WATCH_FIRST_S
            chase.finds += 1
            chase.last_find_s = now_s
            between, side.passed = side.passed, []
            return between
        if row >= len(self._place) or self._place[row] < 0:
            return []
        number, place = self._order_of[row], self._place[row]
        for chase in self._chases:
            if chase.order == number and chase.cohort == cohort and chase.sides[0].edge < place < chase.sides[1].edge:
                chase.finds += 1
                chase.last_find_s = now_s
                return []
        self._passed_over += 1
        if self.moved_share >= RARE or self._passed_over % 8 == 0:
            self._begin(number, place, cohort, now_s)
        return []

    def missed(self, row: int, now_s: float) -> None:
        """The row was asked and has not moved; heeded only if a chase asked."""
        if row not in self._asked_for:
            return
        chase, side = self._asked_for.pop(row)
        self._note(moved=False)
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
        """The row was proposed, but the question brought nothing."""
        if row in self._asked_for:
            _, side = self._asked_for.pop(row)
            side.asked -= 1

    def propose(self, now_s: float, can_ask: Callable[[int, int], bool]) -> int | None:
        """The next row that some chase wants asked, or None.

        Args:
            now_s: the time.
            can_ask: whether the row is still believed in the chase's cohort and worth a question now.
        """
        for chase in self._chases:
            for side in chase.sides:
                if side.misses >= MISSES_TO_STOP:
                    if chase.finds < SENTINEL_FINDS or now_s < side.watch_at_s or side.asked:
                        continue
                    if now_s - chase.last_find_s > CHASE_LASTS_S:
                        continue
                    if side.first_miss is not None:
                        side.edge = side.first_miss
                    side.misses, side.first_miss, side.passed = 0, None, []
                row = self._advance(chase, side, can_ask)
                if row is not None:
                    return row
        return None

    def _advance(self, chase: _Chase, side: _Side, can_ask: Callable[[int, int], bool]) -> int | None:
        order = self._orders[chase.order]
        for _ in range(STRIDE):
            if side.asked >= WINDOW or side.asked + side.misses >= WINDOW or not 0 <= side.edge < len(order):
                return None
            row = order[side.edge]
            side.edge += side.step
            if row in self._asked_for:
                continue
            if can_ask(row, chase.cohort):
                side.asked += 1
                self._asked_for[row] = (chase, side)
                return row
            if len(side.passed) < PASSED:
                side.passed.append(row)
        return None

    def _begin(self, order: int, place: int, cohort: int, now_s: float) -> None:
        chase = _Chase(order, cohort, (_Side(-1, place - 1), _Side(1, place + 1)), last_find_s=now_s)
        self._chases.append(chase)
        if len(self._chases) > CHASES:
            oldest = min(self._chases, key=lambda other: other.last_find_s)
            self._chases.remove(oldest)

    def _note(self, *, moved: bool) -> None:
        self._asked = self._asked * FADE + 1.0
        self._moved = self._moved * FADE + moved
