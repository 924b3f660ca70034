"""The channels: who they are, when they stream, where they live; moved by time, a script and the control interface.

Pure: simulated time comes in, what happened comes out, and the seed decides. Two runs with the same settings move
the same channels in the same order at the same simulated times, at any scale.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from serverchange.events import GROUP_CLUSTER, Channel, ChannelKind, Cluster
from serverchange.simulator.draw import draw, draw_between, draw_exponential, shuffle
from serverchange.simulator.migration import EVENT, Cohort, MigrationRun, script_within
from serverchange.simulator.settings import DAY_S, SimulatorSettings

HOUR_S: Final = 3_600.0

FIRST_ROOM_ID: Final = 22_484_600
"""Room ids count up from here; any number would do."""


class OrderRefusedError(Exception):
    """The world is not such that this could be done; the message says why."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What never changes about a channel.

    Attributes:
        name: login.
        room_id: lasting identity, decimal.
        kind: group rooms never move.
        cohort: when the script moves it.
        labels: what a service would label it with.
        home: cluster before the migration.
        weight: share of the chat, relative to others.
    """

    name: Channel
    room_id: str
    kind: ChannelKind
    cohort: Cohort
    labels: tuple[str, ...]
    home: Cluster
    weight: float


@dataclass(frozen=True, slots=True)
class WentLive:
    """A stream began."""

    at_s: float
    channel: Channel


@dataclass(frozen=True, slots=True)
class WentOffline:
    """A stream ended."""

    at_s: float
    channel: Channel


@dataclass(frozen=True, slots=True)
class Moved:
    """A channel lives elsewhere now. `number` counts the moves of the world, `step` names the script's step."""

    at_s: float
    channel: Channel
    previous: Cluster
    cluster: Cluster
    number: int
    step: str | None


Happening: TypeAlias = WentLive | WentOffline | Moved


