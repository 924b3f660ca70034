"""A channel's cluster over time, and how long it streamed where we did not believe it to be (exposure)."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serverchange.cli.demo.facts import Facts, Move, Stream
from serverchange.events import ChangeKind, Channel, Cluster


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps in the order of time: from `times_s[i]` on it is `clusters[i]`."""

    times_s: tuple[float, ...]
    clusters: tuple[Cluster | None, ...]

    @classmethod
    def of(cls, steps: Iterable[tuple[float, Cluster | None]]) -> Timeline:
        """Return the timeline of these steps; of two at one instant the later in order counts."""
        ordered = sorted(steps, key=lambda step: step[0])
        return cls(tuple(at_s for at_s, _ in ordered), tuple(cluster for _, cluster in ordered))

    def index(self, at_s: float) -> int:
        """Return the number of the step that holds at `at_s`, -1 before the first."""
        return bisect_right(self.times_s, at_s) - 1

    def at(self, at_s: float) -> Cluster | None:
        """Return the cluster at `at_s`, None before the first step."""
        index = self.index(at_s)
        return self.clusters[index] if index >= 0 else None

    def since(self, at_s: float) -> float:
        """Return when the step began that holds at `at_s`."""
        index = self.index(at_s)
        return self.times_s[index] if index >= 0 else -math.inf

    def until(self, at_s: float) -> float:
        """Return when the step ends that holds at `at_s`."""
        following = self.index(at_s) + 1
        return self.times_s[following] if following < len(self.times_s) else math.inf


def true_timelines(facts: Facts) -> dict[Channel, Timeline]:
    """Return where each channel truly lived."""
    steps: dict[Channel, list[tuple[float, Cluster | None]]] = {
        channel: [(-math.inf, cluster)] for channel, cluster in facts.home.items()
    }
    for move in facts.moves:
        steps[move.channel].append((move.at_s, move.cluster))
    return {channel: Timeline.of(own) for channel, own in steps.items()}


def believed_timelines(facts: Facts) -> dict[Channel, Timeline]:
    """Return where subscribers of `cluster-changes` believed each channel to be."""
    steps: dict[Channel, list[tuple[float, Cluster | None]]] = defaultdict(list)
    for change in facts.changes:
        if change.what is not ChangeKind.LABELLED:
            cluster = None if change.what is ChangeKind.UNTRACKED else change.cluster
            steps[change.channel].append((change.at_s, cluster))
    return {channel: Timeline.of(steps[channel]) for channel in facts.tracked}


def exposure_minutes(facts: Facts, believed: Mapping[Channel, Timeline]) -> float:
    """Return the simulated minutes in which channels streamed on a cluster other than the one believed."""
    true = true_timelines(facts)
    exposed_s = sum(
        _exposed_s(stream, true[stream.channel], believed[stream.channel], facts)
        for stream in facts.streams
        if stream.channel in believed
    )
    return exposed_s * facts.time_scale / 60.0


def _exposed_s(stream: Stream, true: Timeline, believed: Timeline, facts: Facts) -> float:
    begin, end = max(stream.from_s, facts.started_s), min(stream.until_s, facts.ended_s)
    if begin >= end:
        return 0.0
    inside = [at_s for at_s in (*true.times_s, *believed.times_s) if begin < at_s < end]
    cuts = [begin, *sorted(inside), end]
    return sum(to_s - from_s for from_s, to_s in itertools.pairwise(cuts) if true.at(from_s) != believed.at(from_s))


def round_robin_timelines(facts: Facts) -> dict[Channel, Timeline]:
    """Return what a poller would have believed that asks for one channel after the other at the same rate.

    It is given an API without lag and answers without delay: more than any real one has.
    """
    true = true_timelines(facts)
    duration_s = facts.ended_s - facts.started_s
    if facts.lookups == 0 or duration_s <= 0:
        return {channel: Timeline.of([(-math.inf, facts.home[channel])]) for channel in facts.tracked}
    interval_s = duration_s / facts.lookups
    round_s = interval_s * len(facts.tracked)
    moves: dict[Channel, list[Move]] = defaultdict(list)
    for move in facts.moves:
        moves[move.channel].append(move)
    timelines = {}
    for index, channel in enumerate(facts.tracked):
        steps: list[tuple[float, Cluster | None]] = [(-math.inf, facts.home[channel])]
        first_s = facts.started_s + index * interval_s
        for move in moves[channel]:
            asked_s = first_s + math.ceil(max(0.0, move.at_s - first_s) / round_s) * round_s
            steps.append((asked_s, true[channel].at(asked_s)))
        timelines[channel] = Timeline.of(steps)
    return timelines
