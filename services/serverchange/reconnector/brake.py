"""Reads the brake on moves every second, and tells people what this shard does, through PostgreSQL.

With PostgreSQL away the brake stays as it was: no information neither holds nor releases.
"""

from __future__ import annotations

import asyncio
from typing import Final

import psycopg

from serverchange.adapters.link_setup import ANONYMOUS_ACCOUNT
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.fleet import ShardReport, load_brake, report_shard
from serverchange.adapters.settings import Settings
from serverchange.reconnector.shard import Shard

_log = get_logger("brake")

BRAKE_INTERVAL_S: Final = 1.0
"""How late a shard may obey the brake."""

REPORT_INTERVAL_S: Final = 5.0
STATEMENT_TIMEOUT_S: Final = 5.0


async def follow_brake(settings: Settings, shard: Shard) -> None:
    """Hold moves while the brake is pulled, and report. Run it in a task."""
    away = False
    while True:
        try:
            async with await connect(
                settings.postgres, application="reconnector brake", statement_timeout_s=STATEMENT_TIMEOUT_S
            ) as connection:
                shard.fleet.set_held(held=await load_brake(connection) is not None)
                away = False  # only now: an older schema lets us connect and has no brake
                await _follow(connection, settings, shard)
        except psycopg.Error as error:
            if not away:
                _log.warning(LogEvent.POSTGRES_LOST, reason=str(error).strip())
            away = True
        await asyncio.sleep(BRAKE_INTERVAL_S)


async def _follow(connection: AsyncConnection, settings: Settings, shard: Shard) -> None:
    loop = asyncio.get_running_loop()
    report_at = loop.time()
    while True:
        if loop.time() >= report_at:
            report_at = loop.time() + REPORT_INTERVAL_S
            await report_shard(connection, report_of(settings, shard))
        await asyncio.sleep(BRAKE_INTERVAL_S)
        shard.fleet.set_held(held=await load_brake(connection) is not None)


def report_of(settings: Settings, shard: Shard) -> ShardReport:
    """Return the shard's figures."""
    fleet = shard.fleet
    return ShardReport(
        process=settings.process.name,
        account=", ".join(account.login for account in settings.reconnector.joining_accounts),
        wanted=fleet.wanted_count + shard.unplaced_count,
        confirmed=fleet.confirmed_count,
        links=fleet.link_count,
        joins_waiting=fleet.joins_waiting,
        logins_waiting=fleet.logins_waiting,
        moves_held=fleet.moves_held,
        foreign_count=shard.foreign_count,
        waiting={account or ANONYMOUS_ACCOUNT: waiting for account, waiting in fleet.waiting_by_account().items()},
    )
