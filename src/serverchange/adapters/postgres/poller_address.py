"""Where pollers answer an operator's questions: each tells its health port's address, the command line looks it up."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries

_SQL: Final = queries("poller_address")

TELL_INTERVAL_S: Final = 10.0
KEPT_S: Final = 60.0
"""Six times missed: the poller is gone, or cannot reach PostgreSQL."""


async def tell_address(connection: AsyncConnection, process: str, url: str, *, now: datetime | None = None) -> None:
    """Put a poller's address in the place of its earlier one, and forget those of pollers that are gone.

    Raises:
        psycopg.Error: the database is away.
    """
    async with connection.transaction():
        await connection.execute(_SQL["tell_address"], {"process": process, "url": url, "now": now})
        await connection.execute(_SQL["forget_addresses"], {"kept_s": KEPT_S, "now": now})


async def load_addresses(connection: AsyncConnection, *, now: datetime | None = None) -> dict[str, str]:
    """Return the URL of every poller that told it within `KEPT_S`, by the process's name.

    Raises:
        psycopg.Error: the database is away.
    """
    cursor = await connection.execute(_SQL["load_addresses"], {"kept_s": KEPT_S, "now": now})
    return dict(await cursor.fetchall())
