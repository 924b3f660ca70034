"""`StateClient` and `AsyncStateClient`: the state API, typed, with retries; they differ in how they wait alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx

from serverchange.client import calls
from serverchange.client.calls import Call, LookedUp, Session, retry_after_s
from serverchange.client.errors import UnavailableError
from serverchange.views import (
    ChannelAnswer,
    ChannelAtAnswer,
    ChannelView,
    ClustersAnswer,
    HistoryPage,
    WriteAnswer,
)

T = TypeVar("T")

TIMEOUT_S: Final = 10.0


class StateClient:
    """The state API for threads. Use as a context manager, or call `close`.

    A read sees what this client wrote before it (the position of its writes is demanded); other processes' reads do
    when given `session.position`. A request is tried up to five times while the API says to come back later or does
    not answer. On restart of your process nothing is remembered: keep `session.position` where that matters.

    Args:
        url: of the API, e.g. `http://127.0.0.1:8080`.
        token: for writes; its name is the service.
        timeout_s: for one try.

    Every method raises:
        RefusedError: the request must be changed; `ValueError` where that is plain before it is sent.
        UnavailableError: five tries failed.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s)
        self.session = Session(token)

    def __enter__(self) -> StateClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def where(self, name: str) -> ChannelAnswer:
        """Return where one channel is; `RefusedError` with status 404 where nobody ever tracked it."""
        return self._send(calls.where(name))

    def where_at(self, name: str, at: datetime) -> ChannelAtAnswer:
        """Return where one channel was, as the changes published until then say."""
        return self._send(calls.where_at(name, at))

    def look_up(self, names: Sequence[str]) -> LookedUp:
        """Return where many channels are; any number of names, sent in portions."""
        return calls.gather_look_ups([self._send(call) for call in calls.look_up(names)])

    def channels(self, **filters: Any) -> Iterator[ChannelView]:
        """Yield all channels in order of name, e.g. `channels(cluster="aws", label="partner")`."""
        cursor: str | None = None
        while True:
            page = self._send(calls.page(cursor, filters))
            yield from page.channels
            cursor = page.cursor
            if cursor is None:
                return

    def history(self, name: str, *, cursor: str | None = None, limit: int = 100, evidence: bool = False) -> HistoryPage:
        """Return the changes of one channel, newest first; with `evidence` the events that decided."""
        return self._send(calls.history(name, cursor, limit=limit, evidence=evidence))

    def clusters(self) -> ClustersAnswer:
        """Return which servers each cluster has."""
        return self._send(calls.clusters())

    def track(
        self, names: Sequence[str], *, labels: Sequence[str] = (), kind: str = "chat", account: str | None = None
    ) -> WriteAnswer:
        """Want channels tracked; said again, it replaces this service's labels."""
        return self._send(calls.track(names, labels=labels, kind=kind, account=account))

    def untrack(self, names: Sequence[str]) -> WriteAnswer:
        """No longer want channels tracked."""
        return self._send(calls.untrack(names))

    def pin(self, name: str, cluster: str) -> WriteAnswer:
        """Say where a channel is, whatever the evidence."""
        return self._send(calls.pin(name, cluster))

    def unpin(self, name: str) -> WriteAnswer:
        """Take that word back."""
        return self._send(calls.unpin(name))

    def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            outcome = self._try(call)
            wait_s = retry_after_s(tried, outcome, random.random())  # noqa: S311  (spreads load, guards nothing)
            if wait_s is None:
                return _settle(self.session, call, outcome)
            time.sleep(wait_s)

    def _try(self, call: Call[Any]) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(
                call.method, call.path, params=call.query, json=call.body, headers=self.session.headers(call)
            )
        except httpx.TransportError as error:
            return error


class AsyncStateClient:
    """The state API for asyncio: as `StateClient`, with `await` and `async with`."""

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s)
        self.session = Session(token)

    async def __aenter__(self) -> AsyncStateClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def where(self, name: str) -> ChannelAnswer:
        """As `StateClient.where`."""
        return await self._send(calls.where(name))

    async def where_at(self, name: str, at: datetime) -> ChannelAtAnswer:
        """As `StateClient.where_at`."""
        return await self._send(calls.where_at(name, at))

    async def look_up(self, names: Sequence[str]) -> LookedUp:
        """As `StateClient.look_up`."""
        return calls.gather_look_ups([await self._send(call) for call in calls.look_up(names)])

    async def channels(self, **filters: Any) -> AsyncIterator[ChannelView]:
        """As `StateClient.channels`."""
        cursor: str | None = None
        while True:
            page = await self._send(calls.page(cursor, filters))
            for view in page.channels:
                yield view
            cursor = page.cursor
            if cursor is None:
                return

    async def history(
        self, name: str, *, cursor: str | None = None, limit: int = 100, evidence: bool = False
    ) -> HistoryPage:
        """As `StateClient.history`."""
        return await self._send(calls.history(name, cursor, limit=limit, evidence=evidence))

    async def clusters(self) -> ClustersAnswer:
        """As `StateClient.clusters`."""
        return await self._send(calls.clusters())

    async def track(
        self, names: Sequence[str], *, labels: Sequence[str] = (), kind: str = "chat", account: str | None = None
    ) -> WriteAnswer:
        """As `StateClient.track`."""
        return await self._send(calls.track(names, labels=labels, kind=kind, account=account))

    async def untrack(self, names: Sequence[str]) -> WriteAnswer:
        """As `StateClient.untrack`."""
        return await self._send(calls.untrack(names))

    async def pin(self, name: str, cluster: str) -> WriteAnswer:
        """As `StateClient.pin`."""
        return await self._send(calls.pin(name, cluster))

    async def unpin(self, name: str) -> WriteAnswer:
        """As `StateClient.unpin`."""
        return await self._send(calls.unpin(name))

    async def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            tried += 1
            outcome = await self._try(call)
            wait_s = retry_after_s(tried, outcome, random.random())  # noqa: S311  (spreads load, guards nothing)
            if wait_s is None:
                return _settle(self.session, call, outcome)
            await asyncio.sleep(wait_s)

    async def _try(self, call: Call[Any]) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(
                call.method, call.path, params=call.query, json=call.body, headers=self.session.headers(call)
            )
        except httpx.TransportError as error:
            return error


def _settle(session: Session, call: Call[T], outcome: httpx.Response | httpx.TransportError) -> T:
    if isinstance(outcome, httpx.TransportError):
        raise UnavailableError(f"the state API does not answer: {type(outcome).__name__}: {outcome}") from outcome
    return session.read(call, outcome)
