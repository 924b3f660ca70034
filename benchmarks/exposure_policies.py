"""The policies that the schedule is compared with; each sees what a poller sees and spends the same requests."""

from collections import deque
from collections.abc import Collection, Sequence
from heapq import heappop, heappush

from exposure_play import Policy
from exposure_world import World

from serverchange.tracker.lookup_schedule import Lookup, LookupSchedule, Request, ScheduleSettings, StreamsScan, Wait

__all__ = ["LiveFirst", "OldestFirst", "Oracle", "RoundRobin", "make_policy"]

REPEAT_AFTER_S = (5.0, 30.0, 120.0)


class RoundRobin:
    """Everybody in turn; notices first. What everyone does who "polls every X minutes"."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._at = 0
        self._front: list[tuple[float, int, str]] = []

    def next_request(self, now_s: float) -> Request | Wait:
        """The front, else the next in turn."""
        if self._front and self._front[0][0] <= now_s:
            return Lookup(heappop(self._front)[2])
        self._at = (self._at + 1) % len(self._names)
        return Lookup(self._names[self._at])

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        """A round teaches nothing."""

    def scanned(self, channels: Sequence[str], live: Collection[str], now_s: float) -> None:
        """No scans."""

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        """The channel comes again next round."""

    def update(
        self, channel: str, *, cluster: str | None, verified: bool, urgent: bool, moved: bool, now_s: float
    ) -> None:
        """A notice or a doubt: asked at once, and again after a while."""
        if urgent:
            for step, wait_s in enumerate((0.0, *REPEAT_AFTER_S)):
                heappush(self._front, (now_s + wait_s, step, channel))


class OldestFirst(RoundRobin):
    """Whoever was verified longest ago; a failed lookup is repeated first."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._oldest = deque(names)

    def next_request(self, now_s: float) -> Request | Wait:
        """The front, else the oldest."""
        if self._front and self._front[0][0] <= now_s:
            return Lookup(heappop(self._front)[2])
        return Lookup(self._oldest.popleft()) if self._oldest else Wait(now_s + 1.0)

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        """Now the youngest."""
        self._oldest.append(channel)

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        """Still the oldest."""
        if isinstance(request, Lookup):
            self._oldest.appendleft(request.channel)


class LiveFirst(RoundRobin):
    """Scan all streams evenly, ask whoever newly went live."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        ordered = list(names)
        self._blocks = deque(tuple(ordered[at : at + 100]) for at in range(0, len(ordered), 100))
        self._live: set[str] = set()

    def next_request(self, now_s: float) -> Request | Wait:
        """Whoever newly went live, else the next hundred."""
        if self._front and self._front[0][0] <= now_s:
            return Lookup(heappop(self._front)[2])
        self._blocks.rotate(-1)
        return StreamsScan(self._blocks[-1])

    def scanned(self, channels: Sequence[str], live: Collection[str], now_s: float) -> None:
        """Note who is new."""
        for channel in live:
            if channel not in self._live:
                heappush(self._front, (now_s, 0, channel))
        self._live.difference_update(channels)
        self._live.update(live)

    def failed(self, request: Request, now_s: float, *, retry_after_s: float | None = None) -> None:
        """A lookup is repeated, a scan comes again next round."""
        if isinstance(request, Lookup):
            heappush(self._front, (now_s + (retry_after_s or 5.0), 0, request.channel))


class Oracle(OldestFirst):
    """Is told the instant a channel goes live and asks it at once, and again for the API's lag: the bound."""

    def told_live(self, channel: str, now_s: float) -> None:
        """Only the world can tell this."""
        for step, wait_s in enumerate((0.0, *REPEAT_AFTER_S)):
            heappush(self._front, (now_s + wait_s, step, channel))

    def answered(self, channel: str, *, cluster: str, changed: bool, now_s: float) -> None:
        """Repeated questions leave the order of the rest alone."""
        if len(self._oldest) < 1_000_000:
            self._oldest.append(channel)


def make_policy(name: str, world: World) -> Policy:
    """Build a policy by name: round-robin, oldest-first, live-first, ours or oracle."""
    simple = {"round-robin": RoundRobin, "oldest-first": OldestFirst, "live-first": LiveFirst, "oracle": Oracle}
    if name in simple:
        return simple[name](world.names)
    schedule = LookupSchedule(ScheduleSettings(seed=world.seed), now_s=0.0)
    for name_, labels, home in zip(world.names, world.labels, world.homes, strict=True):
        schedule.track(name_, labels=labels, cluster=home, verified=True, urgent=False, now_s=0.0, verified_at_s=0.0)
    return schedule
