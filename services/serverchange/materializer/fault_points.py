"""Named points where a test ends or pauses the process: between two steps that must hold together.

Off unless the environment variable `SERVERCHANGE_TEST_FAULT_POINT` says `name:hits:action` (action `kill` or `pause`)
at start; then the process gets SIGKILL or SIGSTOP when it reaches that point for the `hits`-th time.
"""

from __future__ import annotations

import os
import signal
from typing import Final

FAULT_POINT_VARIABLE: Final = "SERVERCHANGE_TEST_FAULT_POINT"

FAULT_POINTS: Final = (
    "positions-locked",
    "before-commit",
    "after-commit",
    "seek",
    "outbox-fenced",
    "outbox-read",
    "outbox-sent",
    "outbox-committed",
)

_SIGNALS: Final = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP}


class _Armed:
    """The one point that this process was started with, and how often it must still be passed."""

    def __init__(self, text: str | None) -> None:
        self.name, self.left, self.signal = "", 0, signal.SIGKILL
        if text:
            self.name, hits, action = text.split(":")
            self.left, self.signal = int(hits), _SIGNALS[action]
            if self.name not in FAULT_POINTS:
                raise ValueError(f"{FAULT_POINT_VARIABLE}: no point is called {self.name!r}")


_armed: Final = _Armed(os.environ.get(FAULT_POINT_VARIABLE))


def reach(name: str) -> None:
    """Pass the point `name`; where a test armed it, this is the last thing the process does for a while."""
    if _armed.name != name:
        return
    _armed.left -= 1
    if _armed.left == 0:
        os.kill(os.getpid(), _armed.signal)
