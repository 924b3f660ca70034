"""The owner's side of one server process: start it through a keeper, await readiness, stop, kill.

What Kafka and PostgreSQL have in common lives here; what differs (command, readiness) they hand in.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.folder import ServerFolder
from serverchange.embedded.ports import LOOPBACK, is_free

START_LIMIT_S = 90.0
"""Longest start: Kafka takes 2 s on an idle machine and 6 s after a kill; the rest is for slow, busy machines."""
STOP_MARGIN_S = 5.0
"""How much longer than the server's own limit the owner waits before it kills the keeper."""
READY_POLL_S = 0.03
PREPARE_LIMIT_S = 120.0
"""Longest run of a tool that prepares a folder (``initdb``, Kafka's format)."""
KEEPER = Path(__file__).with_name("keeper.py")


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to run a server.

    Attributes:
        command: Program and arguments.
        cwd: Its working folder.
        environment: All its variables; nothing of ours is inherited, so no secret of ours shows in its process entry.
        stop_signal: Asks for a clean stop.
        stop_timeout_s: After that it is killed.
        orphan_signal: What the kernel sends when the keeper was killed.
        uid: User to become (only root can), or None.
        gid: Group to become, or None.
    """

    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str]
    stop_signal: signal.Signals
    stop_timeout_s: float
    orphan_signal: signal.Signals = signal.SIGKILL
    uid: int | None = None
    gid: int | None = None


class EmbeddedServer(ABC):
    """One server below one folder. Start, stop and kill; a stopped one may be started again.

    ``start`` and ``stop`` may be called from different threads: a stop makes a start that is under way give up.
    """

    def __init__(self, folder: ServerFolder, *, port: int | None, progress: Callable[[str], None] | None) -> None:
        self._folder = folder
        self._explicit_port = port
        self._progress = progress or (lambda _message: None)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._server_pid: int | None = None
        self._lock_fd: int | None = None
        self._cancelled = threading.Event()
        self._starting = threading.Lock()
        self._stop_timeout_s = 0.0

    title: str
    """Name for people."""

    @abstractmethod
    def _prepare(self, lock_fd: int) -> ServerCommand:
        """Make the folder ready on the first start and return how to run the server."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Tell whether clients are served now; called again and again while the process lives."""

    @abstractmethod
    def _ports(self) -> tuple[int, ...]:
        """All ports of the server; the first is for clients."""

    @property
    def port(self) -> int:
        """Port for clients on 127.0.0.1; chosen when first asked for and kept in the folder."""
        return self._ports()[0]

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self._folder.log

    @property
    def pid(self) -> int | None:
        """The server's process id, or None while it does not run."""
        if self._keeper is None or self._keeper.poll() is not None:
            return None
        return self._server_pid

    def start(self) -> None:
        """Start the server and return once it serves clients.

        Raises:
            EmbeddedError: It runs already, its folder or a port is in use, its parts are missing, it ended while it
                started (the message repeats the end of its log), or it was not ready within ``START_LIMIT_S``.
        """
        with self._starting:
            if self.pid is not None:
                raise EmbeddedError(f"{self.title} on {self._folder.path} runs already", todo="call start() once")
            self._cancelled.clear()
            self._close()
            try:
                self._start()
            except BaseException:
                self._end()
                raise

    def _start(self) -> None:
        self._folder.make()
        self._lock_fd = self._folder.acquire(self._cancelled.is_set)
        command = self._prepare(self._lock_fd)
        self._refuse_taken_ports()
        self._folder.rotate_log()
        since = self._folder.log_size()
        self._launch(command, self._lock_fd)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._is_ready():
            self._check_start(deadline, since)
            time.sleep(READY_POLL_S)

    def _check_start(self, deadline: float, since: int) -> None:
        """Raise if there is nothing left to wait for."""
        if self._cancelled.is_set():
            raise EmbeddedError(f"the start of {self.title} was interrupted by a stop", todo="start it again")
        if self.pid is None:
            raise EmbeddedError(
                f"{self.title} on {self._folder.path} ended while it started",
                todo=f"read the reason below or in {self._folder.log}",
                log_tail=self._folder.log_tail(since),
            )
        if time.monotonic() >= deadline:
            raise EmbeddedError(
                f"{self.title} on {self._folder.path} was not ready within {START_LIMIT_S:.0f} s",
                todo=f"see {self._folder.log}; on a very busy machine start it again",
                log_tail=self._folder.log_tail(since),
            )

    def _refuse_taken_ports(self) -> None:
        for port in self._ports():
            if not is_free(port):
                raise EmbeddedError(
                    f"another program uses the port {port} of {self.title} on {LOOPBACK}",
                    todo=f"stop that program, or delete {self._folder.ports_file} to have new ports chosen",
                )

    def _launch(self, command: ServerCommand, lock_fd: int) -> None:
        spec = {
            "command": list(command.command),
            "cwd": str(command.cwd),
            "environment": dict(command.environment),
            "log": str(self._folder.log),
            "lock_fd": lock_fd,
            "stop_signal": int(command.stop_signal),
            "stop_timeout_s": command.stop_timeout_s,
            "orphan_signal": int(command.orphan_signal),
            "uid": command.uid,
            "gid": command.gid,
        }
        self._stop_timeout_s = command.stop_timeout_s
        with self._folder.log.open("ab") as log:
            self._keeper = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-S", str(KEEPER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[lock_fd],
                start_new_session=True,
            )
        self._release_lock_fd()
        report = _read_report(self._keeper)
        if "error" in report:
            raise EmbeddedError(
                f"cannot run {self.title}: {report['error']}", todo="install the extra again: serverchange[embedded]"
            )
        self._server_pid = int(report["pid"])

    def stop(self) -> None:
        """Stop the server cleanly, or by force after its limit; returns when it is gone. Idempotent."""
        self._cancelled.set()
        with self._starting:
            self._end()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would; returns when the process is gone."""
        keeper = self._keeper
        if keeper is None or keeper.stdin is None or keeper.poll() is not None:
            return
        try:
            keeper.stdin.write(b"k")
            keeper.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended by itself
        keeper.wait()
        self._close()

    def _end(self) -> None:
        keeper = self._keeper
        if keeper is not None and keeper.stdin is not None:
            keeper.stdin.close()
            try:
                keeper.wait(self._stop_timeout_s + STOP_MARGIN_S)
            except subprocess.TimeoutExpired:
                keeper.kill()  # the kernel takes the server along
                keeper.wait()
        self._close()

    def _close(self) -> None:
        """Forget a keeper that has ended and give up the folder."""
        had_folder = self._keeper is not None or self._lock_fd is not None
        if self._keeper is not None:
            self._keeper.wait()
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
        self._keeper = None
        self._server_pid = None
        if had_folder:
            self._folder.disown()
        self._release_lock_fd()

    def _release_lock_fd(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _read_report(keeper: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the keeper says once the server is forked: ``pid`` or ``error``."""
    if keeper.stdout is None:
        raise ValueError("a keeper reports through a pipe")
    with keeper.stdout as reports:
        report: dict[str, Any] = json.loads(reports.readline() or b'{"error": "its keeper ended"}')
    return report


def run_tool(
    command: Sequence[str],
    *,
    title: str,
    cwd: Path,
    environment: Mapping[str, str],
    lock_fd: int,
    stdin: str = "",
    uid: int | None = None,
    gid: int | None = None,
) -> None:
    """Run a program that prepares a folder; it holds the folder's lock while it runs.

    Raises:
        EmbeddedError: It failed or took more than ``PREPARE_LIMIT_S``; the message repeats the end of its output.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            list(command),
            cwd=cwd,
            env=dict(environment),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=PREPARE_LIMIT_S,
            check=False,
            pass_fds=[lock_fd],
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(
            f"{title} took more than {PREPARE_LIMIT_S:.0f} s", todo="start again when the machine is less busy"
        ) from error
    except OSError as error:
        raise EmbeddedError(
            f"cannot run {title}: {error}", todo="install the extra again: serverchange[embedded]"
        ) from error
    if done.returncode != 0:
        raise EmbeddedError(
            f"{title} failed with exit code {done.returncode} in {cwd}",
            todo="read the reason below",
            log_tail=done.stdout.splitlines()[-20:],
        )
