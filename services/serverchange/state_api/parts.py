"""What the routes share: built once by `app.create_app`, handed to each request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Request

from serverchange.adapters.settings import Settings
from serverchange.events import Channel, Rejected, parse_channel
from serverchange.state_api.change_feed import ChangeFeed
from serverchange.state_api.deciding_records import DecidingRecords
from serverchange.state_api.freshness import Fresh, FreshnessBoard
from serverchange.state_api.problems import ApiProblem, unprocessable
from serverchange.state_api.reads import Reader
from serverchange.state_api.tokens import Tokens
from serverchange.state_api.writes import Service, Writer
from serverchange.views import AS_OF_HEADER, BEHIND_HEADER, POSITION_HEADER, parse_position

WAIT_DEFAULT_S: Final = 2.0
WAIT_MAX_S: Final = 10.0
"""Longest that a read waits for a demanded position: below the time-outs of the usual proxies."""


@dataclass(slots=True)
class Parts:
    """One process's parts."""

    settings: Settings
    tokens: Tokens
    reader: Reader
    writer: Writer
    records: DecidingRecords
    board: FreshnessBoard
    feed: ChangeFeed


def parts_of(request: Request) -> Parts:
    """Return the parts that serve this request."""
    parts: Parts = request.app.state.parts
    return parts


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)


def freshness_headers(fresh: Fresh) -> dict[str, str]:
    """Return the freshness as headers, for answers that have no room for it."""
    headers = {}
    if fresh.as_of is not None:
        headers[AS_OF_HEADER] = fresh.as_of.astimezone(UTC).isoformat()
    if fresh.behind_records is not None:
        headers[BEHIND_HEADER] = str(fresh.behind_records)
    return headers


def freshness_members(fresh: Fresh) -> dict[str, datetime | int | None]:
    """Return the freshness as members of an answer."""
    return {"as_of": fresh.as_of, "behind_records": fresh.behind_records}


@dataclass(frozen=True, slots=True)
class Demand:
    """How new an answer must be, and how long its asker waits for that."""

    position: dict[int, int]
    wait_s: float


async def _demand(request: Request) -> Demand:
    """Read the two headers by hand: this stands before every look-up, and declared parameters cost more than SQL does.

    `async`, since FastAPI runs plain functions in a thread.
    """
    position = request.headers.get(POSITION_HEADER)
    if position is None:
        return _NO_DEMAND
    try:
        return Demand(parse_position(position), _wait_s(request.headers.get("prefer")))
    except Rejected as error:
        raise unprocessable(f"{POSITION_HEADER}: {error}") from error


_NO_DEMAND: Final = Demand({}, 0)

Demanded = Annotated[Demand, Depends(_demand)]

DEMANDS: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": POSITION_HEADER,
            "in": "header",
            "schema": {"type": "string"},
            "description": "Answer only when everything up to this position is folded; else 503 with Retry-After.",
            "example": "3@1042,7@88",
        },
        {
            "name": "Prefer",
            "in": "header",
            "schema": {"type": "string"},
            "description": "`wait=5`: seconds to wait for the position (RFC 7240), 2 by default, 10 at most.",
        },
    ]
}
"""What the document of a route with `Demanded` says of it (`openapi_extra`)."""


def _wait_s(prefer: str | None) -> float:
    """Return the seconds of `Prefer: wait=`; a preference that cannot be read is ignored, as RFC 7240 asks."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait" and value.strip().isascii() and value.strip().isdigit():
            return min(float(value.strip()[:6]), WAIT_MAX_S)
    return WAIT_DEFAULT_S


def channel_named(name: str) -> Channel:
    """Return the channel of a path or query.

    Raises:
        ApiProblem: 422: it is none.
    """
    try:
        return parse_channel(name)
    except Rejected as error:
        raise unprocessable(str(error)) from error


async def _service(request: Request) -> Service:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    service = parts_of(request).tokens.service_of(token.strip()) if scheme.lower() == "bearer" else None
    if service is None:
        raise ApiProblem(
            HTTPStatus.UNAUTHORIZED,
            "a token that this API knows is needed: Authorization: Bearer TOKEN (setting api.tokens)",
            {"www-authenticate": 'Bearer realm="serverchange"'},
        )
    return Service(service)


Authorized = Annotated[Service, Depends(_service)]
