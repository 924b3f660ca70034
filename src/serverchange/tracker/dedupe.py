"""Which received lines are new: each goes to the readers once, though two links bring it during a handover.

Lines with a message id are told apart by it. CLEARCHAT, CLEARMSG and NOTICE have none (justlog 186): their key is
command, channel, `tmi-sent-ts`, the target and the text. ROOMSTATE and USERSTATE are states, forwarded when they
differ. Everything here is bounded in time and in memory, and reads no clock.

Also here, because it needs the same keys: the witness that notices a line on the old side of an overlap that the new
side never brings, and the brake on repeated SERVERCHANGE notices.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from serverchange.events import Channel, Cluster
from serverchange.irc.line import Line
from serverchange.tracker.handover_words import LinkId

WINDOW_S: Final = 60.0
"""How long a line is remembered at least. Both sides of an overlap bring a line within seconds; the platform keeps a
link that it told to RECONNECT for up to 60 s."""

KEYS_MAX: Final = 500_000
"""Keys remembered at once, some 40 MB: 60 s at 8,000 lines a second. Beyond it the oldest go early."""

PENDING_MAX: Final = 64
"""Lines of one channel that wait for their copy; one that stays alone is enough to raise the doubt."""

NOTICE_REPEAT_S: Final = 60.0
"""A hearer repeats a notice that nobody acted on, but not faster: servers have repeated a line thousands of times."""

NOTICES_MAX: Final = 400_000
"""Remembered notices; twice the channels of the largest process."""

_NOT_STATE: Final = frozenset({"id", "client-nonce", "tmi-sent-ts"})

LineKey: TypeAlias = int
"""A 64-bit hash. Among 500,000 remembered keys one line in 10^13 would be dropped by chance."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What `LineMemory.arrive` says of a line.

    Attributes:
        new: Deliver it.
        key: The line's key where it is sure to name one line; None where it is not (no id, no time).
    """

    new: bool
    key: LineKey | None


class LineMemory:
    """Remembers the lines of the last `window_s` seconds, at most `keys_max` of them.

    Keys are kept in two sets, and each window the younger one takes the place of the older. So a key is remembered for
    one to two windows, and forgetting costs nothing a line.

    Attributes:
        forgotten_early: How often a set was full before its time; then duplicates may pass. Alert on it.
    """

    def __init__(self, window_s: float = WINDOW_S, keys_max: int = KEYS_MAX) -> None:
        self.forgotten_early = 0
        self._window_s = window_s
        self._set_max = max(1, keys_max // 2)
        self._young: dict[LineKey, _Copies | None] = {}
        self._old: dict[LineKey, _Copies | None] = {}
        self._turn_at: float | None = None

    def arrive(self, channel: Channel, line: Line, link: LinkId, now: float) -> Arrival:
        """Say whether a line is new, and remember it. `now` is any monotonic clock's, in seconds."""
        self._turn_over(now)
        message_id = line.tags.get("id")
        sent = None if message_id else line.tags.get("tmi-sent-ts")
        if message_id or sent:
            key = hash((channel, message_id or _composite(line, sent)))
            if key in self._young or key in self._old:
                return Arrival(new=False, key=key)
            self._young[key] = None
            return Arrival(new=True, key=key)
        return Arrival(new=self._is_new_copy(hash((channel, _composite(line, None))), link), key=None)

    def _is_new_copy(self, key: LineKey, link: LinkId) -> bool:
        """Of lines that look alike and name no time, the n-th of one link is the copy of the n-th of another."""
        copies = self._young.get(key) or self._old.get(key) or _Copies(0, {})
        count = copies.by_link.get(link, 0) + 1
        new = count > copies.delivered
        self._young[key] = _Copies(copies.delivered + new, {**copies.by_link, link: count})
        return new

    def _turn_over(self, now: float) -> None:
        if self._turn_at is None:
            self._turn_at = now + self._window_s
        full = len(self._young) >= self._set_max
        if full or now >= self._turn_at:
            self.forgotten_early += full and now < self._turn_at
            self._old, self._young = self._young, {}
            self._turn_at = now + self._window_s


