"""Connections to PostgreSQL: one for a worker that owns its transaction, a pool for those who answer requests.

Every session has bounded waits: a paused owner of a row lock can neither block nor kill its successor, because a
session idle in a transaction ends (5 s) before a waiter gives up (`lock_timeout`, 8 s).
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from serverchange.adapters.settings import PostgresSettings

LOCK_TIMEOUT_S: Final = 8
IDLE_IN_TRANSACTION_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_S: Final = 60

AsyncConnection = psycopg.AsyncConnection[TupleRow]


def _options(settings: PostgresSettings, application: str, statement_timeout_s: float) -> dict[str, Any]:
    return {
        "application_name": application[:63],
        "connect_timeout": settings.connect_timeout_s,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "options": (
            f"-c lock_timeout={LOCK_TIMEOUT_S}s"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_S}s"
            f" -c statement_timeout={round(statement_timeout_s * 1000)}"
            " -c timezone=UTC"
        ),
    }


async def connect(
    settings: PostgresSettings, *, application: str, statement_timeout_s: float = STATEMENT_TIMEOUT_S
) -> AsyncConnection:
    """Return one connection, autocommit on: the caller shows each transaction with `connection.transaction()`.

    Raises:
        psycopg.OperationalError: no server, or it refused.
    """
    return await psycopg.AsyncConnection.connect(
        settings.dsn.get_secret_value(),
        autocommit=True,
        **_options(settings, application, statement_timeout_s),
    )


def connect_blocking(
    settings: PostgresSettings, *, application: str, statement_timeout_s: float = STATEMENT_TIMEOUT_S
) -> psycopg.Connection[TupleRow]:
    """Return one blocking connection, autocommit on, for threads and command-line tools."""
    return psycopg.connect(
        settings.dsn.get_secret_value(),
        autocommit=True,
        **_options(settings, application, statement_timeout_s),
    )


def make_pool(
    settings: PostgresSettings, *, application: str, statement_timeout_s: float = 10.0, checked: bool = True
) -> AsyncConnectionPool[AsyncConnection]:
    """Return a pool that is not open yet; enter it with `async with`.

    A request waits `pool_timeout_s` for a connection (`psycopg_pool.PoolTimeout`); connections are checked before
    they are handed out, so that an outage leaves no dead ones behind. `checked=False` saves that round trip, for a
    caller that tries again where a connection turns out to be dead.
    """
    return AsyncConnectionPool(
        settings.dsn.get_secret_value(),
        kwargs={"autocommit": True, **_options(settings, application, statement_timeout_s)},
        min_size=1,
        max_size=settings.pool_max,
        timeout=settings.pool_timeout_s,
        reconnect_timeout=5.0,
        check=AsyncConnectionPool.check_connection if checked else None,
        open=False,
    )
