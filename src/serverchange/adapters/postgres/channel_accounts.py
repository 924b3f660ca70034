"""Which account joins which channel, shared by all processes of a fleet: `tracker.account_shares` in PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries
from serverchange.events import Channel
from serverchange.tracker.account_shares import share_out

_SQL: Final = queries("channel_accounts")


async def assign_accounts(
    connection: AsyncConnection, asking: Mapping[Channel, str | None], *, accounts: Collection[str], limit: int
) -> dict[Channel, str]:
    """Return the account of each channel that there is room for, and keep it; its own transaction.

    Args:
        connection: outside a transaction.
        asking: channel → the account that must join it, None where any will do.
        accounts: who can join.
        limit: channels of one account at most, over all processes; 0: any number.

    Raises:
        psycopg.Error: the database is away; nothing was assigned.
    """
    async with connection.transaction():
        await connection.execute(_SQL["lock_shares"])
        cursor = await connection.execute(_SQL["load_known"], {"channels": list(asking)})
        known = {Channel(channel): account for channel, account in await cursor.fetchall()}
        cursor = await connection.execute(_SQL["count_channels"])
        counts: dict[str, int] = dict(await cursor.fetchall())
        shares = share_out(asking.items(), known=known, counts=counts, accounts=accounts, limit=limit)
        new = {channel: account for channel, account in shares.items() if known.get(channel) != account}
        if new:
            await connection.execute(_SQL["keep_shares"], {"channels": list(new), "accounts": list(new.values())})
    return shares


async def release_channels(connection: AsyncConnection, channels: Collection[Channel]) -> None:
    """Make room for others: nobody joins these channels any more.

    Raises:
        psycopg.Error: the database is away; they still count.
    """
    await connection.execute(_SQL["release_channels"], {"channels": list(channels)})