@dataclass(frozen=True, slots=True)
class _Copies:
    delivered: int
    by_link: Mapping[LinkId, int]


def _composite(line: Line, sent: str | None) -> Hashable:
    target = line.tags.get("target-user-id") or line.tags.get("target-msg-id")
    return (line.command, sent, target, line.params)


class StateMemory:
    """The last ROOMSTATE and USERSTATE of each channel of this process.

    A ROOMSTATE after the first names only what changed, so states are merged, and a line is news when the merged
    state differs.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[Channel, str], dict[str, str]] = {}

    def arrive(self, channel: Channel, line: Line) -> bool:
        """Say whether a state line tells anything new, and remember it."""
        told = {key: value for key, value in line.tags.items() if key not in _NOT_STATE}
        known = self._states.get((channel, line.command))
        if known is None:
            self._states[channel, line.command] = told
            return True
        if told.items() <= known.items():
            return False
        known.update(told)
        return True

    def forget(self, channel: Channel) -> None:
        """The channel is not read here any more."""
        self._states.pop((channel, "ROOMSTATE"), None)
        self._states.pop((channel, "USERSTATE"), None)


class OverlapWitness:
    """Notices a line that an old side of an overlap brings and the new side does not.

    Between clusters such a line says that the channel is still, or again, where it was; on one cluster it says that the
    new link is joined by appearance only.

    Args:
        settle_s: Lines on the old side so shortly after the confirmation may have been sent before it.
        grace_s: How long the new side may take for its copy: both links bring a line within a second or two, though
            not in the same order.
    """

    def __init__(self, settle_s: float = 2.0, grace_s: float = 5.0) -> None:
        self._settle_s = settle_s
        self._grace_s = grace_s
        self._begun_at: dict[Channel, float] = {}
        self._pending: dict[Channel, OrderedDict[LineKey, float]] = {}

    def begin(self, channel: Channel, now: float) -> None:
        """The new side of `channel` is confirmed."""
        self._begun_at[channel] = now
        self._pending.pop(channel, None)

    def end(self, channel: Channel) -> None:
        """The overlap is over, whatever became of it."""
        self._begun_at.pop(channel, None)
        self._pending.pop(channel, None)

    def heard(self, channel: Channel, arrival: Arrival, *, on_new: bool, now: float) -> None:
        """Note a line of a channel; nothing is kept of channels without an overlap."""
        begun_at = self._begun_at.get(channel)
        if begun_at is None or arrival.key is None:
            return
        if on_new:
            if not arrival.new and (pending := self._pending.get(channel)):
                pending.pop(arrival.key, None)
        elif arrival.new and now >= begun_at + self._settle_s:
            pending = self._pending.setdefault(channel, OrderedDict())
            if len(pending) < PENDING_MAX:
                pending[arrival.key] = now

    def alone(self, now: float) -> list[Channel]:
        """Channels with a line whose copy is overdue, each told once a `begin`."""
        overdue = [
            channel
            for channel, pending in self._pending.items()
            if pending and now >= next(iter(pending.values())) + self._grace_s
        ]
        for channel in overdue:
            self.end(channel)
        return overdue


class NoticeBrake:
    """Lets one notice through for each (channel, where heard, believed version), then one a minute.

    Attributes:
        held_back: How many were not let through.
    """

    def __init__(self) -> None:
        self.held_back = 0
        self._written: OrderedDict[tuple[Channel, Cluster], tuple[int, Cluster | None, float]] = OrderedDict()

    def admit(self, channel: Channel, heard_on: Cluster, target: Cluster | None, version: int, now: float) -> bool:
        """Say whether to publish this notice. One that names a target where the last named none is news."""
        key = (channel, heard_on)
        written = self._written.get(key)
        if written is not None:
            last_version, last_target, at = written
            if last_version == version and target in (None, last_target) and now < at + NOTICE_REPEAT_S:
                self.held_back += 1
                return False
        self._written[key] = (version, target, now)
        self._written.move_to_end(key)
        if len(self._written) > NOTICES_MAX:
            self._written.popitem(last=False)
        return True
