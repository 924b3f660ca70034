"""An account's links and waiting JOINs of one cluster, and which JOIN goes onto which link. Decides, sends nothing."""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from serverchange.adapters.hosts import Server
from serverchange.adapters.links import Link
from serverchange.events import Channel, Cluster
from serverchange.tracker.handover_words import Join, LinkId

OPENING_MAX: Final = 8
"""Links of one cluster being opened at once: a server that is slow to welcome must not collect hundreds."""

BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
"""Wait after a link that was not welcomed, doubled each time: half a minute at most, so that a cluster which comes back
is used within one (a remembered dead host was once tried for 14 hours: tatsuworks/gateway 87)."""


@dataclass(frozen=True, slots=True, order=True)
class Urgency:
    """Which JOIN goes first: of live channels, then of those whose JOINs lasted, then of the busiest, then by turn.

    The platform's budget makes most channels of a mass move wait, and what is lost meanwhile is their traffic. Where a
    server cuts every link after so many JOINs, though, the busiest would be joined again and again and the rest never
    (Chatterino2 3107): so channels whose last JOINs did not last go behind.

    Attributes:
        offline: not live.
        in_vain: JOINs of late that were confirmed on a link which ended soon.
        quiet: lines of late, negative.
        turn: who asked first.
    """

    offline: bool
    in_vain: int
    quiet: int
    turn: int = 0

    @classmethod
    def of(cls, *, live: bool, in_vain: int, lines: int) -> Urgency:
        """Of a channel that is live or not, whose JOINs did not last so often, and that brought so many lines."""
        return cls(not live, in_vain, -lines)


@dataclass(frozen=True, slots=True)
class _Wish:
    urgency: Urgency
    join: Join


@dataclass(slots=True, eq=False)
class FleetLink:
    """One link and what the fleet keeps of it.

    Attributes:
        home: the account's cluster that it belongs to.
        channels: those whose handover names this link: they are told when it ends.
        in_flight: channel → ticket of JOINs handed to the link whose bytes have not left.
        welcomed_at: when it logged in (the loop's clock), None before.
        empty_since: since when no channel needs it.
        lines: chat lines that came since its load was looked at.
        crowded: more came than a link is to carry: no channel is added.
    """

    id: LinkId
    link: Link
    server: Server
    home: FleetCluster
    channels: set[Channel] = field(default_factory=set)
    in_flight: dict[Channel, int] = field(default_factory=dict)
    welcomed_at: float | None = None
    leaving: bool = False
    empty_since: float | None = None
    lines: int = 0
    crowded: bool = False

    def room(self, channels_per_link: int) -> int:
        """How many channels may still be joined here."""
        if not self.link.ready or self.leaving or self.crowded:
            return 0
        return channels_per_link - self.link.channel_count


class FleetCluster:
    """One cluster as one account of a fleet uses it.

    Attributes:
        account: name of who joins here.
        links: all that are open or being opened.
        wake: set whenever the pump has something to look at.
        failures: links in a row that were not welcomed.
        closed_until: no link is opened before this time (the loop's clock).
    """

    def __init__(self, name: Cluster, account: str, channels_per_link: int) -> None:
        self.name = name
        self.account = account
        self.links: dict[LinkId, FleetLink] = {}
        self.wake = asyncio.Event()
        self.failures = 0
        self.closed_until = 0.0
        self.opening = 0
        self._channels_per_link = channels_per_link
        self._wishes: dict[Channel, _Wish] = {}
        self._order: list[tuple[Urgency, Channel]] = []  # may name wishes that stand no more
        self._turns = 0

    @property
    def waiting(self) -> int:
        """JOINs that wait for a link or for budget."""
        return len(self._wishes)

    def wish(self, channel: Channel, join: Join, urgency: Urgency) -> None:
        """Add a JOIN, in place of the channel's earlier one."""
        self._turns += 1
        wish = self._wishes[channel] = _Wish(replace(urgency, turn=self._turns), join)
        if len(self._order) > 2 * len(self._wishes):
            self._order = sorted((one.urgency, name) for name, one in self._wishes.items() if name != channel)
        bisect.insort(self._order, (wish.urgency, channel))
        self.wake.set()

    def withdraw(self, channel: Channel) -> None:
        """Forget the channel's JOIN."""
        self._wishes.pop(channel, None)

    def waiting_join(self, channel: Channel) -> Join | None:
        """The channel's JOIN, if one waits."""
        wish = self._wishes.get(channel)
        return None if wish is None else wish.join

    def first_waiting(self) -> Channel | None:
        """A channel whose JOIN waits, or None."""
        return next((channel for channel, _ in self._in_order()), None)

    def hurry(self, channel: Channel, urgency: Urgency) -> None:
        """The channel went live: its JOIN, if one waits, goes before those of all that are not."""
        if (known := self._wishes.get(channel)) is not None:
            self.wish(channel, known.join, urgency)

    def plan(self, limit: int) -> dict[LinkId, list[tuple[Channel, Join]]]:
        """Choose links for at most `limit` waiting JOINs, in order of urgency; nothing is taken out yet.

        Links are filled one after the other, the fullest first, so that few are needed.
        """
        rooms = {id_: room for id_, one in self.links.items() if (room := one.room(self._channels_per_link)) > 0}
        order = sorted(rooms, key=rooms.__getitem__)
        planned: dict[LinkId, list[tuple[Channel, Join]]] = {}
        count = 0
        for channel, join in self._in_order():
            if count == limit or not order:
                break
            chosen = next((id_ for id_ in order if id_ not in join.exclude), None)
            if chosen is None:
                continue
            planned.setdefault(chosen, []).append((channel, join))
            count += 1
            rooms[chosen] -= 1
            if rooms[chosen] == 0:
                order.remove(chosen)
        return planned

    def links_needed(self) -> int:
        """How many more links to open for the JOINs that no link has room for."""
        placeable = sum(len(joins) for joins in self.plan(self.waiting).values())
        unplaced = self.waiting - placeable
        coming = self.opening + sum(1 for one in self.links.values() if one.welcomed_at is None)
        needed = math.ceil(unplaced / self._channels_per_link) - coming
        return max(0, min(needed, OPENING_MAX - coming))

    def open_at_once(self) -> None:
        """Wait no more for servers that did not welcome us: a link has logged in, or there are others."""
        self.failures = 0
        self.closed_until = 0.0
        self.wake.set()

    def failed(self, now: float, jitter: float) -> None:
        """A link was not welcomed: wait, with `jitter` in [0, 1) so that a fleet does not come back as one."""
        self.failures += 1
        pause_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(self.failures - 1, 10))
        self.closed_until = now + pause_s * (0.5 + jitter / 2)

    def _in_order(self) -> Iterator[tuple[Channel, Join]]:
        for urgency, channel in self._order:
            wish = self._wishes.get(channel)
            if wish is not None and wish.urgency is urgency:
                yield channel, wish.join
