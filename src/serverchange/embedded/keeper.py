"""Keeps one server alive exactly as long as the process that wanted it. Run as a script, standard library only.

Between the owner (our Python process) and the server (java, postgres) stands this keeper, in a session of its own, so
that a Ctrl-C at the terminal reaches the owner alone. It holds the reading end of a pipe whose other end the owner
holds, and a pidfd of the owner where the system has those:

- the owner closes the pipe, exits, or is killed in any way → the server is asked to stop, then killed;
- the owner writes ``k`` → the server is killed at once;
- the keeper itself is killed → the kernel signals the server (``PR_SET_PDEATHSIG``).

The last is tied to the *thread* that forked and is cleared when the user changes (prctl(2)); so the keeper has one
thread, and asks for the signal after the change of user, in the forked child.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
EXIT_NOT_STARTED = 127
KILL_COMMAND = b"k"


def main(arguments: list[str]) -> int:
    """Run the server that the JSON in ``arguments[1]`` describes; return its exit code, 128 + n after signal n."""
    spec: dict[str, Any] = json.loads(arguments[1])
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    woken_at, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    for watched in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(watched, lambda _number, _frame: None)
    owner = os.getppid()
    try:
        server = _spawn(spec)
    except OSError as error:
        _report({"error": f"{error.strerror}: {error.filename}"})
        return EXIT_NOT_STARTED
    _report({"pid": server.pid})
    _watch(server, owner, woken_at, spec)
    code = server.returncode
    return int(code if code >= 0 else 128 - code)


def _spawn(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    with Path(spec["log"]).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the owner's own command
            spec["command"],
            cwd=spec["cwd"],
            env=spec["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # The server holds the folder's lock too: it is free only when neither can write any more.
            pass_fds=[spec["lock_fd"]],
            user=spec["uid"],
            group=spec["gid"],
            extra_groups=None if spec["uid"] is None else [],
            preexec_fn=_die_with_parent(spec["orphan_signal"]),  # noqa: PLW1509 - one thread, see above
        )


def _die_with_parent(orphan_signal: int) -> Callable[[], None]:
    keeper = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def in_child() -> None:
        for restored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(restored, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, orphan_signal)
            if os.getppid() != keeper:  # killed between fork and prctl
                os._exit(EXIT_NOT_STARTED)

    return in_child


def _watch(server: subprocess.Popen[bytes], owner: int, woken_at: int, spec: dict[str, Any]) -> None:
    """Return once the server has ended, by itself or because the owner wished it or is gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(woken_at, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        owner_fd = _open_pidfd(owner)
        if owner_fd is not None:
            selector.register(owner_fd, selectors.EVENT_READ)
        deadline: float | None = None
        while server.poll() is None:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = {key.fd for key, _mask in selector.select(remaining)}
            if deadline is not None and time.monotonic() >= deadline:
                server.kill()
                server.wait()
                return
            kill, stop = _wishes(ready, selector, woken_at, owner_fd, server)
            if kill:
                server.kill()
            elif stop and deadline is None:
                server.send_signal(spec["stop_signal"])
                deadline = time.monotonic() + spec["stop_timeout_s"]


def _wishes(
    ready: set[int],
    selector: selectors.BaseSelector,
    woken_at: int,
    owner_fd: int | None,
    server: subprocess.Popen[bytes],
) -> tuple[bool, bool]:
    """What the ready descriptors ask for: (kill now, stop)."""
    kill = stop = False
    if 0 in ready:
        command = os.read(0, 16)
        kill = KILL_COMMAND in command
        stop = not command
        if not command:
            selector.unregister(0)
    if owner_fd is not None and owner_fd in ready:
        stop = True
        selector.unregister(owner_fd)
    if woken_at in ready:
        # SIGCHLD only wakes the loop; SIGTERM is somebody's wish that we end, and we end with our server.
        stop = stop or signal.SIGTERM in os.read(woken_at, 64)
        server.poll()
    return kill, stop


def _open_pidfd(owner: int) -> int | None:
    """A descriptor that becomes readable when the owner ends: a forked child of it may hold our pipe open."""
    try:
        return os.pidfd_open(owner) if sys.platform == "linux" else None
    except OSError:
        return None


def _report(message: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return  # the owner is gone already; the pipe's end says so too


if __name__ == "__main__":
    sys.exit(main(sys.argv))
