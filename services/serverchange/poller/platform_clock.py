"""The clock of the lookup schedule: seconds of the platform's days, moved by this machine's monotonic clock.

In production both run alike. A simulator lets the platform's days pass `scale` times faster; habits, hazards and
the API's lag follow its days, so the schedule must too.
"""

from __future__ import annotations

import time
from datetime import datetime


class PlatformClock:
    """Anchored to the wall clock once, so that a clock set meanwhile moves nothing."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self._anchor_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Return the platform's time now."""
        return (self._anchor_s + time.monotonic()) * self.scale

    def at_s(self, moment: datetime) -> float:
        """Return the platform's time at a moment of the wall clock."""
        return moment.timestamp() * self.scale

    def platform_s(self, real_s: float) -> float:
        """Return a duration of real seconds in the platform's."""
        return real_s * self.scale

    def real_s(self, platform_s: float) -> float:
        """Return a duration of the platform's seconds in real ones."""
        return platform_s / self.scale
