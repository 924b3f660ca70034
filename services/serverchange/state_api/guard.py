"""What every request passes: the limit on bodies and rate, a measurement, and gzip for long answers.

Plain ASGI, so that streams pass through unbuffered and a request costs microseconds here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serverchange.adapters import metrics
from serverchange.state_api.problems import problem_response

CLIENTS_MAX: Final = 10_000
"""Addresses whose rate is kept; the longest quiet one makes room: it has its whole burst again anyway."""

BURST_S: Final = 2.0
"""A client that was quiet may send at once what this many seconds allow."""

FREE_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})


class RequestRate:
    """A token bucket for each client address. No I/O; `per_second` 0 lets all pass."""

    def __init__(self, per_second: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second * BURST_S)
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """Take one request of `client`'s; returns 0, or the seconds after which one is allowed again."""
        if self._per_second == 0:
            return 0.0
        now_s = self._monotonic()
        tokens, at_s = self._buckets.pop(client, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at_s) * self._per_second)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now_s)
        if len(self._buckets) > CLIENTS_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_second


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, *, body_bytes_max: int, requests_per_second: float) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max
        self._rate = RequestRate(requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._body_bytes_max)
        refusal = self._refusal(scope)
        try:
            if refusal is not None:
                await exchange.drain()
                await refusal(scope, receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.measure()

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if scope["path"] in FREE_PATHS:
            return None
        client = scope.get("client")
        wait_s = self._rate.wait_s(client[0] if client else "")
        if wait_s:
            detail = "more requests a second than this API allows one address"
            headers = {"retry-after": str(max(1, round(wait_s)))}
            return problem_response(429, detail, instance=scope["path"], headers=headers)
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self._body_bytes_max:
            detail = _too_large(self._body_bytes_max)
            return problem_response(413, detail, instance=scope["path"], headers={"connection": "close"})
        return None


def _too_large(limit: int) -> str:
    return f"the body has more than {limit} bytes"


class _Exchange:
    """One request and its answer on their way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, body_bytes_max: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_bytes_max = body_bytes_max
        self._left = body_bytes_max
        self._started_s = time.perf_counter()
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                await self.drain()
                # Raised inside the framework's own reading of the body, which passes on this kind alone.
                raise HTTPException(413, _too_large(self._body_bytes_max))
        return message

    async def drain(self) -> None:
        """Read up to twice the limit, unused: a client that still writes would see a reset and never the answer."""
        left = 2 * self._body_bytes_max
        message: Message = {"more_body": True}
        while left > 0 and message.get("more_body", False):
            message = await self._receive()
            left -= len(message.get("body", b""))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    def measure(self) -> None:
        """Count the request under its route's template: never under its path, which names a channel."""
        route = getattr(self._scope.get("route"), "path", "other")
        metrics.API_REQUESTS.labels(route=route, status=str(self.status)).observe(time.perf_counter() - self._started_s)
