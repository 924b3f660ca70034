"""Plays one policy through one world, request by request, and adds up the exposure.

The policy sees what a poller sees: answers, notices and labels. Requests cost the same for every policy, failed ones
included; an answer tells what the API knew when the request was sent and arrives some tenths of a second later.
"""

import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Protocol

from exposure_world import HOUR_S, World

from serverchange.tracker.lookup_schedule import Lookup, Request, StreamsScan, Wait

__all__ = ["Manners", "Outcome", "Policy", "judge", "play"]

REPEATS = 3
"""The cluster just left is believed again only after so many answers in a row."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How the services that ask are simulated.

    Attributes:
        doubt_for_s: for so long after a change the cluster just left is doubted, not believed.
        latency_s: least and mean time from a request until what it told is believed.
    """

    doubt_for_s: float = 600.0
    latency_s: tuple[float, float] = (0.1, 0.35)


class Policy(Protocol):
    """What the world asks of a policy: the part of the lookup schedule that a poller drives."""

    def next_request(self, now_s: float) -> Request | Wait:
        """Choose."""
        ...

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        """Learn from a lookup."""
        ...

    def scanned(self, channels: Sequence[str], live: Collection[str], now_s: float) -> None:
        """Learn from a scan."""
        ...

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        """Learn that a request told nothing."""
        ...

    def update(
        self, channel: str, *, cluster: str | None, verified: bool, urgent: bool, moved: bool, now_s: float
    ) -> None:
        """Learn what the fold of the log says."""
        ...


@dataclass(slots=True)
class Outcome:
    """What one policy did in one world. Exposure is in minutes."""

    policy: str
    exposure_min: float = 0.0
    exposure_p99_min: float = 0.0
    exposed_channels: int = 0
    by_hour_min: list[float] = field(default_factory=list)
    lookups: int = 0
    scans: int = 0
    failures: int = 0
    waits: int = 0
    moves: int = 0
    changes: int = 0
    detection_s_p50: float = 0.0
    detection_s_p99: float = 0.0
    cpu_us_a_decision: float = 0.0
    elapsed_s: float = 0.0
    causes_min: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Told:
    """What the fold would keep of one channel."""

    cluster: str
    left: str | None = None
    left_at_s: float = 0.0
    doubts: int = 0
    notice_open: bool = False


