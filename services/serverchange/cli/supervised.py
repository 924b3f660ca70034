"""The child's half of supervision: a supervised process must not outlive its supervisor, however that one ends.

The supervisor holds the writing end of a pipe that all its children can read. It never writes: when the kernel closes
the pipe, because the supervisor exited or was killed with -9, each child reads the end of the file, asks itself to
stop as SIGTERM would, and ends after `ORPHAN_TIMEOUT_S` whatever hangs. A pipe, not `PR_SET_PDEATHSIG`: it works on
macOS, and does not depend on which thread forked.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Final

SUPERVISOR_FD_VARIABLE: Final = "SERVERCHANGE_SUPERVISOR_FD"
"""Names the reading end of the supervisor's pipe; no section of the settings, so no process reads it as one."""

ORPHAN_TIMEOUT_S: Final = 6.0
"""A second more than the 4.5 s in which a process stops by itself, rounded up."""

EXIT_ORPHANED: Final = 75
"""As `ExitCode.STOP_TIMED_OUT`, without importing the process frame into a command that only prints something."""


def end_with_supervisor() -> bool:
    """Watch the supervisor's pipe from a daemon thread, if this process has one; returns whether it has."""
    number = os.environ.pop(SUPERVISOR_FD_VARIABLE, None)
    if number is None:
        return False
    descriptor = int(number)
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_watch, args=[descriptor], name="supervisor-watch", daemon=True).start()
    return True


def _watch(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_TIMEOUT_S)
    os._exit(EXIT_ORPHANED)
