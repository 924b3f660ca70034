"""Structured logs: structlog, JSON lines unless the output is a terminal, on standard error.

Messages are `LogEvent` names; the standard library's logging (Kafka clients, Faust, uvicorn) goes through the same
renderer. Secrets never reach a log: they are `SecretStr` until the very call that sends them.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from serverchange.adapters.settings import ProcessSettings

Logger = structlog.stdlib.BoundLogger

_NOISY = ("kafka", "aiokafka", "faust", "mode", "httpx", "httpcore", "uvicorn.access", "asyncio")


def configure_logs(settings: ProcessSettings, *, service: str) -> None:
    """Set the whole process's logging up; call once, first thing in `main`."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_process(service, settings.name),
    ]
    renderer: structlog.typing.Processor
    if console:
        renderer = structlog.dev.ConsoleRenderer()
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def get_logger(name: str) -> Logger:
    """Return the logger of a module; `name` is the module's noun, e.g. `poller`."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger


def _with_process(service: str, process: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        event["process"] = process
        return event

    return add