class _Play:
    def __init__(self, world: World, policy: Policy, seed: int, manners: Manners) -> None:
        self.world = world
        self.doubt_for_s = manners.doubt_for_s
        self.policy = policy
        self.random = Random(seed)
        self.index_of = {name: index for index, name in enumerate(world.names)}
        self.live: set[str] = {name for index, name in enumerate(world.names) if world.is_live(index, 0.0)}
        self.replicas = (list(world.homes), list(world.homes))
        self.told = [_Told(home) for home in world.homes]
        self.beliefs: dict[int, list[tuple[float, str]]] = {}
        self.flying: list[tuple[float, int, Request, object]] = []
        self.sent = 0
        self.policy_ns = 0
        self.spell = 0
        self.outcome = Outcome(policy=type(policy).__name__)
        least_s, mean_s = manners.latency_s
        self.latencies = [least_s + self.random.expovariate(1.0 / (mean_s - least_s)) for _ in range(4_093)]
        self.luck = [self.random.random() for _ in range(65_521)]

    def run(self) -> None:
        """Spend the whole budget, one request every ``1 / requests_per_s``."""
        step_s = 1.0 / self.world.scenario.requests_per_s
        end_s = self.world.end_s
        happenings = _happenings(self.world)
        happening = next(happenings, None)
        flying, policy, clock = self.flying, self.policy, time.perf_counter_ns
        now_s = 0.0
        while now_s < end_s:
            now_s += step_s
            while happening is not None and happening[0] <= now_s:
                self._happen(happening)
                happening = next(happenings, None)
            while flying and flying[0][0] <= now_s:
                arrived_s, _, request, answer = heappop(flying)
                self._deliver(request, answer, arrived_s)
            began = clock()
            request = policy.next_request(now_s)
            self.policy_ns += clock() - began
            if isinstance(request, Wait):
                self.outcome.waits += 1
            else:
                self._send(request, now_s)

    def _happen(self, happening: tuple[float, int, int, str]) -> None:
        at_s, kind, index, cluster = happening
        name = self.world.names[index]
        if kind == 0:
            self.live.add(name)
            if (hear := getattr(self.policy, "told_live", None)) is not None:
                hear(name, at_s)
        elif kind == 1:
            self.live.discard(name)
        elif kind == 4:
            told = self.told[index]
            told.notice_open, told.doubts = True, 0
            self.policy.update(name, cluster=told.cluster, verified=False, urgent=True, moved=False, now_s=at_s)
        else:
            self.replicas[kind - 2][index] = cluster

    def _send(self, request: Request, now_s: float) -> None:
        self.sent += 1
        sent = self.sent
        spells = self.world.spells
        while self.spell < len(spells) and spells[self.spell][1] < now_s:
            self.spell += 1
        refused = self.spell < len(spells) and spells[self.spell][0] <= now_s
        luck = self.luck[sent % 65_521]
        answer: object
        if isinstance(request, Lookup):
            self.outcome.lookups += 1
            answer = self.replicas[sent & 1][self.index_of[request.channel]]
        else:
            self.outcome.scans += 1
            answer = self.live.intersection(request.channels)
        if refused or luck < self.world.scenario.failures:
            self.outcome.failures += 1
            answer = 30.0 if refused else None
        heappush(self.flying, (now_s + self.latencies[sent % 4_093], sent, request, answer))

    def _deliver(self, request: Request, answer: object, now_s: float) -> None:
        began = time.perf_counter_ns()
        if isinstance(answer, str) and isinstance(request, Lookup):
            self._fold(request.channel, answer, now_s)
        elif isinstance(answer, set) and isinstance(request, StreamsScan):
            self.policy.scanned(request.channels, answer, now_s)
        else:
            retry_after_s = answer if isinstance(answer, float) else None
            self.policy.failed(request, now_s, retry_after_s=retry_after_s)
        self.policy_ns += time.perf_counter_ns() - began

    def _fold(self, channel: str, answer: str, now_s: float) -> None:
        """The rule of a change, as far as lookups and notices need it here."""
        index = self.index_of[channel]
        told = self.told[index]
        if answer == told.cluster and not told.notice_open:
            told.doubts = 0
            self.policy.answered(channel, cluster=answer, changed=False, now_s=now_s)
            return
        doubted = answer == told.cluster or (answer == told.left and now_s - told.left_at_s < self.doubt_for_s)
        if doubted and told.doubts < REPEATS - 1:
            told.doubts += 1
            self.policy.answered(channel, cluster=answer, changed=answer != told.cluster, now_s=now_s)
            self.policy.update(channel, cluster=told.cluster, verified=False, urgent=False, moved=False, now_s=now_s)
            return
        told.doubts, told.notice_open = 0, False
        if answer == told.cluster:
            self.policy.answered(channel, cluster=answer, changed=False, now_s=now_s)
            return
        told.left, told.left_at_s, told.cluster = told.cluster, now_s, answer
        self.beliefs.setdefault(index, []).append((now_s, answer))
        self.outcome.changes += 1
        self.policy.answered(channel, cluster=answer, changed=True, now_s=now_s)
        self.policy.update(channel, cluster=answer, verified=False, urgent=False, moved=True, now_s=now_s)


