"""What truly happened, in the order in which it happened: the oracle that tests and the demo compare with.

Two parts: entries (moves, JOINs, links, violations …), and the numbered chat lines, kept in columns because there
are hundreds of thousands of them. Nothing is ever removed. Times are the machine's monotonic clock, which all
processes of one machine share; `wall_s` turns them into Unix time.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from serverchange.events import Channel, Cluster

_Found = TypeVar("_Found")


class EntryKind(StrEnum):
    """What an entry tells. In brackets: the fields that it has beside `at`."""

    MOVED = "moved"
    """A channel lives elsewhere (channel, cluster = the new one, previous, detail = the script's step)."""
    WENT_LIVE = "went-live"
    """A stream began (channel, cluster)."""
    WENT_OFFLINE = "went-offline"
    """A stream ended (channel, cluster)."""
    NOTICE_SENT = "notice-sent"
    """SERVERCHANGE or CLUSTERCHANGE went to a link (channel, cluster = the link's, link, account, detail = why)."""
    NOTICE_LOST = "notice-lost"
    """It was due and got lost (as above)."""
    LINK_OPENED = "link-opened"
    """A connection was accepted (cluster, link, detail = transport)."""
    LINK_LOGGED_IN = "link-logged-in"
    """PASS and NICK were good (cluster, link, account)."""
    LINK_CLOSED = "link-closed"
    """A connection ended (cluster, link, account, detail = why)."""
    LOGIN_REFUSED = "login-refused"
    """PASS and NICK were not good (cluster, link, account, detail = why)."""
    JOINED = "joined"
    """A JOIN was confirmed (channel, cluster, link, account)."""
    JOIN_REFUSED = "join-refused"
    """A JOIN was answered otherwise, or not at all (channel, cluster, link, account, detail = why)."""
    PARTED = "parted"
    """A link left a channel by PART (channel, cluster, link, account)."""
    PRIVMSG = "privmsg"
    """A client spoke (channel, cluster, link, account, detail = text)."""
    PRIVMSG_DROPPED = "privmsg-dropped"
    """A client spoke and was not heard (channel, cluster, link, account, detail = why)."""
    RECONNECT_SENT = "reconnect-sent"
    """RECONNECT went to a link (cluster, link, account, detail = seconds until it closes)."""
    PING_SENT = "ping-sent"
    """The server asked whether the link lives (cluster, link, account)."""
    PONG_RECEIVED = "pong-received"
    """It does (cluster, link, account)."""
    LINE_REJECTED = "line-rejected"
    """A client sent bytes that are no line (cluster, link, account, detail = why)."""
    VIOLATION = "violation"
    """A budget was exceeded or a rule of the server broken (link, account, detail = which)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    Attributes:
        sequence: number of the entry, from 0.
        at: monotonic seconds.
        kind: what happened.
        channel: which channel, where one is concerned.
        cluster: where.
        previous: for a move, where the channel lived before.
        link: number of the link, where one is concerned.
        account: its login (`justinfan…` for anonymous readers).
        detail: what else there is to say; see `EntryKind`.
    """

    sequence: int
    at: float
    kind: EntryKind
    channel: Channel | None = None
    cluster: Cluster | None = None
    previous: Cluster | None = None
    link: int | None = None
    account: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class SentLine:
    """One numbered line of chat.

    Attributes:
        channel: where it was said.
        number: counts the channel's lines from 1; it stands in the text as `#17 …`.
        at: monotonic seconds when it was sent.
        cluster: where the channel lived then.
        links: the links that were sent it.
    """

    channel: Channel
    number: int
    at: float
    cluster: Cluster
    links: tuple[int, ...]


class LedgerFullError(RuntimeError):
    """More numbered lines than the ledger may hold: raise `ledger_lines_max`, or send less."""


class LineLedger:
    """The numbered lines, in columns."""

    def __init__(self, lines_max: int) -> None:
        self._lines_max = lines_max
        self._channels: list[Channel] = []
        self._numbers = array("L")
        self._at = array("d")
        self._clusters: list[Cluster] = []
        self._links: list[tuple[int, ...]] = []
        self._last: dict[Channel, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def last_number(self, channel: Channel) -> int:
        """Return the number of the channel's last line, 0 if there is none."""
        return self._last.get(channel, 0)

    def next_number(self, channel: Channel) -> int:
        """Return the number for the channel's next line and count it as taken.

        Raises:
            LedgerFullError: the limit is reached.
        """
        if len(self._numbers) >= self._lines_max:
            raise LedgerFullError(f"{self._lines_max} lines are all that the ledger may hold (ledger_lines_max)")
        number = self._last.get(channel, 0) + 1
        self._last[channel] = number
        return number

    def append(self, channel: Channel, number: int, at: float, cluster: Cluster, links: tuple[int, ...]) -> None:
        """Record a line that was sent. Pass the same tuple for the same audience: it is kept, not copied."""
        self._channels.append(channel)
        self._numbers.append(number)
        self._at.append(at)
        self._clusters.append(cluster)
        self._links.append(links)

    def since(self, start: int = 0, stop: int | None = None) -> Iterator[SentLine]:
        """Yield the lines from the `start`-th on, in the order in which they were sent."""
        for index in range(start, len(self) if stop is None else min(stop, len(self))):
            yield SentLine(
                self._channels[index],
                self._numbers[index],
                self._at[index],
                self._clusters[index],
                self._links[index],
            )


class Ledger:
    """Everything that happened since the start.

    One event loop owns it. `record` is called by the simulator only; everyone may read and wait.
    """

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float], lines_max: int) -> None:
        self._monotonic = monotonic
        self._wall_minus_monotonic_s = wall() - monotonic()
        self._waiting: set[asyncio.Future[None]] = set()
        self.entries: list[Entry] = []
        self.lines = LineLedger(lines_max)
        self.violations: Counter[str] = Counter()

    def wall_s(self, at: float) -> float:
        """Return the Unix time of a monotonic instant. A step of the wall clock after the start is not followed."""
        return at + self._wall_minus_monotonic_s

    def record(
        self,
        kind: EntryKind,
        *,
        channel: Channel | None = None,
        cluster: Cluster | None = None,
        previous: Cluster | None = None,
        link: int | None = None,
        account: str | None = None,
        detail: str | None = None,
    ) -> Entry:
        """Append an entry, stamped now, and wake those who wait."""
        entry = Entry(len(self.entries), self._monotonic(), kind, channel, cluster, previous, link, account, detail)
        self.entries.append(entry)
        if kind is EntryKind.VIOLATION:
            self.violations[detail or "unknown"] += 1
        self.notify()
        return entry

    def notify(self) -> None:
        """Wake everyone who waits for a condition; called after each entry and each batch of lines."""
        if self._waiting:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting.clear()

    def find(self, kinds: Collection[EntryKind] | EntryKind, *, since: int = 0, **fields: object) -> Iterator[Entry]:
        """Yield the entries of these kinds from sequence `since` on whose named fields have these values."""
        wanted = {kinds} if isinstance(kinds, EntryKind) else set(kinds)
        for index in range(since, len(self.entries)):
            entry = self.entries[index]
            if (not wanted or entry.kind in wanted) and all(
                getattr(entry, name) == value for name, value in fields.items()
            ):
                yield entry

    def count(self, kinds: Collection[EntryKind] | EntryKind, *, since: int = 0, **fields: object) -> int:
        """Return how many entries `find` yields."""
        return sum(1 for _ in self.find(kinds, since=since, **fields))

    async def wait_for(self, kind: EntryKind, *, since: int = 0, timeout_s: float = 10.0, **fields: object) -> Entry:
        """Return the first such entry at or after sequence `since`, waiting until there is one.

        Raises:
            TimeoutError: none came within `timeout_s` real seconds; the message says what was waited for.
        """
        looked_at = since

        def first() -> Entry | None:
            nonlocal looked_at
            start, looked_at = looked_at, len(self.entries)
            return next(self.find(kind, since=start, **fields), None)

        told = ", ".join([kind.value, *(f"{name}={value}" for name, value in fields.items())])
        return await self._wait(first, timeout_s, told)

    async def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = 10.0, what: str = "") -> None:
        """Wait until `condition()` is true; it is asked again whenever something is recorded or lines were sent.

        Raises:
            TimeoutError: it was not within `timeout_s` real seconds.
        """
        await self._wait(lambda: condition() or None, timeout_s, what or "a condition")

    async def _wait(self, look: Callable[[], _Found | None], timeout_s: float, what: str) -> _Found:
        deadline_s = self._monotonic() + timeout_s
        while (found := look()) is None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait_for(future, max(0.0, deadline_s - self._monotonic()))
            except TimeoutError:
                if (found := look()) is not None:
                    return found
                raise TimeoutError(f"the ledger shows no {what} within {timeout_s:g} s") from None
            finally:
                self._waiting.discard(future)
        return found
