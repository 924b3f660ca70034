"""Finds an account for each channel of a shard that has several, or whose account may be in so many channels only.

A fleet with one account and no limit never asks: then nothing here needs PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import psycopg

from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.channel_accounts import assign_accounts, release_channels
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.settings import PostgresSettings
from serverchange.events import Channel

_log = get_logger("account_places")

BATCH_CHANNELS: Final = 10_000
"""Channels of one transaction, which counts the whole table: of a million rows that takes 0.1 s."""

ASK_AGAIN_S: Final = 5.0
"""Channels without an account, for want of room or of PostgreSQL, ask so often."""

PARTED_AFTER_S: Final = 5.0
"""An untracked channel still counts for so long: its PART leaves within one turn of the loop, and links may be slow."""

STATEMENT_TIMEOUT_S: Final = 10.0


class AccountPlaces:
    """Which of a shard's accounts joins a channel.

    Args:
        settings: where all shards' places are kept.
        accounts: the shard's own, by login.
        limit: channels that one account may be in; 0: any number.
        on_placed: called with a channel and its account, some time after `ask`.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        accounts: Sequence[str],
        limit: int,
        on_placed: Callable[[Channel, str], None],
    ) -> None:
        self.accounts = tuple(accounts)
        self._settings = settings
        self._limit = limit
        self._on_placed = on_placed
        self._loop = asyncio.get_running_loop()
        self._asking: dict[Channel, str | None] = {}
        self._full: set[Channel] = set()
        self._gone: set[Channel] = set()
        self._parting: dict[Channel, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    @property
    def only(self) -> str | None:
        """The account that joins whatever asks for none; None where it has to be found."""
        return self.accounts[0] if len(self.accounts) == 1 and not self._limit else None

    @property
    def without_room(self) -> int:
        """Channels that no account has room for."""
        return len(self._full)

    def ask(self, channel: Channel, must: str | None) -> None:
        """Find an account: `must`, or any where that is None."""
        if (parting := self._parting.pop(channel, None)) is not None:
            parting.cancel()
        self._gone.discard(channel)
        self._asking[channel] = must
        self._wake.set()

    def withdraw(self, channel: Channel) -> None:
        """The channel is another shard's, or nobody's; whoever has it may keep its account."""
        self._asking.pop(channel, None)
        self._full.discard(channel)

    def release(self, channel: Channel) -> None:
        """Nobody wants the channel any more: its place is free once it is parted."""
        self.withdraw(channel)
        if self.only is None and channel not in self._parting:
            self._parting[channel] = self._loop.call_later(PARTED_AFTER_S, self._parted, channel)

    def _parted(self, channel: Channel) -> None:
        del self._parting[channel]
        self._gone.add(channel)
        self._wake.set()

    async def run(self) -> None:
        """Find places, as channels ask. Run it in a task."""
        while True:
            await self._wake.wait()
            try:
                async with await connect(
                    self._settings, application="reconnector accounts", statement_timeout_s=STATEMENT_TIMEOUT_S
                ) as connection:
                    await self._serve(connection)
            except psycopg.Error as error:
                _log.warning(LogEvent.POSTGRES_LOST, reason=str(error).strip())
                await asyncio.sleep(ASK_AGAIN_S)

    async def _serve(self, connection: AsyncConnection) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_AGAIN_S if self._full else None):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._free(connection)
                await self._place(connection)
            except psycopg.Error:
                self._wake.set()
                raise

    async def _free(self, connection: AsyncConnection) -> None:
        while gone := set(islice(self._gone, BATCH_CHANNELS)):
            await release_channels(connection, gone)
            self._gone -= gone

    async def _place(self, connection: AsyncConnection) -> None:
        left = dict(self._asking)
        while left:
            batch = {channel: left.pop(channel) for channel in tuple(islice(left, BATCH_CHANNELS))}
            shares = await assign_accounts(connection, batch, accounts=self.accounts, limit=self._limit)
            for channel, must in batch.items():
                self._answer(channel, must, shares.get(channel))

    def _answer(self, channel: Channel, must: str | None, account: str | None) -> None:
        if channel not in self._asking or self._asking[channel] != must:
            return  # it asks for something else by now, or for nothing
        if account is not None:
            del self._asking[channel]
            self._full.discard(channel)
            self._on_placed(channel, account)
            return
        if not self._full:
            reason = f"{must or 'every account'} is in {self._limit} channels: add accounts, or untrack channels"
            _log.error(LogEvent.ACCOUNTS_FULL, channel=channel, reason=reason)
        self._full.add(channel)
