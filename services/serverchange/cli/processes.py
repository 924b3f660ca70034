# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""The table of the services: command, module, what each does; one runner for all."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Service:
    """One service process.

    Attributes:
        command: its name on the command line, in logs and in the compose file.
        module: has `main(settings)`.
        does: its help.
        example: how to start it with a setting that matters.
    """

    command: str
    module: str
    does: str
    example: str


SERVICES: Final = (
    Service(
        "poller",
        "serverchange.poller.main",
        "Ask the platform where channels live, within the request budget; writes observations to channel-events.",
        "SERVERCHANGE_PLATFORM_REQUESTS_PER_SECOND=50 serverchange poller",
    ),
    Service(
        "irc-listener",
        "serverchange.irc_listener.main",
        "Hear SERVERCHANGE and silence on anonymous links; writes notices and doubts to channel-events.",
        "SERVERCHANGE_LISTENER_CHANNELS_PER_LINK=50 serverchange irc-listener",
    ),
    Service(
        "materializer",
        "serverchange.materializer.main",
        "Fold channel-events into PostgreSQL, exactly once; publishes decisions to cluster-changes.",
        "SERVERCHANGE_POSTGRES_DSN=postgresql://me@db/chat serverchange materializer",
    ),
    Service(
        "reconnector",
        "serverchange.reconnector.main",
        "Run a bot shard: join the channels of its partitions, and move with them, make before break.",
        "SERVERCHANGE_RECONNECTOR_ACCOUNT=my_bot serverchange reconnector",
    ),
    Service(
        "state-api",
        "serverchange.state_api.main",
        "Answer where channels are, over HTTP: one, many, all, their history, changes as they happen.",
        "SERVERCHANGE_API_PORT=8081 serverchange state-api",
    ),
)


def run_service(service: Service) -> Callable[[], None]:
    """Return the command that builds the settings once and runs the service until a signal stops it."""

    def run() -> None:
        from serverchange.adapters.settings import load_settings

        settings = load_settings()
        importlib.import_module(service.module).main(settings)

    return run


def run_simulator(arguments: list[str]) -> None:
    """Run the simulated platform; its own command line takes the arguments."""
    sys.argv = ["serverchange simulator", *arguments]
    runpy.run_module("serverchange.simulator", run_name="__main__", alter_sys=False)
