"""Follows `handovers` and keeps the newest reports in memory, for the live page.

The follower's thread hands records over; everything else happens in the event loop. Where the topic does not exist, or
Kafka is away, nothing is new.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from serverchange.adapters.kafka.table_follower import TableEvent, TableFollower, TableRecord, TableRecords
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import HandoverEnded
from serverchange.topics import HANDOVERS
from serverchange.views import HandoverView

_log = get_logger("handover_feed")

KEPT_MAX: Final = 1_000
SHOWN_MAX: Final = 50
RATE_WINDOW_S: Final = 60.0
STOP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class HandoverFigures:
    """What is known of the handovers that ended of late."""

    recent: tuple[HandoverView, ...]
    last_minute: int
    confirmed_median_s: float | None


class HandoverFeed:
    """The newest reports; all but the follower's thread belongs to the event loop."""

    def __init__(self) -> None:
        self._reports: deque[HandoverEnded] = deque(maxlen=KEPT_MAX)
        self._follower: TableFollower | None = None

    def start(self, settings: KafkaSettings, *, client_id: str) -> None:
        """Start following."""
        loop = asyncio.get_running_loop()

        def deliver(event: TableEvent) -> None:
            if isinstance(event, TableRecords):
                with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                    loop.call_soon_threadsafe(self._take, event.records)

        self._follower = TableFollower(
            settings, [HANDOVERS], client_id=f"{client_id}-handovers", deliver=deliver, newest=KEPT_MAX
        )
        self._follower.start()

    async def stop(self) -> None:
        """Stop following; the thread ends by itself."""
        if self._follower is not None:
            await asyncio.to_thread(self._follower.stop, STOP_S)

    def _take(self, records: Iterable[TableRecord]) -> None:
        self.add(records)
        if self._follower is not None:
            self._follower.taken()

    def add(self, records: Iterable[TableRecord]) -> None:
        """Keep the reports among the records; what is none is logged and left out."""
        for record in records:
            try:
                self._reports.append(HandoverEnded.model_validate_json(record.value or b""))
            except ValidationError:
                _log.warning(LogEvent.RECORD_REFUSED, topic=HANDOVERS.name, offset=record.offset)

    def figures(self, now_s: float | None = None) -> HandoverFigures:
        """Return the newest, the newest first, and the figures of the last minute; `now_s` is seconds since 1970.

        Of more than `KEPT_MAX` in a minute only those count that are kept.
        """
        since_s = (time.time() if now_s is None else now_s) - RATE_WINDOW_S
        late = [report for report in self._reports if report.time.timestamp() > since_s]
        confirmed = [report.data.confirmed_s for report in late if report.data.confirmed_s is not None]
        newest = list(self._reports)[: -SHOWN_MAX - 1 : -1]
        return HandoverFigures(
            tuple(_view(report) for report in newest),
            len(late),
            round(statistics.median(confirmed), 3) if confirmed else None,
        )


def _view(report: HandoverEnded) -> HandoverView:
    data = report.data
    return HandoverView(
        channel=report.subject,
        at=report.time,
        cause=data.cause,
        outcome=data.outcome,
        source=data.source,
        target=data.target,
        shard=data.shard,
        confirmed_s=data.confirmed_s,
        ended_s=data.ended_s,
    )
