# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""Starts processes, starts those that end again, and leaves none behind.

It decides when a process is started again (back-off, bounded) and when it is given up; it knows nothing of what they
do. Each child is this very command (`python -m serverchange.cli NAME`) with settings in its environment, in a session
of its own (a Ctrl-C at the terminal reaches the supervisor alone, which then stops all in order), with its output in
`NAME.log`. The other half, a child that outlives us, is `supervised.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from serverchange.cli.faults import UnavailableFault
from serverchange.cli.supervised import SUPERVISOR_FD_VARIABLE

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
"""Doubled from half a second: a broker that restarts is back within 5 s, a wrong password is tried twice a minute."""

HEALTHY_AFTER_S: Final = 60.0
"""A process that ran so long starts its back-off anew."""

RESTARTS_MAX: Final = 30
"""Ends in a row, none after `HEALTHY_AFTER_S`, after which a process is given up: about a quarter of an hour."""

HOPELESS_CODES: Final = frozenset({2, 78})
"""`ExitCode.USAGE` and `ExitCode.SETTINGS`: the same start gives the same end."""

STOP_TIMEOUT_S: Final = 8.0
"""SIGTERM at once, a second one (which ends at once) half way, SIGKILL at the end."""

READY_POLL_S: Final = 0.1
LOG_BYTES_MAX: Final = 16 * 2**20
"""A longer log is set aside, one generation."""

LOG_CHECK_S: Final = 30.0
LOG_TAIL_BYTES: Final = 4_096


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep.

    Attributes:
        name: also the name of its log.
        arguments: of the command `serverchange`.
        environment: its whole environment.
        ready_url: answers 200 once it can work; None if it has no such route.
        command: what runs instead of `serverchange`, for tests.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    ready_url: str | None = None
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "serverchange.cli")


class Happening(StrEnum):
    """What a supervisor tells of a process."""

    STARTED = "started"
    EXITED = "exited"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Report:
    """One happening; `code` is the exit code (negative: the signal), `again_in_s` when the next start is due."""

    name: str
    happening: Happening
    pid: int | None = None
    code: int | None = None
    again_in_s: float | None = None


def backoff_s(ends_in_a_row: int) -> float:
    """Return how long to wait before the next start after so many ends in a row (at least 1)."""
    return float(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(ends_in_a_row - 1, 16)))


@dataclass(slots=True)
class _Kept:
    spec: ProcessSpec
    log: Path
    task: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    stopping: bool = False
    started: asyncio.Condition = field(default_factory=asyncio.Condition)
    given_up: str | None = None


class Supervisor:
    """Keeps processes running until `stop`. One event loop owns it; use it as an async context manager.

    Args:
        log_dir: folder of the logs, made if missing.
        tell: called with each happening, from the event loop; must not block.
    """

    def __init__(self, log_dir: Path, *, tell: Callable[[Report], None] = lambda _report: None) -> None:
        self._log_dir = log_dir
        self._tell = tell
        self._kept: dict[str, _Kept] = {}
        self._pipe = (-1, -1)
        self._rotating: asyncio.Task[None] | None = None
        self.failed: asyncio.Event = asyncio.Event()

    async def __aenter__(self) -> Supervisor:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._pipe = os.pipe()
        self._rotating = asyncio.create_task(self._rotate_logs(), name="log rotation")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._rotating is not None:
            self._rotating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._rotating
        for descriptor in self._pipe:
            os.close(descriptor)

    def start(self, spec: ProcessSpec) -> None:
        """Start a process and keep it; returns at once.

        Raises:
            ValueError: one of that name is kept already.
        """
        if spec.name in self._kept:
            raise ValueError(f"a process {spec.name} is kept already")
        kept = _Kept(spec, self._log_dir / f"{spec.name}.log")
        self._kept[spec.name] = kept
        kept.task = asyncio.create_task(self._keep(kept), name=f"keep {spec.name}")

    def pid(self, name: str) -> int | None:
        """Return the process's id, None while it is not running."""
        process = self._kept[name].process
        return None if process is None or process.returncode is not None else process.pid

    def starts(self, name: str) -> int:
        """Return how often it was started."""
        return self._kept[name].starts

    async def wait_started(self, name: str, starts: int, *, timeout_s: float) -> None:
        """Wait until a process was started so often.

        Raises:
            TimeoutError: it was not in time.
        """
        kept = self._kept[name]
        async with asyncio.timeout(timeout_s), kept.started:
            await kept.started.wait_for(lambda: kept.starts >= starts)

    def log(self, name: str) -> Path:
        """Return the path of its log."""
        return self._kept[name].log

    @property
    def names(self) -> tuple[str, ...]:
        """The processes kept, in the order of their start."""
        return tuple(self._kept)

    @property
    def failure(self) -> str | None:
        """Why a process was given up, with the end of its log; None while none was. `failed` is set then."""
        return next((kept.given_up for kept in self._kept.values() if kept.given_up), None)

    def kill(self, name: str) -> None:
        """Kill a process with -9, as tests do; it is started again like any that ends."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    async def wait_ready(self, names: Iterable[str] | None = None, *, timeout_s: float) -> None:
        """Wait until all of `names` (default: all kept) answer 200 on their `ready_url`.

        Raises:
            UnavailableFault: one was given up, or is not ready in time; names it, says why and where its log is.
        """
        import httpx  # here: the command's other users of this module do not pay for it

        waiting = dict.fromkeys(self._kept if names is None else names, "not started")
        deadline = time.monotonic() + timeout_s
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while waiting:
                for name in tuple(waiting):
                    reason = await self._why_not_ready(self._kept[name], client)
                    if reason is None:
                        del waiting[name]
                    else:
                        waiting[name] = reason
                if self.failure is not None:
                    raise UnavailableFault(self.failure)
                if waiting and time.monotonic() >= deadline:
                    raise UnavailableFault(self._explain_waiting(waiting, timeout_s))
                if waiting:
                    await asyncio.sleep(READY_POLL_S)

    async def stop(self, names: Iterable[str] | None = None) -> None:
        """Stop all of `names` (default: all) together and forget them; none is left when this returns."""
        chosen = [self._kept[name] for name in (tuple(self._kept) if names is None else names)]
        for kept in chosen:
            kept.stopping = True
        await asyncio.gather(*(self._stop_one(kept) for kept in chosen))
        for kept in chosen:
            del self._kept[kept.spec.name]

    async def _keep(self, kept: _Kept) -> None:
        ends = 0
        while not kept.stopping:
            started_at = time.monotonic()
            code = await self._run_once(kept)
            ends = 1 if time.monotonic() - started_at >= HEALTHY_AFTER_S else ends + 1
            if kept.stopping:
                return
            if code in HOPELESS_CODES or ends > RESTARTS_MAX:
                self._give_up(kept, code)
                return
            wait_s = backoff_s(ends)
            self._tell(Report(kept.spec.name, Happening.EXITED, code=code, again_in_s=wait_s))
            await asyncio.sleep(wait_s)

    async def _run_once(self, kept: _Kept) -> int:
        spec, reading = kept.spec, self._pipe[0]
        with kept.log.open("ab") as log:
            kept.process = await asyncio.create_subprocess_exec(
                *spec.command,
                *spec.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**spec.environment, SUPERVISOR_FD_VARIABLE: str(reading)},
                pass_fds=[reading],
                start_new_session=True,
            )
        async with kept.started:
            kept.starts += 1
            kept.started.notify_all()
        self._tell(Report(spec.name, Happening.STARTED, pid=kept.process.pid))
        return await kept.process.wait()

    def _give_up(self, kept: _Kept, code: int) -> None:
        kept.given_up = (
            f"{kept.spec.name} ended with code {code} and was given up after {kept.starts} starts. "
            f"The end of {kept.log}:\n{tail(kept.log)}"
        )
        self._tell(Report(kept.spec.name, Happening.GIVEN_UP, code=code))
        self.failed.set()

    async def _stop_one(self, kept: _Kept) -> None:
        process, task = kept.process, kept.task
        if task is None:
            return
        if process is None or process.returncode is not None:
            task.cancel()  # it sleeps before its next start, or has not started at all
            with contextlib.suppress(asyncio.CancelledError):
                await task
            process = kept.process
        if process is not None and process.returncode is None:
            await _end(process)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._tell(Report(kept.spec.name, Happening.STOPPED, code=process.returncode if process else None))

    async def _why_not_ready(self, kept: _Kept, client: Any) -> str | None:
        import httpx

        if kept.process is None or kept.process.returncode is not None:
            return "not running"
        if kept.spec.ready_url is None:
            return None
        try:
            answer = await client.get(kept.spec.ready_url)
        except httpx.HTTPError:
            return "does not answer yet"
        if answer.status_code == httpx.codes.OK:
            return None
        return f"waits: {answer.text[:300]}"

    def _explain_waiting(self, waiting: Mapping[str, str], timeout_s: float) -> str:
        parts = [
            f"{name} {reason} (log {self._kept[name].log}):\n{tail(self._kept[name].log)}"
            for name, reason in waiting.items()
        ]
        return f"not ready within {timeout_s:.0f} s: " + "\n".join(parts)

    async def _rotate_logs(self) -> None:
        while True:
            for kept in self._kept.values():
                rotate_log(kept.log)
            await asyncio.sleep(LOG_CHECK_S)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask twice, then kill the child's whole session, so that nothing of it is left."""
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S / 2):
                await process.wait()
                return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def rotate_log(path: Path) -> None:
    """Set a long log aside as `NAME.log.1`. Its writer appends, so the file is copied and cut, not renamed."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)


def tail(path: Path) -> str:
    """Return the last lines of a log, for a message."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", "replace").strip()
    except OSError:
        return "(no log)"
