"""A whole migration as data: who streams when, who moves when, and when the API notices.

Made from what the platform said of its own migration (its forum, thread 4877): staff first, then a few partners who
opted in, a bad weekend after which every moved channel goes back, then all partners, then everyone, in batches, and
only while a channel does not stream; the largest channels live on ``event`` and are merged last; group rooms never
move and are nobody's to track. Everything here is the truth: no policy may read it.
"""

import math
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

__all__ = ["DAY_S", "HOUR_S", "Move", "Scenario", "World", "build_world"]

HOUR_S = 3_600.0
DAY_S = 86_400.0
MAIN, EVENT, AWS = "main", "event", "aws"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that differs between worlds.

    Attributes:
        channels: how many can move.
        days: length of the migration; the script's phases scale with it.
        requests_per_s: what every policy may spend.
        notice_loss: chance that a SERVERCHANGE never reaches us.
        order: what a batch follows: the alphabet within a label, or nothing that a client can see.
        deferral: what the script does with a channel that streams when its batch is due: moves it as soon as it
            stops, or tries again at a later sweep, or with the phase's stragglers at the end.
        habits: regular people with an hour and weekdays of their own, or the same numbers of streams at random times.
        streams_per_week: median over the channels.
        interruptions: chance that a stream breaks off for a few minutes.
        lag_median_s: how long an API replica goes on telling the old cluster after a move (median; log-normal).
        rollbacks: bad weekends: after how large a part of the whole time everything goes back.
        batch_share: size of a batch, as a part of all channels.
        batch_spread_s: how long the script takes over one batch.
        failures: chance that a request fails by itself; beside it there are 429 spells and an outage.
        moving: False: nobody ever moves.
    """

    channels: int = 20_000
    days: float = 14.0
    requests_per_s: float = 2.0
    notice_loss: float = 1.0
    order: Literal["name", "hidden"] = "name"
    deferral: Literal["at-end", "sweep", "stragglers"] = "at-end"
    habits: Literal["regular", "random"] = "regular"
    streams_per_week: float = 3.0
    interruptions: float = 0.25
    lag_median_s: float = 30.0
    rollbacks: tuple[float, ...] = (0.40,)
    batch_share: float = 1 / 400
    batch_spread_s: float = 120.0
    failures: float = 0.005
    moving: bool = True

    def scaled(self, channels: int) -> "Scenario":
        """The same world with another number of channels and requests in proportion."""
        return replace(self, channels=channels, requests_per_s=self.requests_per_s * channels / self.channels)


@dataclass(frozen=True, slots=True)
class Move:
    """One channel moves: at once in truth, later in each replica of the API, and perhaps with a notice."""

    at_s: float
    channel: int
    cluster: str
    lags_s: tuple[float, float]
    noticed: bool


@dataclass(slots=True)
class World:
    """The truth of one seed. Streams are flat ``start, end, start, end`` columns a channel, in order."""

    scenario: Scenario
    seed: int
    names: list[str] = field(default_factory=list)
    labels: list[frozenset[str]] = field(default_factory=list)
    homes: list[str] = field(default_factory=list)
    streams: list["array[float]"] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    spells: list[tuple[float, float]] = field(default_factory=list)

    @property
    def end_s(self) -> float:
        """When the two weeks are over."""
        return self.scenario.days * DAY_S

    def is_live(self, channel: int, at_s: float) -> bool:
        """Whether the channel streams at that moment."""
        return bisect_right(self.streams[channel], at_s) % 2 == 1


def build_world(scenario: Scenario, seed: int) -> World:
    """Draw one world. The same scenario and seed give the same world on every machine."""
    random = Random(seed * 7_919 + 17)
    world = World(scenario, seed)
    world.names = _draw_names(scenario.channels, random)
    weights = [random.lognormvariate(0.0, 1.0) for _ in world.names]
    _label(world, weights, random)
    for index in range(scenario.channels):
        world.streams.append(_draw_streams(scenario, weights[index], random))
    if scenario.moving:
        world.moves = _Script(world, weights, random).run()
    world.spells = [(at := random.uniform(0, world.end_s), at + 60.0) for _ in range(20)]
    world.spells.append((world.end_s * 0.75, world.end_s * 0.75 + 600.0))
    world.spells.sort()
    return world


def _draw_names(count: int, random: Random) -> list[str]:
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiouy"]
    names: set[str] = set()
    while len(names) < count:
        name = "".join(random.choices(syllables, k=random.randint(2, 5)))
        names.add(name + str(random.randint(0, 999)) if random.random() < 0.4 else name)
    drawn = sorted(names)
    random.shuffle(drawn)
    return drawn


def _label(world: World, weights: list[float], random: Random) -> None:
    """Staff are anybody, partners the popular; the largest partners live on ``event``."""
    count = len(weights)
    by_weight = sorted(range(count), key=lambda index: weights[index] * random.uniform(0.5, 2.0), reverse=True)
    partners = set(by_weight[: count // 15])
    staff = set(random.sample(range(count), max(3, min(10, count // 500))))
    large = set(by_weight[: max(3, count // 1_000)])
    for index in range(count):
        names = {"partner"} if index in partners else set()
        world.labels.append(frozenset(names | ({"staff"} if index in staff else set())))
        world.homes.append(EVENT if index in large and index not in staff else MAIN)


def _draw_streams(scenario: Scenario, weight: float, random: Random) -> "array[float]":
    """One channel's streams: how often, when in the day and the week, how long, with what breaks."""
    per_week = min(20.0, scenario.streams_per_week * weight * random.lognormvariate(0.0, 0.6))
    hour = random.gauss(19.5, 4.5) if random.random() < 0.75 else random.uniform(0, 24)
    width = random.choice((0.3, 0.7, 1.5, 3.0))
    days = _draw_weekdays(per_week, random)
    length_h = random.lognormvariate(math.log(2.5), 0.5)
    starts: list[float] = []
    for day in range(-1, math.ceil(scenario.days) + 1):
        chance = days[day % 7]
        while chance > 0 and random.random() < chance:
            chance -= 1.0
            if scenario.habits == "random":
                starts.append(random.uniform(-1, scenario.days) * DAY_S)
            else:
                starts.append(day * DAY_S + random.gauss(hour, width) * HOUR_S)
    streams = array("d")
    for start in sorted(starts):
        if streams and start < streams[-1] + 600:
            continue
        end = start + max(900.0, random.lognormvariate(math.log(length_h), 0.7) * HOUR_S)
        _append_with_breaks(streams, start, min(end, start + 60 * HOUR_S), scenario.interruptions, random)
    return streams


