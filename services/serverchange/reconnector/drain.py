"""The order to give all channels away for good: before a shard begins it waits until there is none.

So a shard that obeyed, ended and was started again by its supervisor stays idle: no member of the group, no links. The
order while a shard runs comes with the brake (`follow_brake`). With PostgreSQL away a shard does not begin: without a
budget it could join nothing, and would only take partitions from shards that read them.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import psycopg
from psycopg.errors import UndefinedTable

from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.fleet import ShardReport, is_drained, report_shard
from serverchange.adapters.process import Process
from serverchange.adapters.settings import Settings

_log = get_logger("drain")

ORDER_INTERVAL_S: Final = 1.0
"""How late an idle shard notices that the order was taken back."""

PART: Final = "drain"
"""What `/readyz` names as missing."""

REASON: Final = (
    "told to have no channels (serverchange fleet drain); serverchange fleet drain NAME --undo takes it back"
)


async def wait_undrained(settings: Settings, process: Process) -> bool:
    """Wait until this shard may have channels; false when it was told to stop before."""
    told = False
    while not process.stopping.is_set():
        order = await _look(settings, process)
        if order is False:
            process.readiness.found(PART)
            return True
        if order and not told:
            _log.warning(LogEvent.DRAIN_ORDERED, shard=settings.process.name, reason=REASON)
            told = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ORDER_INTERVAL_S):
                await process.stopping.wait()
    return False


async def _look(settings: Settings, process: Process) -> bool | None:
    """Return whether there is an order, None where PostgreSQL does not say; an idle shard reports itself meanwhile."""
    try:
        async with await connect(settings.postgres, application="reconnector drain") as connection:
            if not await is_drained(connection, settings.process.name):
                return False
            process.readiness.wait_for(PART, REASON)
            await report_shard(connection, empty_report(settings))
            return True
    except UndefinedTable:
        return False  # an older schema, which has no such orders
    except psycopg.Error as error:
        process.readiness.wait_for(PART, f"PostgreSQL does not say whether it may have channels: {str(error).strip()}")
        return None


async def report_drained(settings: Settings) -> None:
    """Tell people at once that nothing is left here; without PostgreSQL the last report grows old."""
    with contextlib.suppress(psycopg.Error):
        async with await connect(settings.postgres, application="reconnector drain") as connection:
            await report_shard(connection, empty_report(settings))


def empty_report(settings: Settings) -> ShardReport:
    """Return the figures of a shard without channels."""
    return ShardReport(settings.process.name, settings.reconnector.account_names, 0, 0, 0, 0, 0, 0, 0)
