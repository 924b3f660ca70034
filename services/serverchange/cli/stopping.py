"""Runs a coroutine until it ends or a signal asks to stop, so that everything it started is stopped in its `finally`s.

The first SIGINT, SIGTERM or SIGHUP cancels it; further ones change nothing: each stop is bounded by itself.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(work: Coroutine[Any, Any, int]) -> int:
    """Return the exit code of `work`, or 128 + n when signal n stopped it."""
    return asyncio.run(_run(work))


async def _run(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(work)
    heard: list[int] = []

    def stop(number: int) -> None:
        heard.append(number)
        if len(heard) == 1:
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + heard[0] if heard else 1