def make_profiles(settings: SimulatorSettings) -> list[Profile]:
    """Return the channels, the most popular first, group channels last."""
    count = settings.channels
    few = count // 100 or int(count >= 8)
    events = _share(settings.event_channels, few, count) if EVENT in settings.clusters else 0
    groups = _share(settings.group_channels, few, count - events) if GROUP_CLUSTER in settings.clusters else 0
    others = count - events - groups
    cohorts = [Cohort.STAFF] * min(10, others // 5)
    cohorts += [Cohort.OPTED_IN] * min(49, others // 8)
    cohorts += [Cohort.PARTNER] * (others // 5)
    cohorts += [Cohort.EVERYONE] * (others - len(cohorts))
    shuffle(cohorts, settings.seed, "cohorts")
    cohorts = [Cohort.EVENT] * events + cohorts + [Cohort.GROUP] * groups
    return [_make_profile(settings, rank, cohort) for rank, cohort in enumerate(cohorts)]


def _share(asked: int | None, usual: int, most: int) -> int:
    return min(usual if asked is None else asked, most)


def _make_profile(settings: SimulatorSettings, rank: int, cohort: Cohort) -> Profile:
    group = cohort is Cohort.GROUP
    made_up = f"_group_{rank:06d}" if group else f"streamer_{rank + 1:06d}"
    home = {Cohort.EVENT: EVENT, Cohort.GROUP: GROUP_CLUSTER}.get(cohort, Cluster(settings.clusters[0]))
    labelled = cohort in {Cohort.STAFF, Cohort.OPTED_IN, Cohort.PARTNER, Cohort.EVENT}
    return Profile(
        name=Channel(settings.names[rank] if rank < len(settings.names) else made_up),
        room_id=str(FIRST_ROOM_ID + rank),
        kind=ChannelKind.GROUP if group else ChannelKind.CHAT,
        cohort=cohort,
        labels=(cohort.value,) if labelled else (),
        home=home,
        weight=1.0 / (rank + 3) ** 0.9,
    )


def stream_on_day(seed: int, channel: Channel, day: int) -> tuple[float, float] | None:
    """Return when the channel's stream of that day begins and ends (simulated seconds), or None.

    A channel has its usual hour, length and share of days; each day strays a little. A stream that begins in the
    evening may end on the next day, but before the next one begins.
    """
    diligence = 0.2 + 0.75 * draw(seed, "diligence", channel)
    if draw(seed, "streams", channel, day) >= diligence:
        return None
    usual_hour = draw_between(8, 22, seed, "hour", channel)
    hour = usual_hour + draw_between(-1, 1, seed, "stray", channel, day)
    length_h = draw_between(1.5, 6, seed, "length", channel) * draw_between(0.6, 1.4, seed, "length", channel, day)
    start_s = day * DAY_S + hour * HOUR_S
    return start_s, start_s + length_h * HOUR_S


class World:
    """Where every channel lives and who streams, from simulated second 0 on.

    One task owns it. `advance` moves it on by time; `move` and `set_live` are the control interface's.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self._seed = settings.seed
        self.profiles: dict[Channel, Profile] = {profile.name: profile for profile in make_profiles(settings)}
        self.cohort_of: dict[Channel, Cohort] = {name: profile.cohort for name, profile in self.profiles.items()}
        self.cluster_of: dict[Channel, Cluster] = {name: profile.home for name, profile in self.profiles.items()}
        self.live: dict[Channel, float] = {}
        self.suspended: set[Channel] = set()
        self.clusters: tuple[Cluster, ...] = tuple(Cluster(name) for name in settings.clusters)
        self.moves = 0
        self.script = MigrationRun(
            script_within(settings.script_days) if settings.script else (),
            seed=settings.seed,
            batch_channels=settings.batch_channels,
            starts_s=None if settings.script_starts_paused else 0.0,
        )
        self._held: set[Channel] = set()
        self._transitions: list[tuple[float, Channel, bool, int]] = []
        if settings.habits:
            for channel in self.profiles:
                self._plan_stream(channel, -1)

    def advance(self, now_s: float) -> Iterator[Happening]:
        """Yield everything that happens up to `now_s`, in the order of simulated time."""
        while True:
            stream_s = self._transitions[0][0] if self._transitions else math.inf
            batch_s = self.script.due_s
            if min(stream_s, batch_s) > now_s:
                return
            if stream_s <= batch_s:
                yield from self._pass_transition()
            else:
                step, batch = self.script.next_batch(self)
                for channel in batch:
                    yield self.move(channel, step.target, batch_s, step=step.name)

    def move(
        self, channel: Channel, cluster: Cluster, now_s: float, *, step: str | None = None, force: bool = False
    ) -> Moved:
        """Let `channel` live on `cluster` from now on.

        Raises:
            OrderRefusedError: unknown channel or cluster, already there, a group channel, or live and not forced.
        """
        profile = self.profiles.get(channel)
        if profile is None:
            raise OrderRefusedError(f"there is no channel {channel!r}")
        if cluster not in self.clusters:
            raise OrderRefusedError(f"there is no cluster {cluster!r}; there are {', '.join(self.clusters)}")
        if profile.kind is ChannelKind.GROUP or cluster == GROUP_CLUSTER:
            raise OrderRefusedError("the group cluster is no part of any migration")
        previous = self.cluster_of[channel]
        if previous == cluster:
            raise OrderRefusedError(f"{channel} already lives on {cluster}")
        if channel in self.live and not force:
            raise OrderRefusedError(f"{channel} is live; channels move only while they do not stream")
        self.cluster_of[channel] = cluster
        self.moves += 1
        return Moved(now_s, channel, previous, cluster, self.moves, step)

    def set_live(self, channel: Channel, live: bool, now_s: float) -> Happening | None:
        """Make a channel stream or not, whatever its habits say from now on; None if it is so already.

        Raises:
            OrderRefusedError: there is no such channel.
        """
        if channel not in self.profiles:
            raise OrderRefusedError(f"there is no channel {channel!r}")
        self._held.add(channel)
        return self._set_live(channel, now_s, live=live)

    def set_suspended(self, channel: Channel, suspended: bool) -> None:
        """Suspend a channel, or let it be joined again.

        Raises:
            OrderRefusedError: there is no such channel.
        """
        if channel not in self.profiles:
            raise OrderRefusedError(f"there is no channel {channel!r}")
        (self.suspended.add if suspended else self.suspended.discard)(channel)

    def _set_live(self, channel: Channel, now_s: float, *, live: bool) -> Happening | None:
        if live == (channel in self.live):
            return None
        if live:
            self.live[channel] = now_s
            return WentLive(now_s, channel)
        del self.live[channel]
        return WentOffline(now_s, channel)

    def _pass_transition(self) -> Iterator[Happening]:
        at_s, channel, live, day = heapq.heappop(self._transitions)
        if channel not in self._held:
            happening = self._set_live(channel, at_s, live=live)
            if happening is not None:
                yield happening
        if not live:
            self._plan_stream(channel, day + 1, after_s=at_s)

    def _plan_stream(self, channel: Channel, day: int, after_s: float = -math.inf) -> None:
        """Put the channel's next stream into the heap; days without one are passed over, at most ten at a time."""
        for candidate in range(day, day + 10):
            window = stream_on_day(self._seed, channel, candidate)
            if window is not None and window[0] > after_s:
                heapq.heappush(self._transitions, (window[0], channel, True, candidate))
                heapq.heappush(self._transitions, (window[1], channel, False, candidate))
                return
        heapq.heappush(self._transitions, ((day + 10) * DAY_S, channel, False, day + 9))


class LaggingView:
    """Which cluster each API replica shows: the truth of a while ago, each replica with its own delay a move."""

    def __init__(self, seed: int, replicas: int, mean_s: float, max_s: float) -> None:
        self._seed = seed
        self._replicas = replicas
        self.mean_s = mean_s
        self.max_s = max_s
        self._pending: dict[Channel, list[tuple[Moved, tuple[float, ...]]]] = {}

    def record(self, move: Moved) -> None:
        """Take note of a move; each replica will show it after its own lag."""
        visible = tuple(move.at_s + lag_s for lag_s in self.lags_s(move.channel, move.number))
        recent = [entry for entry in self._pending.get(move.channel, ()) if max(entry[1]) > move.at_s]
        self._pending[move.channel] = [*recent, (move, visible)]

    def lags_s(self, channel: Channel, number: int) -> tuple[float, ...]:
        """Return for how long each replica hides the world's `number`-th move, one of `channel`."""
        return tuple(
            min(self.max_s, draw_exponential(self.mean_s, self._seed, "lag", channel, number, replica))
            for replica in range(self._replicas)
        )

    def cluster(self, channel: Channel, truth: Cluster, replica: int, now_s: float) -> Cluster:
        """Return what `replica` says at `now_s` about a channel that really lives on `truth`."""
        pending = self._pending.get(channel)
        if pending is None:
            return truth
        shown: Cluster | None = None
        for move, visible in pending:
            if visible[replica] <= now_s:
                shown = move.cluster
        if shown == truth and all(max(visible) <= now_s for _, visible in pending):
            del self._pending[channel]
        return shown if shown is not None else pending[0][0].previous
