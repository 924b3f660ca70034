"""Learns how likely a channel of each cohort is to have moved: the phase of the migration, from what was seen.

A cohort is a set of labels on one believed cluster. Two estimates, the larger counts: moves found a member a second
over the last while (right when we find nearly all), and moves found a second of belief examined (right when many
move at once, faster than we can ask). Both forget within the hour, because a script moves a phase and goes on.
"""

import math

__all__ = ["CohortKey", "MoveHazard"]

CohortKey = tuple[frozenset[str], str | None]

FORGET_S = 2_400.0
"""e-folding time of what was seen; a phase of the migration lasts hours to days, a rollback minutes."""
REST_PER_S = 1.0 / (120 * 86_400.0)
"""What is assumed of a cohort in which nothing was ever seen to move: once in 120 days."""
CONTAGION_SAME, CONTAGION_OTHER = 0.03, 0.003
"""Part of the busiest cohort's hazard given to every other on the same cluster (phases follow one another), and to
those elsewhere (a bad weekend sends everybody back)."""
EXAMINED_PRIOR_S = 4 * 3_600.0
"""Examined time, a cohort, before a single find can make the hazard high."""


class MoveHazard:
    """One row a cohort."""

    def __init__(self, *, now_s: float) -> None:
        self._ids: dict[CohortKey, int] = {}
        self.keys: list[CohortKey] = []
        self.members: list[int] = []
        self.per_s: list[float] = []
        self.integral: list[float] = []
        self.targets: list[str | None] = []
        self._found: list[float] = []
        self._hits: list[float] = []
        self._examined_s: list[float] = []
        self._now_s = now_s
        self.last_move_s: float | None = None

    def cohort(self, key: CohortKey) -> int:
        """The row of a cohort, made on first use."""
        row = self._ids.get(key)
        if row is None:
            row = self._ids[key] = len(self.keys)
            self.keys.append(key)
            self.members.append(0)
            self.per_s.append(REST_PER_S)
            self.integral.append(0.0)
            self.targets.append(None)
            self._found.append(0.0)
            self._hits.append(0.0)
            self._examined_s.append(0.0)
        return row

    def examined(self, cohort: int, age_s: float, *, moved: bool, sampled: bool, now_s: float) -> None:
        """A lookup told whether a channel had moved in the ``age_s`` since it was last verified.

        Args:
            cohort: the cohort that it was believed in.
            age_s: seconds since the belief was verified.
            moved: the lookup contradicted the belief.
            sampled: it was not asked because a neighbour had moved; only such lookups say how many move.
            now_s: the time.
        """
        if moved:
            self._found[cohort] += 1.0
            self.last_move_s = now_s
        if sampled:
            self._examined_s[cohort] += min(age_s, FORGET_S)
            if moved:
                self._hits[cohort] += min(1.0, FORGET_S / max(age_s, 1.0))
        if moved:
            self._estimate(cohort)

    def tick(self, now_s: float) -> None:
        """Forget, integrate and estimate anew; to be called every few seconds."""
        passed_s = now_s - self._now_s
        self._now_s = now_s
        keep = math.exp(-passed_s / FORGET_S)
        busiest: dict[str | None, float] = {}
        for cohort, (_, cluster) in enumerate(self.keys):
            self.integral[cohort] += self.per_s[cohort] * passed_s
            self._found[cohort] *= keep
            self._hits[cohort] *= keep
            self._examined_s[cohort] *= keep
            self._estimate(cohort)
            busiest[cluster] = max(busiest.get(cluster, 0.0), self.per_s[cohort])
        anywhere = CONTAGION_OTHER * max(busiest.values(), default=0.0)
        for cohort, (_, cluster) in enumerate(self.keys):
            self.per_s[cohort] = max(self.per_s[cohort], anywhere, CONTAGION_SAME * busiest[cluster])

    def _estimate(self, cohort: int) -> None:
        counted = self._found[cohort] / (FORGET_S * max(1, self.members[cohort]))
        sampled = self._hits[cohort] / (self._examined_s[cohort] + EXAMINED_PRIOR_S)
        self.per_s[cohort] = REST_PER_S + max(counted, sampled)
