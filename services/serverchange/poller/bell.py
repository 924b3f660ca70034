"""Wakes the one task that asks, when the schedule was told something: its last word on when to ask may be void."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung by whoever tells the schedule something; awaited by one task."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._urgent = False

    def ring(self, *, urgent: bool = False) -> None:
        """End the sleeper's wait; `urgent` says that somebody heard what a lookup must settle."""
        self._urgent = self._urgent or urgent
        self._rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Sleep until it rings or the time is over, and return whether it was urgent."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            pass
        self._rung.clear()
        urgent, self._urgent = self._urgent, False
        return urgent
