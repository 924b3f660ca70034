"""A channel's cluster over time, and how long it streamed where we did not believe it to be (exposure)."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from serverchange.cli.demo.facts import Facts, Stream
from serverchange.events import ChangeKind, Channel, Cluster
from serverchange.tracker.channel_state import DOUBTS_TO_DECIDE


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

    It is given an API without lag and answers without delay, which no real one has; and it follows the same rule of
    doubts: a channel goes back to the cluster it just left only after three answers in a row. So the two differ in
    whom they ask, in what they were told, and in nothing else.
    """
    true = true_timelines(facts)
    interval_s = (facts.ended_s - facts.started_s) / facts.lookups if facts.lookups else math.inf
    round_s = interval_s * len(facts.tracked)
    timelines = {}
    for index, channel in enumerate(facts.tracked):
        asked_s = facts.started_s + index * interval_s
        steps: list[tuple[float, Cluster | None]] = [(-math.inf, facts.home[channel])]
        steps += _believe_in_turn(true[channel], facts.home[channel], asked_s, round_s, facts.ended_s)
        timelines[channel] = Timeline.of(steps)
    return timelines


def _believe_in_turn(
    true: Timeline, home: Cluster, first_s: float, round_s: float, ended_s: float
) -> Iterator[tuple[float, Cluster | None]]:
    """Yield what is believed of one channel that is asked for at `first_s` and every `round_s` from then on."""
    believed: Cluster | None = home
    left: Cluster | None = None
    doubts = 0
    asked_s = first_s
    while asked_s < ended_s:
        seen = true.at(asked_s)
        if seen == believed:
            doubts = 0
        elif seen == left and doubts + 1 < DOUBTS_TO_DECIDE:
            doubts += 1
        else:
            believed, left, doubts = seen, believed, 0
            yield asked_s, believed
        asked_s += round_s
