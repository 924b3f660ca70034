"""Decides whom to ask next, and by which of the platform's two requests.

What matters is *exposure*: minutes in which a channel streams on a cluster other than the one we believe.
A channel moves only while offline (the platform's forum, thread 4877), so the moment to know is when it goes
live: the streams request tells a hundred channels at a time who is live, the servers request tells one channel's
cluster. This module decides; it fetches nothing and reads no clock: every method is told the time.

Times are seconds of the *platform's* clock: a caller whose platform runs k times too fast (the simulator)
multiplies its own clock by k before it calls, and divides the ``until_s`` of a :class:`Wait` accordingly.

Group channels never move and must never be tracked here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

__all__ = ["Explanation", "Lookup", "LookupSchedule", "Request", "ScheduleSettings", "StreamsScan", "Wait"]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask the servers list for one channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class StreamsScan:
    """Ask the streams list which of these channels are live; at most ``names_per_scan`` of them."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is worth a request before ``until_s``, unless the schedule is told something new."""

    until_s: float


Request = Lookup | StreamsScan


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """What the rule may not learn by itself.

    Attributes:
        names_per_scan: names a streams request may carry (the platform: 100).
        day_s: length of the platform's day, for daily habits.
        repeat_after_s: spacing of repeated questions about an unverified channel; the last one repeats.
        forget_in_flight_after_s: a request neither answered nor failed for so long is taken for failed.
        retry_failed_after_s: when a failed lookup is asked again, unless the platform named a time.
        seed: makes the arbitrary choices (phases, explorations) reproducible, and unlike in other pollers.
    """

    names_per_scan: int = 100
    day_s: float = 86_400.0
    repeat_after_s: tuple[float, ...] = (5.0, 30.0, 120.0)
    forget_in_flight_after_s: float = 120.0
    retry_failed_after_s: float = 5.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a channel is asked when it is.

    Attributes:
        channel: the channel explained.
        score: minutes of exposure that one lookup now is expected to save.
        parts: what the score is made of, by name, in the order in which it is multiplied up.
        reason: the strongest reason, in words.
        next_lookup_s: when it is expected to be asked next, in the schedule's clock.
    """

    channel: str
    score: float
    parts: dict[str, float]
    reason: str
    next_lookup_s: float


@dataclass(slots=True)
class _Tracked:
    cluster: str | None
    verified: bool
    verified_at_s: float
    asked_at_s: float
    scanned_at_s: float
    live: bool = False
    repeats: int = 0
    due_s: float | None = None
    flying: bool = False


class LookupSchedule:
    """The state of one poller's share of the channels."""

    def __init__(self, settings: ScheduleSettings, *, now_s: float) -> None:
        self._settings = settings
        self._channels: dict[str, _Tracked] = {}
        self._due: list[tuple[float, str]] = []
        self._oldest: list[tuple[float, str]] = []
        self._scan_order: list[tuple[float, str]] = []
        self._turn = 0
        self._started_s = now_s

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, channel: object) -> bool:
        return channel in self._channels

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
        """Take a channel in, newly tracked or read from Postgres at a start; known channels cause no burst.

        Args:
            channel: the login.
            labels: e.g. staff, partner: channels that share them tend to move together.
            cluster: the believed cluster, or None while unknown.
            verified: whether a lookup has agreed with it.
            urgent: a notice or a doubt stands: ask at once.
            now_s: the time.
            verified_at_s: when a lookup last agreed; None for never.
        """
        del labels
        seen_s = now_s if verified_at_s is None else verified_at_s
        tracked = _Tracked(cluster, verified, seen_s, seen_s, self._started_s)
        self._channels[channel] = tracked
        heappush(self._oldest, (seen_s, channel))
        heappush(self._scan_order, (tracked.scanned_at_s, channel))
        if urgent or not verified:
            self._ask_at(channel, tracked, now_s)

    def update(
        self, channel: str, *, cluster: str | None, verified: bool, urgent: bool, moved: bool, now_s: float
    ) -> None:
        """The fold of the log changed what is known of a channel.

        Args:
            channel: the login; unknown ones are ignored.
            cluster: what is believed now.
            verified: whether a lookup has agreed with it.
            urgent: a notice or a doubt: to the front.
            moved: the believed cluster is another one than before.
            now_s: the time.
        """
        del moved
        tracked = self._channels.get(channel)
        if tracked is None:
            return
        tracked.cluster, tracked.verified = cluster, verified
        if urgent:
            tracked.repeats = 0
            self._ask_at(channel, tracked, now_s)
        elif not verified and tracked.due_s is None and not tracked.flying:
            self._ask_again(channel, tracked, now_s)
        elif verified:
            tracked.due_s, tracked.repeats = None, 0

    def untrack(self, channel: str) -> None:
        """Forget a channel; what was learned about its cohort stays."""
        self._channels.pop(channel, None)

    def next_request(self, now_s: float) -> Request | Wait:
        """Choose the best request and mark it in flight until it is answered, scanned or failed."""
        while self._due and self._due[0][0] <= now_s:
            due_s, channel = heappop(self._due)
            tracked = self._channels.get(channel)
            if tracked is not None and tracked.due_s == due_s and not tracked.flying:
                return self._lookup(channel, tracked, now_s)
        self._turn += 1
        if self._turn % 5 < 2 and (scan := self._scan(now_s)) is not None:
            return scan
        while self._oldest:
            seen_s, channel = heappop(self._oldest)
            tracked = self._channels.get(channel)
            if tracked is not None and tracked.asked_at_s == seen_s and not tracked.flying:
                return self._lookup(channel, tracked, now_s)
        return self._scan(now_s) or Wait(self._due[0][0] if self._due else now_s + 1.0)

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        """A lookup was answered.

        Args:
            channel: the login.
            cluster: the answer.
            changed: whether it contradicted what was believed.
            now_s: the time of the answer.
        """
        tracked = self._channels.get(channel)
        if tracked is None:
            return
        tracked.flying = False
        tracked.cluster, tracked.verified = cluster, not changed
        tracked.verified_at_s = now_s
        heappush(self._oldest, (tracked.asked_at_s, channel))
        if changed:
            self._ask_again(channel, tracked, now_s)
        else:
            tracked.repeats = 0

    def scanned(self, channels: Sequence[str], live: Collection[str], now_s: float) -> None:
        """A streams scan was answered: of ``channels`` exactly those in ``live`` are live."""
        for channel in channels:
            tracked = self._channels.get(channel)
            if tracked is None:
                continue
            tracked.scanned_at_s = now_s
            heappush(self._scan_order, (now_s, channel))
            (self.heard_live if channel in live else self.heard_offline)(channel, now_s)

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        """A request brought no information: its channels are asked again later, none is lost."""
        wait_s = self._settings.retry_failed_after_s if retry_after_s is None else retry_after_s
        if isinstance(request, StreamsScan):
            for channel in request.channels:
                if channel in self._channels:
                    heappush(self._scan_order, (self._channels[channel].scanned_at_s, channel))
            return
        tracked = self._channels.get(request.channel)
        if tracked is not None:
            tracked.flying = False
            self._ask_at(request.channel, tracked, now_s + wait_s)
            heappush(self._oldest, (tracked.asked_at_s, request.channel))

    def heard_live(self, channel: str, now_s: float) -> None:
        """Something else than a scan (chat traffic) says that the channel is live."""
        tracked = self._channels.get(channel)
        if tracked is not None and not tracked.live:
            tracked.live = True
            self._ask_at(channel, tracked, now_s)

    def heard_offline(self, channel: str, now_s: float) -> None:
        """Something else than a scan says that the channel is offline."""
        del now_s
        if channel in self._channels:
            self._channels[channel].live = False

    def explain(self, channel: str, now_s: float) -> Explanation:
        """Say why and when a channel is asked next.

        Raises:
            KeyError: the channel is not tracked here.
        """
        tracked = self._channels[channel]
        age_s = now_s - tracked.verified_at_s
        due_s = now_s if tracked.due_s is None else tracked.due_s
        return Explanation(channel, age_s / 60.0, {"minutes since verified": age_s / 60.0}, "age", due_s)

    def suggested_rate_per_s(self, now_s: float, budget_per_s: float) -> float:
        """The part of ``budget_per_s`` that is worth spending now."""
        del now_s
        return budget_per_s

    def _ask_at(self, channel: str, tracked: _Tracked, due_s: float) -> None:
        tracked.due_s = due_s
        heappush(self._due, (due_s, channel))

    def _ask_again(self, channel: str, tracked: _Tracked, now_s: float) -> None:
        spacing = self._settings.repeat_after_s
        self._ask_at(channel, tracked, now_s + spacing[min(tracked.repeats, len(spacing) - 1)])
        tracked.repeats += 1

    def _lookup(self, channel: str, tracked: _Tracked, now_s: float) -> Lookup:
        tracked.due_s, tracked.flying, tracked.asked_at_s = None, True, now_s
        return Lookup(channel)

    def _scan(self, now_s: float) -> StreamsScan | None:
        names: list[str] = []
        while self._scan_order and len(names) < self._settings.names_per_scan:
            scanned_at_s, channel = heappop(self._scan_order)
            tracked = self._channels.get(channel)
            if tracked is not None and tracked.scanned_at_s == scanned_at_s:
                tracked.scanned_at_s = now_s
                names.append(channel)
        return StreamsScan(tuple(names)) if names else None
