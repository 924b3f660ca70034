"""One server's folder: who uses it, which ports it keeps, and where its log is.

The lock is an ``flock`` that the server inherits (see ``keeper``), so it tells the truth whoever was killed: it is
free exactly when no process can write into the folder any more. Its file names the owner for the error message.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serverchange.embedded.errors import TAIL_LINES, EmbeddedError
from serverchange.embedded.ports import choose_ports

LOG_LIMIT_BYTES = 16 * 2**20
"""A log larger than this is set aside (one generation) at the next start."""
TAIL_BYTES = 16 * 2**10
LOCK_WAIT_S = 20.0
"""Longest wait for a server whose owner is gone: its clean stop takes 2 s, and it is killed after 15."""
LOCK_POLL_S = 0.05


class ServerFolder:
    """The files of one server below ``data_dir``: ``NAME.lock``, ``NAME.ports.json``, ``NAME.log``.

    Args:
        data_dir: Made, for its owner alone, when first needed.
        name: ``kafka`` or ``postgres``; part of every file name, so that both could share a folder.
    """

    def __init__(self, data_dir: Path, name: str) -> None:
        self.path = data_dir.absolute()
        self.name = name
        self.log = self.path / f"{name}.log"
        self._lock_file = self.path / f"{name}.lock"
        self.ports_file = self.path / f"{name}.ports.json"

    def make(self) -> None:
        """Make the folder.

        Raises:
            EmbeddedError: It cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise EmbeddedError(
                f"cannot make the data folder {self.path}: {error.strerror}", todo="name a folder that you can write"
            ) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise EmbeddedError(
                f"cannot write into the data folder {self.path}", todo="name a folder that you can write"
            )

    def acquire(self, cancelled: Callable[[], bool] = lambda: False) -> int:
        """Take the folder and return the descriptor of its lock, to be closed or handed on by the caller.

        Where the owner is gone but its server still stops, waits for that.

        Raises:
            EmbeddedError: A living process uses the folder; the message has its pid.
        """
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait_for_lock(descriptor, cancelled)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _wait_for_lock(self, descriptor: int, cancelled: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(descriptor):
            self._check_holder(_read_pid(descriptor), out_of_time=time.monotonic() >= deadline)
            if cancelled():
                raise EmbeddedError(
                    f"the wait for the {self.name} data folder was interrupted by a stop", todo="start it again"
                )
            time.sleep(LOCK_POLL_S)

    def disown(self) -> None:
        """Take our name off the lock after a stop, so that a successor waits for a last straggler, not fails."""
        with suppress(OSError):
            os.truncate(self._lock_file, 0)

    def _check_holder(self, owner: int | None, *, out_of_time: bool) -> None:
        """Raise if the folder will not become free by waiting."""
        if owner == os.getpid():
            who = f"this process (pid {owner})"
        elif owner is not None and _is_alive(owner):
            who = f"the process with pid {owner}"
        elif out_of_time:
            who = f"a server that has not ended within {LOCK_WAIT_S:.0f} s; its owner is gone or in another container"
        else:
            return
        raise EmbeddedError(
            f"the {self.name} data folder {self.path} is in use by {who}",
            todo="stop that one first, or name another data folder",
        )

    def ports(self, explicit: int | None, count: int) -> tuple[int, ...]:
        """Return the server's ports, first the one for clients; chosen once, then kept in the folder.

        Args:
            explicit: The port that the caller wants for clients, or None.
            count: How many ports the server needs.
        """
        try:
            kept = [int(port) for port in json.loads(self.ports_file.read_text("utf-8"))]
        except (OSError, ValueError, TypeError):
            kept = []
        wanted = kept if len(kept) == count else list(choose_ports(count))
        if explicit is not None:
            wanted[0] = explicit
        if wanted != kept:
            self.make()
            written = self.ports_file.with_suffix(f".{os.getpid()}.new")
            written.write_text(json.dumps(wanted), "utf-8")
            written.replace(self.ports_file)
        return tuple(wanted)

    def rotate_log(self) -> None:
        """Set a long log aside as ``NAME.log.1``."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    def log_size(self) -> int:
        """Bytes in the log now: what comes after belongs to the next start."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, since: int = 0) -> list[str]:
        """Return the last lines of the log.

        Args:
            since: Only what stands after this many bytes.
        """
        try:
            with self.log.open("rb") as stream:
                end = stream.seek(0, os.SEEK_END)
                stream.seek(max(since, end - TAIL_BYTES))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []
        return list(deque(lines, maxlen=TAIL_LINES))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Killed, but nobody waited for it: in a container with a careless first process it stays so for ever."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False  # no /proc on this system, or it has gone just now
    return status.rpartition(b")")[2].split()[0] in (b"Z", b"X")
