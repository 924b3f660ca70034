"""How fresh the tables are: learned once for all requests, twice a second, never by a request itself.

`as_of` is a lower bound: the last moment, by this process's clock or the materializer's, when the tables were seen at
the log's end. Rows read after that are at least as new. `behind_records` is what was missing when last asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.state import Progress, load_progress
from serverchange.adapters.process import Readiness
from serverchange.state_api.log_watch import LogEnds
from serverchange.state_api.problems import ApiProblem

_LoadProgress = Callable[[AsyncConnection], Awaitable[Progress]]

INTERVAL_S: Final = 0.5

ENDS_TRUSTED_S: Final = 3.0
"""Older answers from Kafka say nothing of now; the question itself gives up after two seconds."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """What every answer says of its age: see `views.Freshness`."""

    as_of: datetime | None = None
    behind_records: int | None = None


def next_fresh(before: Fresh, progress: Progress, ends: LogEnds | None) -> Fresh:
    """Return what is known now; the progress was read after the ends were asked for."""
    moments = [moment for moment in (before.as_of, progress.caught_up_at) if moment is not None]
    if ends is None:
        return Fresh(max(moments, default=None), None)
    behind = sum(max(0, end - progress.positions.get(partition, 0)) for partition, end in ends.events.items())
    if behind == 0:
        moments.append(ends.asked_at)
    return Fresh(max(moments, default=None), behind)


class FreshnessBoard:
    """The newest `Fresh`, kept by a task.

    Attributes:
        ends: what the log watch was told last; None while Kafka does not answer.
        last_ends: the newest answer, however old.
    """

    def __init__(self, readiness: Readiness) -> None:
        self.now = Fresh()
        self.ends: LogEnds | None = None
        self.last_ends: LogEnds | None = None
        self._readiness = readiness
        self._told = asyncio.Event()

    def note_ends(self, ends: LogEnds | None) -> None:
        """Take the log watch's answer."""
        self.ends = ends
        self.last_ends = ends or self.last_ends
        self._told.set()

    def trusted_ends(self) -> LogEnds | None:
        """Return the newest answer from Kafka unless it is too old to say anything of now."""
        if self.ends is None or time.monotonic() - self.ends.asked_at_s > ENDS_TRUSTED_S:
            return None
        return self.ends

    async def ends_asked_after(self, moment_s: float, timeout_s: float) -> LogEnds | None:
        """Return an answer to a question put after `moment_s` (monotonic clock); None: there was none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.ends is None or self.ends.asked_at_s <= moment_s:
                    self._told.clear()
                    await self._told.wait()
                return self.ends
        except TimeoutError:
            return None

    async def run(self, read: Callable[[_LoadProgress], Awaitable[Progress]]) -> None:
        """Keep `now` and the readiness for Postgres up to date, for ever."""
        while True:
            ends = self.trusted_ends()
            try:
                progress = await read(load_progress)
            except (psycopg.Error, ApiProblem) as error:
                self._readiness.wait_for("postgres", str(error).splitlines()[0][:200])
                self.now = Fresh(self.now.as_of, None)
            else:
                self._readiness.found("postgres")
                self.now = next_fresh(self.now, progress, ends)
            await asyncio.sleep(INTERVAL_S)
