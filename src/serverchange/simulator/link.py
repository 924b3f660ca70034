"""One client's link to one cluster, seen from the platform: its dialogue, its budget, and the bytes that wait.

A link writes in batches: whatever was queued since the last turn of the event loop leaves in one piece, so a
thousand lines a second cost a few writes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

from serverchange.events import Channel, Cluster
from serverchange.irc.server import ServerDialogue
from serverchange.simulator.budgets import AccountBudget
from serverchange.simulator.chat_lines import SharedLine

HELD_LINES_MAX: Final = 1000
"""Chat lines that a link under RECONNECT holds back to change their order; more are sent at once."""


class Carrier(Protocol):
    """The connection under a link: plain, TLS or WebSocket."""

    transport_name: str
    """`plain`, `tls`, `ws` or `wss`."""
    address: str
    """The client's IP address."""

    def write(self, data: bytes) -> None:
        """Send whole lines."""

    def unsent_bytes(self) -> int:
        """How much the client has not taken yet."""

    def close(self) -> None:
        """Send what was written, then end the connection."""

    def abort(self) -> None:
        """End the connection at once."""


class Flusher:
    """Writes out, once in a turn of the event loop, the links that have something to say."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dirty: list[Link] = []

    def add(self, link: Link) -> None:
        """Let `link` be flushed in this turn; a link adds itself once."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(link)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.flush()


class Link:
    """State of one connection. The network decides; this only holds and writes."""

    __slots__ = (
        "_flusher",
        "_held",
        "_is_dirty",
        "_on_overflow",
        "_unsent_bytes_max",
        "account",
        "budget",
        "carrier",
        "close_handle",
        "closed",
        "cluster",
        "dialogue",
        "doomed",
        "number",
        "opened_s",
        "ping_sent_s",
        "pinged_s",
    )

    def __init__(
        self,
        number: int,
        cluster: Cluster,
        carrier: Carrier,
        flusher: Flusher,
        *,
        opened_s: float,
        unsent_bytes_max: int,
        on_overflow: Callable[[Link], None],
    ) -> None:
        self.number = number
        self.cluster = cluster
        self.carrier = carrier
        self.dialogue = ServerDialogue()
        self.account: str | None = None
        self.budget: AccountBudget | None = None
        self.opened_s = opened_s
        self.pinged_s = opened_s
        self.ping_sent_s: float | None = None
        self.closed = False
        self.doomed = False
        self.close_handle: asyncio.TimerHandle | None = None
        self._held: list[bytes] = []
        self._flusher = flusher
        self._is_dirty = False
        self._unsent_bytes_max = unsent_bytes_max
        self._on_overflow = on_overflow

    @property
    def joined(self) -> set[Channel]:
        """The channels whose JOIN was confirmed here."""
        return self.dialogue.joined

    def send_chat(self, line: SharedLine) -> None:
        """Queue a line of chat; a doomed link gets its lines late and in another order."""
        data = line.tagged if self.dialogue.tags else line.plain
        if self.doomed:
            self._held.append(data)
            return
        self.dialogue.send_raw(data)
        if not self._is_dirty:
            self._is_dirty = True
            self._flusher.add(self)

    def wake(self) -> None:
        """See to it that what the dialogue has queued leaves in this turn of the loop."""
        if not self._is_dirty:
            self._is_dirty = True
            self._flusher.add(self)

    def release_held(self, chance: random.Random | None) -> None:
        """Queue held lines in any order; each stays for the next time with probability 1/2, none without `chance`."""
        if not self._held:
            return
        held, self._held = self._held, []
        if chance is not None:
            chance.shuffle(held)
            if len(held) <= HELD_LINES_MAX:
                stay = sum(chance.random() < 0.5 for _ in held)
                self._held = held[:stay]
                del held[:stay]
        for data in held:
            self.dialogue.send_raw(data)
        self.wake()

    def flush(self) -> None:
        """Write what waits."""
        self._is_dirty = False
        if self.closed:
            return
        data = self.dialogue.data_to_send()
        if data:
            self.carrier.write(data)
            if self.carrier.unsent_bytes() > self._unsent_bytes_max:
                self._on_overflow(self)

    def close(self, *, abort: bool) -> None:
        """End the connection, after a last flush unless it is to be cut."""
        if self.closed:
            return
        if not abort:
            self.release_held(None)
            self.flush()
        self.closed = True
        if self.close_handle is not None:
            self.close_handle.cancel()
        if abort:
            self.carrier.abort()
        else:
            self.carrier.close()
