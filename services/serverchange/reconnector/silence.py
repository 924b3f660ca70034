"""Notices live channels that bring no line: joined by all appearances, yet silent (tmi.js 32 and 90, all-chat 279).

Silence proves nothing, most live streams are small; so it costs a lookup, once a live session. Only a channel that did
bring lines here is taken for a ghost and joined on another link. Pure: times come from the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from serverchange.events import Channel

SILENT_AFTER_S: Final = 900.0
"""Live and silent for so long; the report that this rule answers had 25 minutes of a live stream without a line."""

CHATTY_LINES: Final = 50
"""Lines of a channel in this process after which its silence is no habit of its own."""


@dataclass(slots=True)
class _Heard:
    live_at: float | None = None
    last_at: float = 0.0
    lines: int = 0
    told: bool = False


class SilenceWatch:
    """What was heard of the channels of one process."""

    def __init__(self) -> None:
        self._channels: dict[Channel, _Heard] = {}
        self._live: set[Channel] = set()

    def heard(self, channel: Channel, now: float) -> None:
        """A line came."""
        known = self._channels.get(channel)
        if known is None:
            known = self._channels[channel] = _Heard()
        known.last_at = now
        known.lines += 1

    def set_live(self, channel: Channel, *, live: bool, now: float) -> None:
        """The streams API says so; a new live session may be told again."""
        known = self._channels.setdefault(channel, _Heard())
        if not live:
            self._live.discard(channel)
            known.live_at = None
        elif known.live_at is None:
            self._live.add(channel)
            known.live_at, known.told = now, False

    def forget(self, channel: Channel) -> None:
        """The channel is not read here any more."""
        self._channels.pop(channel, None)
        self._live.discard(channel)

    def silent(self, now: float) -> list[tuple[Channel, bool]]:
        """Channels live and silent for too long, and whether they used to bring lines; each told once a session."""
        found = []
        for channel in self._live:
            known = self._channels[channel]
            since = max(known.live_at or 0.0, known.last_at)
            if not known.told and now >= since + SILENT_AFTER_S:
                known.told = True
                found.append((channel, known.lines >= CHATTY_LINES))
        return found
