"""Simulated time: real monotonic time, stretched."""

from __future__ import annotations

from collections.abc import Callable


class ScaledClock:
    """Seconds since the start of the simulated story.

    The scale may change at any moment; time never jumps or goes back.
    """

    def __init__(self, monotonic: Callable[[], float], scale: float) -> None:
        self._monotonic = monotonic
        self._scale = scale
        self._real_base_s = monotonic()
        self._simulated_base_s = 0.0

    @property
    def scale(self) -> float:
        """Simulated seconds a real second."""
        return self._scale

    def now_s(self) -> float:
        """Return the simulated seconds since the start."""
        return self._simulated_base_s + (self._monotonic() - self._real_base_s) * self._scale

    def set_scale(self, scale: float) -> None:
        """Go on at another pace from this moment."""
        if scale <= 0:
            raise ValueError("a time scale must be above 0")
        real_s = self._monotonic()
        self._simulated_base_s += (real_s - self._real_base_s) * self._scale
        self._real_base_s = real_s
        self._scale = scale
