"""The migration as data: who moves where, when, in which batches; and the run through it.

The order is the one that the platform's forum tells (thread 4877, 2016): staff in the first weekend, fewer than 50
opted-in partners in the first week, then all partners, then everyone, two weeks in all; after a bad weekend every
channel was moved back once and then moved again; `event` is merged; `group` is never touched. A channel moves only
while it does not stream, in small batches, because users asked for batches that their JOIN limits can follow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol

from serverchange.events import Channel, Cluster
from serverchange.simulator.draw import shuffle
from serverchange.simulator.settings import DAY_S, SCRIPT_DAYS

MAIN: Final = Cluster("main")
EVENT: Final = Cluster("event")
AWS: Final = Cluster("aws")

RETRY_S: Final = 900.0
"""Simulated seconds after which a batch that could not be filled, because the others stream, looks again."""


class Cohort(StrEnum):
    """The groups in which the platform moved channels."""

    STAFF = "staff"
    OPTED_IN = "opted-in"
    PARTNER = "partner"
    EVENT = "event"
    EVERYONE = "everyone"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the script.

    Attributes:
        name: what people call it.
        start_day: simulated days after the script's start; later if the step before is not done.
        duration_days: the batches are spread evenly over this time.
        cohorts: who moves, as far as they are not at the target already.
        target: where to.
    """

    name: str
    start_day: float
    duration_days: float
    cohorts: frozenset[Cohort]
    target: Cluster


_EARLY: Final = frozenset({Cohort.STAFF, Cohort.OPTED_IN, Cohort.PARTNER})

DEFAULT_SCRIPT: Final = (
    Step("staff", 0.5, 1.0, frozenset({Cohort.STAFF}), AWS),
    Step("opted-in", 2.0, 1.5, frozenset({Cohort.OPTED_IN}), AWS),
    Step("partners", 4.0, 1.5, frozenset({Cohort.PARTNER}), AWS),
    Step("rollback after a bad weekend", 6.0, 0.75, _EARLY, MAIN),
    Step("partners again", 7.0, 1.75, _EARLY, AWS),
    Step("event merged", 9.0, 0.25, frozenset({Cohort.EVENT}), AWS),
    Step("everyone", 9.5, 4.0, frozenset({Cohort.EVERYONE}), AWS),
)
"""Two weeks that begin on a Friday."""


def script_within(days: float) -> tuple[Step, ...]:
    """Return the default script at another pace: all of it takes `days` simulated days."""
    pace = days / SCRIPT_DAYS
    return tuple(
        replace(step, start_day=step.start_day * pace, duration_days=step.duration_days * pace)
        for step in DEFAULT_SCRIPT
    )


class Residents(Protocol):
    """What the script has to know of the world."""

    @property
    def cohort_of(self) -> Mapping[Channel, Cohort]:
        """Every channel's cohort."""

    @property
    def cluster_of(self) -> Mapping[Channel, Cluster]:
        """Where each lives now."""

    @property
    def live(self) -> Mapping[Channel, float]:
        """The channels that stream now, and since when."""


class MigrationRun:
    """One run through a script. Times are simulated seconds of the world; a pause shifts all that is to come."""

    def __init__(self, script: Sequence[Step], *, seed: int, batch_channels: int, starts_s: float | None) -> None:
        """Prepare a run.

        Args:
            script: the steps, in order.
            seed: decides the order of the channels within a step.
            batch_channels: how many move at once.
            starts_s: when the script's time begins; None waits for `start`.
        """
        self._script = script
        self._seed = seed
        self._batch_channels = batch_channels
        self._offset_s = starts_s or 0.0
        self._paused_at_s: float | None = 0.0 if starts_s is None else None
        self._index = -1
        self._queue: deque[Channel] = deque()
        self._interval_s = 0.0
        self._due_s = script[0].start_day * DAY_S if script else math.inf
        self._planned = 0

    @property
    def done(self) -> bool:
        """Whether every step is through."""
        return self._due_s == math.inf

    @property
    def state(self) -> str:
        """`paused`, `running` or `done`."""
        if self.done:
            return "done"
        return "paused" if self._paused_at_s is not None else "running"

    @property
    def step_name(self) -> str | None:
        """The step that is under way, or None before the first and after the last."""
        return self._script[self._index].name if 0 <= self._index < len(self._script) and not self.done else None

    @property
    def waiting(self) -> int:
        """Channels of this step that have not moved yet."""
        return len(self._queue)

    @property
    def due_s(self) -> float:
        """World time of the next batch; infinity while paused or done."""
        return math.inf if self._paused_at_s is not None else self._due_s + self._offset_s

    def start(self, now_s: float) -> None:
        """Begin, or go on after a pause."""
        if self._paused_at_s is not None:
            self._offset_s += now_s - self._paused_at_s
            self._paused_at_s = None

    def pause(self, now_s: float) -> None:
        """Hold the script's time."""
        if self._paused_at_s is None:
            self._paused_at_s = now_s

    def next_batch(self, world: Residents) -> tuple[Step, list[Channel]]:
        """Return the step that is under way and the channels that move now; call it once `due_s` has come.

        Channels that stream are put back to the end of the queue, so the step waits for them.
        """
        if not self._queue:
            self._begin_step(world)
        step = self._script[self._index]
        batch: list[Channel] = []
        for _ in range(len(self._queue)):
            channel = self._queue.popleft()
            if world.cluster_of[channel] == step.target:
                continue
            if channel in world.live:
                self._queue.append(channel)
                continue
            batch.append(channel)
            if len(batch) == self._batch_channels:
                break
        self._plan_next(full=len(batch) == self._batch_channels)
        return step, batch

    def _begin_step(self, world: Residents) -> None:
        self._index += 1
        step = self._script[self._index]
        chosen = [
            channel
            for channel, cohort in world.cohort_of.items()
            if cohort in step.cohorts and world.cluster_of[channel] != step.target
        ]
        shuffle(chosen, self._seed, "order", self._index)
        self._queue.extend(chosen)
        batches = max(1, math.ceil(len(chosen) / self._batch_channels))
        self._interval_s = step.duration_days * DAY_S / batches

    def _plan_next(self, *, full: bool) -> None:
        """Say when to look again: a batch that is not full has left only channels that stream, so soon."""
        if self._queue:
            self._due_s += self._interval_s if full else min(self._interval_s, RETRY_S)
        elif self._index + 1 < len(self._script):
            self._due_s = max(self._due_s, self._script[self._index + 1].start_day * DAY_S)
        else:
            self._due_s = math.inf
