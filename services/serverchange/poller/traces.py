"""Remembers which trace a channel's next answer belongs to: that of the notice, doubt or change that made it wanted.

In memory alone: after a restart, or where a partition changes its poller, the answer begins a trace of its own.
"""

from __future__ import annotations

from typing import Final

from serverchange.events import Channel

CHANNELS_MAX: Final = 10_000
"""Channels whose trace is remembered; beyond it the oldest is forgotten: its answer begins a trace of its own."""


class Traces:
    """`traceparent` by channel."""

    def __init__(self) -> None:
        self._parents: dict[Channel, str] = {}

    def note(self, channel: Channel, traceparent: str | None) -> None:
        """Let the next answers about `channel` belong to this trace; None changes nothing."""
        if traceparent is None:
            return
        self._parents.pop(channel, None)
        if len(self._parents) >= CHANNELS_MAX:
            del self._parents[next(iter(self._parents))]
        self._parents[channel] = traceparent

    def parent(self, channel: Channel) -> str | None:
        """Return the trace that an answer about `channel` belongs to."""
        return self._parents.get(channel)

    def forget(self, channel: Channel) -> None:
        """Say that what was asked for is settled."""
        self._parents.pop(channel, None)
