"""Runs the state API as a process: uvicorn in our own frame, streams ended before the sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

import uvicorn

from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.process import Process, run_process
from serverchange.adapters.settings import Settings
from serverchange.state_api.app import create_app

_log = get_logger("state_api")

STOP_REQUESTS_S: Final = 2
"""What requests under way have when the process stops, of the 4.5 s in all."""


def main(settings: Settings) -> None:
    """Serve until a signal stops the process."""

    async def serve(process: Process) -> None:
        app = create_app(settings, readiness=process.readiness)
        server = _Server(
            uvicorn.Config(
                app,
                host=settings.api.host,
                port=settings.api.port,
                log_config=None,
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=STOP_REQUESTS_S,
            )
        )
        serving = asyncio.create_task(server.serve(), name="api")
        stopping = asyncio.create_task(process.stopping.wait(), name="stopping")
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            app.state.parts.feed.stop()
            server.should_exit = True
        stopping.cancel()
        await serving

    run_process("state-api", settings.process, serve)


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals to the process's frame and tells its port."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        _log.info(LogEvent.API_SERVED, host=host, port=port)
