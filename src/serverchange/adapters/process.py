"""The frame that every process runs in: logs, health routes, signals, bounded stop, exit codes.

A process's `main` calls `run_process` with its own coroutine. SIGTERM and SIGINT set `Process.stopping`; the
coroutine ends in its own time, and an armed thread ends the process when `stop_timeout_s` is over: a stop that
hangs must not outlive the supervisor's patience. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serverchange.adapters import metrics
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import configure_logs, get_logger
from serverchange.adapters.settings import ProcessSettings
from serverchange.adapters.tracing import configure_tracing, flush_traces

_log = get_logger("process")

HEALTH_START_TIMEOUT_S: Final = 10.0

FLUSH_TRACES_S: Final = 0.5
"""What the last traces may take of the 4.5 s that a stop may take; a collector that hangs loses them."""


class ExitCode(IntEnum):
    """Why a process ended; documented in docs/operations.md. 64, 69, 70, 75 and 78 as in BSD's sysexits."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    BUG = 70
    NO_PROGRESS = 71
    STOP_TIMED_OUT = 75
    SETTINGS = 78


@dataclass(slots=True)
class Readiness:
    """What the process still waits for; ready while nothing is missing."""

    missing: dict[str, str] = field(default_factory=dict)

    def wait_for(self, part: str, reason: str) -> None:
        """Say that `part` (kafka, postgres, assignment …) is not there, and why."""
        if self.missing.get(part) != reason:
            _log.warning(LogEvent.READINESS_CHANGED, part=part, ready=False, reason=reason)
        self.missing[part] = reason
        metrics.READY.set(0)

    def found(self, part: str) -> None:
        """Say that `part` is there."""
        if self.missing.pop(part, None) is not None:
            _log.info(LogEvent.READINESS_CHANGED, part=part, ready=True)
        metrics.READY.set(0 if self.missing else 1)

    @property
    def ready(self) -> bool:
        """Whether the process can do its work."""
        return not self.missing


@dataclass(slots=True)
class Process:
    """What `run_process` hands to a process's coroutine.

    Attributes:
        stopping: set once a stop was asked for; await it, or poll `stopping.is_set()`.
        readiness: tell it what is missing and what was found.
        health_port: where /livez, /readyz and /metrics are served.
        routes: what is served there; a process may add its own, for its operators.
    """

    service: str
    settings: ProcessSettings
    stopping: asyncio.Event
    readiness: Readiness
    health_port: int = 0
    stop_timeout_s: float = 4.5
    routes: list[BaseRoute] = field(default_factory=list)

    @property
    def health_url(self) -> str:
        """Where others reach the health port: this machine's name stands for every address of it."""
        host = self.settings.health_host
        if host in {"0.0.0.0", "::", ""}:
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.health_port}"

    def fail(self, code: ExitCode, reason: str) -> None:
        """End the process at once with `code`: position is durable, a crash is free, a limp is not."""
        _log.error(LogEvent.PROCESS_FAILED, reason=reason, code=int(code))
        _exit_now(code)


Main = Callable[[Process], Awaitable[None]]


def run_process(service: str, settings: ProcessSettings, main: Main, *, stop_timeout_s: float | None = None) -> None:
    """Run `main` until it returns or a signal stops it, and exit with an `ExitCode`.

    `stop_timeout_s` overrides the settings' for processes that drain. An exception that leaves `main` is a bug: it
    is logged with its stack and ends the process with code 70.
    """
    configure_logs(settings, service=service)
    configure_tracing(settings, service=service)
    faulthandler.enable()
    try:
        asyncio.run(_run(service, settings, main, stop_timeout_s or settings.stop_timeout_s))
    except Exception:  # noqa: BLE001  (the last resort: log the stack, say the code, end)
        _log.exception(LogEvent.PROCESS_FAILED, code=int(ExitCode.BUG))
        _exit_now(ExitCode.BUG)
    flush_traces(FLUSH_TRACES_S)
    _log.info(LogEvent.PROCESS_STOPPED)
    _exit_now(ExitCode.OK)


async def _run(service: str, settings: ProcessSettings, main: Main, stop_timeout_s: float) -> None:
    process = Process(service, settings, asyncio.Event(), Readiness(), stop_timeout_s=stop_timeout_s)
    _handle_signals(process)
    async with asyncio.TaskGroup() as tasks:
        health = _HealthServer(process)
        serving = tasks.create_task(health.serve(), name="health")
        async with asyncio.timeout(HEALTH_START_TIMEOUT_S):
            process.health_port = await health.port
        _log.info(LogEvent.PROCESS_STARTED, health_port=process.health_port, pid=os.getpid())
        try:
            await main(process)
        finally:
            health.should_exit = True
        await serving


def _handle_signals(process: Process) -> None:
    loop = asyncio.get_running_loop()

    def stop(signum: signal.Signals) -> None:
        if process.stopping.is_set():
            _exit_now(ExitCode.STOP_TIMED_OUT)
        _log.info(LogEvent.PROCESS_STOPPING, signal=signum.name)
        process.stopping.set()
        arm_exit(process.stop_timeout_s, ExitCode.STOP_TIMED_OUT)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop, signum)


def arm_exit(timeout_s: float, code: ExitCode) -> None:
    """End the process in `timeout_s` seconds, whatever hangs: a daemon timer needs no event loop."""
    timer = threading.Timer(timeout_s, _exit_now, [code])
    timer.daemon = True
    timer.start()


def _exit_now(code: ExitCode) -> None:
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(int(code))


class _HealthServer(uvicorn.Server):
    """uvicorn in our own loop: it must not take the signals, and it tells its port."""

    def __init__(self, process: Process) -> None:
        app = Starlette()
        process.routes.extend(health_routes(process.readiness))
        app.router.routes = process.routes  # the very list: what the process adds later is served, too
        config = uvicorn.Config(
            app,
            host=process.settings.health_host,
            port=process.settings.health_port,
            log_config=None,
            access_log=False,
            lifespan="off",
        )
        super().__init__(config)
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        port = self.servers[0].sockets[0].getsockname()[1]
        self.port.set_result(port)


def health_routes(readiness: Readiness) -> list[Route]:
    """Return the routes /livez, /readyz, /healthz and /metrics; the state API serves them beside its own."""

    async def livez(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        if readiness.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse(
            {"status": "waiting", "missing": dict(readiness.missing)}, status_code=503, headers={"retry-after": "5"}
        )

    async def metricz(_request: Request) -> Response:
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/healthz", readyz),
        Route("/metrics", metricz),
    ]