def _draw_weekdays(per_week: float, random: Random) -> list[float]:
    """Expected streams on each weekday; half of the people keep to days of their own."""
    if random.random() < 0.5:
        kept = random.sample(range(7), max(1, min(7, round(per_week))))
        return [per_week / len(kept) if day in kept else 0.0 for day in range(7)]
    weekend = random.uniform(0.7, 2.0)
    raw = [weekend if day >= 5 else 1.0 for day in range(7)]
    return [per_week * part / sum(raw) for part in raw]


def _append_with_breaks(
    streams: "array[float]", start: float, end: float, interruptions: float, random: Random
) -> None:
    streams.append(start)
    at = start
    while random.random() < interruptions:
        at = random.uniform(at, end)
        back = at + min(1_800.0, random.lognormvariate(math.log(180.0), 0.9))
        if back > end - 300 or at - streams[-1] < 60:
            break
        streams.extend((at, back))
        at = back
    streams.append(end)


class _Script:
    """The platform's script: plans phases and moves each channel while it is offline."""

    def __init__(self, world: World, weights: list[float], random: Random) -> None:
        self._world = world
        self._random = random
        self._weights = weights
        self._cluster = list(world.homes)
        self._busy_until = [0.0] * len(weights)
        self._moves: list[Move] = []
        self._end_s = world.end_s

    def run(self) -> list[Move]:
        world, random = self._world, self._random
        count = len(world.names)
        staff = [index for index in range(count) if "staff" in world.labels[index]]
        partners = [index for index in range(count) if "partner" in world.labels[index] and index not in set(staff)]
        opted = random.sample(partners, min(45, max(3, len(partners) // 8)))
        rest = sorted(set(partners) - set(opted))
        everyone = sorted(set(range(count)) - set(partners) - set(staff))
        self._phase(staff, 0.04, 0.06)
        self._phase(opted, 0.15, 0.36)
        done = staff + opted
        phases = [(rest, 0.46, 0.60), (everyone, 0.60, 0.95)]
        pending = sorted(world.scenario.rollbacks)
        if pending and pending[0] < 0.46:
            self._go_back(done, pending.pop(0))
            self._phase(done, 0.43, 0.455)
        for members, begin, end in phases:
            if pending and begin < pending[0] < end:
                at = pending.pop(0)
                part = (at - begin) / (end - begin)
                ordered = self._ordered(members)
                first, second = ordered[: int(len(members) * part)], ordered[int(len(members) * part) :]
                self._phase(first, begin, at)
                self._go_back(done + first, at + 0.004)
                self._phase(done + first, at + 0.05, at + 0.09)
                self._phase(second, at + 0.09, end)
            else:
                self._phase(members, begin, end)
            done = done + members
        self._moves.sort(key=lambda move: move.at_s)
        return self._moves

    def _ordered(self, members: list[int]) -> list[int]:
        names = self._world.names
        if self._world.scenario.order == "name":
            return sorted(members, key=lambda index: names[index])
        return self._random.sample(members, len(members))

    def _phase(self, members: list[int], begin: float, end: float) -> None:
        """Move everybody in batches spread evenly over the phase, the members of ``event`` last."""
        ordered = self._ordered(members)
        ordered.sort(key=lambda index: self._cluster[index] == EVENT)
        size = max(3, round(len(self._world.names) * self._world.scenario.batch_share))
        batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        begin_s, length_s = begin * self._end_s, (end - begin) * self._end_s
        for number, batch in enumerate(batches):
            at_s = begin_s + length_s * (number + self._random.uniform(0, 0.5)) / len(batches)
            spread_s = self._world.scenario.batch_spread_s
            for place, index in enumerate(batch):
                self._move(index, AWS, at_s + spread_s * place / len(batch), begin_s + length_s)

    def _go_back(self, members: list[int], at: float) -> None:
        spread_s = max(self._world.scenario.batch_spread_s, len(members) / 20.0)
        for place, index in enumerate(members):
            at_s = at * self._end_s + spread_s * place / len(members)
            if self._cluster[index] == AWS:
                self._move(index, MAIN, at_s, at_s + HOUR_S)

    def _move(self, index: int, cluster: str, due_s: float, phase_end_s: float) -> None:
        at_s = self._offline_at(index, max(due_s, self._busy_until[index]), phase_end_s)
        if at_s is None or at_s >= self._end_s:
            return
        random, scenario = self._random, self._world.scenario
        first, second = (
            min(600.0, random.lognormvariate(math.log(max(scenario.lag_median_s, 1e-3)), 0.7)) for _ in range(2)
        )
        noticed = random.random() >= scenario.notice_loss
        self._moves.append(Move(at_s, index, cluster, (first, second), noticed))
        self._cluster[index] = cluster
        self._busy_until[index] = at_s + 60.0

    def _offline_at(self, index: int, due_s: float, phase_end_s: float) -> float | None:
        """When the script really moves a channel that was due at ``due_s``."""
        deferral, streams = self._world.scenario.deferral, self._world.streams[index]
        at_s = due_s
        for _ in range(500):
            place = bisect_right(streams, at_s)
            if place % 2 == 0:
                return at_s
            if deferral == "sweep":
                at_s += 1_800.0
            elif deferral == "stragglers" and at_s < phase_end_s:
                at_s = phase_end_s + self._random.uniform(0, HOUR_S)
            else:
                at_s = streams[place] + self._random.uniform(5.0, 120.0)
        return None
