"""Reads the brake and the order to drain every second, and tells people what this shard does, through PostgreSQL.

With PostgreSQL away the brake stays as it was: no information neither holds nor releases, nor drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import psycopg

from serverchange.adapters.link_setup import ANONYMOUS_ACCOUNT
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.fleet import ShardReport, is_drained, load_brake, report_shard
from serverchange.adapters.settings import Settings
from serverchange.reconnector.shard import Shard

_log = get_logger("brake")

BRAKE_INTERVAL_S: Final = 1.0
"""How late a shard may obey the brake."""

REPORT_INTERVAL_S: Final = 5.0
STATEMENT_TIMEOUT_S: Final = 5.0


async def follow_brake(settings: Settings, shard: Shard, on_drain: Callable[[], None]) -> None:
    """Hold moves while the brake is pulled, call `on_drain` while there is the order to drain, and report.

    Run it in a task.
    """
    away = False
    while True:
        try:
            async with await connect(
                settings.postgres, application="reconnector brake", statement_timeout_s=STATEMENT_TIMEOUT_S
            ) as connection:
                await _obey(connection, settings, shard, on_drain)
                away = False  # only now: an older schema lets us connect and has no brake
                await _follow(connection, settings, shard, on_drain)
        except psycopg.Error as error:
            if not away:
                _log.warning(LogEvent.POSTGRES_LOST, reason=str(error).strip())
            away = True
        await asyncio.sleep(BRAKE_INTERVAL_S)


async def _follow(connection: AsyncConnection, settings: Settings, shard: Shard, on_drain: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    report_at = loop.time()
    while True:
        if loop.time() >= report_at:
            report_at = loop.time() + REPORT_INTERVAL_S
            await report_shard(connection, report_of(settings, shard))
        await asyncio.sleep(BRAKE_INTERVAL_S)
        await _obey(connection, settings, shard, on_drain)


async def _obey(connection: AsyncConnection, settings: Settings, shard: Shard, on_drain: Callable[[], None]) -> None:
    shard.fleet.set_held(held=await load_brake(connection) is not None)
    if await is_drained(connection, settings.process.name):
        on_drain()


def report_of(settings: Settings, shard: Shard) -> ShardReport:
    """Return the shard's figures."""
    fleet = shard.fleet
    return ShardReport(
        process=settings.process.name,
        account=settings.reconnector.account_names,
        wanted=fleet.wanted_count + shard.unplaced_count,
        confirmed=fleet.confirmed_count,
        links=fleet.link_count,
        joins_waiting=fleet.joins_waiting,
        logins_waiting=fleet.logins_waiting,
        moves_held=fleet.moves_held,
        foreign_count=shard.foreign_count,
        waiting={account or ANONYMOUS_ACCOUNT: waiting for account, waiting in fleet.waiting_by_account().items()},
    )