def _happenings(world: World) -> Iterator[tuple[float, int, int, str]]:
    """All that happens, in order: (when, kind, channel, cluster); kinds: live, offline, replica 0, 1, notice."""
    hours = [(array("d"), array("i")) for _ in range(int(world.end_s / HOUR_S) + 1)]
    for index, streams in enumerate(world.streams):
        for place, at_s in enumerate(streams):
            if 0.0 < at_s < world.end_s:
                times, codes = hours[int(at_s / HOUR_S)]
                times.append(at_s)
                codes.append(index * 2 + place % 2)
    later: list[list[tuple[float, int, int, str]]] = [[] for _ in hours]
    for move in world.moves:
        told = [
            (move.at_s + lag_s, 2 + replica, move.channel, move.cluster) for replica, lag_s in enumerate(move.lags_s)
        ]
        if move.noticed:
            told.append((move.at_s + 1.0, 4, move.channel, move.cluster))
        for entry in told:
            if entry[0] < world.end_s:
                later[int(entry[0] / HOUR_S)].append(entry)
    for (times, codes), told_then in zip(hours, later, strict=True):
        merged = [(at_s, code % 2, code // 2, "") for at_s, code in zip(times, codes, strict=True)]
        yield from sorted(merged + told_then)


def play(world: World, policy: Policy, name: str, *, manners: Manners = Manners(), seed: int | None = None) -> Outcome:
    """Let ``policy`` spend the world's budget and judge what its beliefs exposed.

    Args:
        world: the truth.
        policy: sees its answers alone.
        name: what the outcome is called.
        manners: of the services around the policy.
        seed: of latencies and failures; the world's own by default.
    """
    began = time.perf_counter()
    played = _Play(world, policy, world.seed if seed is None else seed, manners)
    played.run()
    outcome = played.outcome
    outcome.policy = name
    outcome.moves = len(world.moves)
    outcome.cpu_us_a_decision = played.policy_ns / 1_000 / max(1, outcome.lookups + outcome.scans)
    judge(world, played.beliefs, outcome)
    outcome.elapsed_s = time.perf_counter() - began
    return outcome


def judge(world: World, beliefs: dict[int, list[tuple[float, str]]], outcome: Outcome) -> None:
    """Write into ``outcome`` what was exposed, and how late changes were believed.

    Args:
        world: the truth.
        beliefs: (when, cluster) of every change that was believed, by channel, in order.
        outcome: gets exposure, detection times and causes.
    """
    truths: dict[int, list[tuple[float, str]]] = {}
    for move in world.moves:
        truths.setdefault(move.channel, []).append((move.at_s, move.cluster))
    by_channel: list[float] = []
    outcome.by_hour_min = [0.0] * int(world.end_s / HOUR_S + 1)
    causes: Counter[str] = Counter()
    detections: list[float] = []
    for index, truth in truths.items():
        total_s = 0.0
        for wrong_s, right_s in _wrong_spells(world.homes[index], truth, beliefs.get(index, []), world.end_s):
            detections.append(right_s - wrong_s)
            exposed_s = _live_within(world, index, wrong_s, right_s, outcome.by_hour_min)
            total_s += exposed_s
            causes[_cause(world, index, wrong_s)] += exposed_s / 60
        by_channel.append(total_s / 60.0)
    by_channel.sort()
    detections.sort()
    outcome.exposure_min = sum(by_channel)
    outcome.exposed_channels = sum(1 for minutes in by_channel if minutes > 0)
    outcome.causes_min = dict(causes)
    if by_channel:
        outcome.exposure_p99_min = by_channel[int(len(by_channel) * 0.99)]
    if detections:
        outcome.detection_s_p50 = detections[len(detections) // 2]
        outcome.detection_s_p99 = detections[int(len(detections) * 0.99)]


def _wrong_spells(
    home: str, truth: list[tuple[float, str]], belief: list[tuple[float, str]], end_s: float
) -> Iterator[tuple[float, float]]:
    """The intervals in which the belief is not the truth."""
    marks = sorted([(at_s, 0, cluster) for at_s, cluster in truth] + [(at_s, 1, cluster) for at_s, cluster in belief])
    true, believed, since_s = home, home, 0.0
    for at_s, kind, cluster in marks:
        was_wrong = true != believed
        if kind == 0:
            true = cluster
        else:
            believed = cluster
        if was_wrong and true == believed:
            yield since_s, at_s
        elif not was_wrong and true != believed:
            since_s = at_s
    if true != believed:
        yield since_s, end_s


def _live_within(world: World, index: int, from_s: float, to_s: float, by_hour_min: list[float]) -> float:
    streams = world.streams[index]
    total_s = 0.0
    place = bisect_right(streams, from_s)
    place -= place % 2
    while place < len(streams) and streams[place] < to_s:
        at_s, end_s = max(streams[place], from_s), min(streams[place + 1], to_s)
        while at_s < end_s:
            until_s = min(end_s, (at_s // HOUR_S + 1) * HOUR_S)
            by_hour_min[int(at_s / HOUR_S)] += (until_s - at_s) / 60.0
            total_s += until_s - at_s
            at_s = until_s
        place += 2
    return total_s


def _cause(world: World, index: int, moved_s: float) -> str:
    """What made the move hard to see: how soon after it the channel went live again."""
    streams = world.streams[index]
    place = bisect_right(streams, moved_s)
    if place >= len(streams):
        return "never live again"
    pause_s = streams[place] - (streams[place - 1] if place else 0.0)
    if pause_s < HOUR_S:
        return "moved in a short break"
    return "live within 5 min of the move" if streams[place] - moved_s < 300 else "live later"
