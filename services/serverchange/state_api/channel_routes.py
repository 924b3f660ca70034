"""Where channels are: one, many, all, and the history of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.state import (
    ChannelFilter,
    ChannelRow,
    HistoryRow,
    PastRow,
    find_change_at,
    find_channel,
    find_channels,
    list_changes_of_channel,
    list_channels,
)
from serverchange.events import Channel, ChannelKind, ClusterField, LabelField
from serverchange.state_api.answers import JSON, NOT_MODIFIED, respond
from serverchange.state_api.deciding_records import RECORDS_MAX
from serverchange.state_api.parts import (
    DEMANDS,
    Demanded,
    Parts,
    channel_named,
    freshness_headers,
    freshness_members,
    now_ms,
    parts_of,
)
from serverchange.state_api.problems import ApiProblem, problems, unprocessable
from serverchange.state_api.reads import BULK_TIMEOUT_S
from serverchange.views import (
    ChannelAnswer,
    ChannelAtAnswer,
    ChannelsPage,
    ChannelStatus,
    HistoryPage,
    LookupAnswer,
    LookupRequest,
    NameField,
)

router = APIRouter(tags=["channels"])

NDJSON: Final = "application/x-ndjson"
PAGE_MAX: Final = 1_000
HISTORY_PAGE: Final = 100
PORTION: Final = 2_000
"""Names looked up, or rows exported, at once: about 20 ms of this process's time, so that others are served between."""

NamePath = Annotated[str, Path(description="A channel, with or without capitals.", examples=["forsen"])]


@router.get(
    "/channels/{name}",
    response_model=ChannelAnswer | ChannelAtAnswer,
    responses=NOT_MODIFIED | problems(404, 422, 503),
    openapi_extra=DEMANDS,
    summary="Where one channel is",
)
async def get_channel(
    request: Request,
    name: NamePath,
    demanded: Demanded,
    at: Annotated[
        datetime | None,
        Query(description="What the published changes said at that moment of the log.", examples=["2016-02-01T12:00Z"]),
    ] = None,
) -> Response:
    """Answer from the tables as they are, or, with `at`, from the changes published until then."""
    parts = parts_of(request)
    channel = channel_named(name)
    if at is not None:
        return await _channel_at(request, channel, demanded, at)
    fresh = parts.board.now

    async def find(connection: AsyncConnection) -> ChannelRow | None:
        return await find_channel(connection, channel, now_ms())

    row = await parts.reader.read_at(demanded.position, find, wait_s=demanded.wait_s)
    if row is None:
        raise _never_tracked(channel)
    return respond(request, row, fresh)


def _never_tracked(channel: Channel) -> ApiProblem:
    return ApiProblem(
        HTTPStatus.NOT_FOUND, f"{channel} was never tracked: POST /channels, or serverchange channels add {channel}"
    )


async def _channel_at(request: Request, channel: Channel, demanded: Demanded, at: datetime) -> Response:
    if at.tzinfo is None:
        raise unprocessable("query.at: say the offset from UTC, e.g. 2016-02-01T12:00Z")
    parts = parts_of(request)
    fresh = parts.board.now
    at_ms = round(at.timestamp() * 1000)

    async def find(connection: AsyncConnection) -> PastRow | None:
        return await find_change_at(connection, channel, at_ms)

    row = await parts.reader.read_at(demanded.position, find, wait_s=demanded.wait_s)
    if row is None:
        raise ApiProblem(HTTPStatus.NOT_FOUND, f"nothing was published of {channel} until then")
    return respond(
        request,
        {
            "channel": channel,
            "at": at,
            "status": ChannelStatus.UNTRACKED if row.what == "untracked" else ChannelStatus.SETTLED,
            "cluster": row.cluster,
            "previous": row.previous,
            "since": row.since,
            "version": row.version,
            "final": fresh.as_of is not None and fresh.as_of >= at,
        },
        fresh,
    )


@router.post(
    "/channels:lookup",
    response_model=LookupAnswer,
    responses=problems(413, 422, 503),
    openapi_extra=DEMANDS,
    summary="Where many channels are",
)
async def look_up(
    request: Request,
    wanted: Annotated[LookupRequest, Body(examples=[{"channels": ["forsen", "#Caedrel", "nobody"]}])],
    demanded: Demanded,
) -> Response:
    """Answer for up to 100,000 names at once, sent as it is read."""
    parts = parts_of(request)
    if len(wanted.channels) > parts.settings.api.names_max:
        raise ApiProblem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{len(wanted.channels)} names; at most {parts.settings.api.names_max} in one request",
        )
    names = list(dict.fromkeys(wanted.channels))
    first = await _find_portion(parts, names[:PORTION], demanded)
    return StreamingResponse(_look_up_rest(parts, names, first), media_type=JSON)


async def _find_portion(parts: Parts, names: list[Channel], demanded: Demanded | None) -> list[ChannelRow]:
    async def find(connection: AsyncConnection) -> list[ChannelRow]:
        return await find_channels(connection, names, now_ms())

    if demanded is None:
        return await parts.reader.read(find, timeout_s=BULK_TIMEOUT_S)
    return await parts.reader.read_at(demanded.position, find, wait_s=demanded.wait_s, timeout_s=BULK_TIMEOUT_S)


async def _look_up_rest(parts: Parts, names: list[Channel], first: list[ChannelRow]) -> AsyncIterator[bytes]:
    """Yield the answer in portions; what fails on the way cuts it off, so that no client takes it for whole."""
    fresh = parts.board.now
    rows, known = first, set[str]()
    yield b'{"channels":['
    separator = b""
    for start in range(0, len(names), PORTION):
        if start:
            rows = await _find_portion(parts, names[start : start + PORTION], None)
        known.update(row["channel"] for row in rows)
        if rows:
            yield separator + to_json(rows)[1:-1]
            separator = b","
    unknown = [name for name in names if name not in known]
    yield b'],"unknown":' + to_json(unknown) + b"," + to_json(freshness_members(fresh))[1:]


_NDJSON_TOO: Final[dict[int | str, dict[str, Any]]] = {
    200: {**NOT_MODIFIED[200], "content": {NDJSON: {"schema": {"type": "string"}}}}
}


class ChannelsQuery(BaseModel):
    """The filters and the page of a listing."""

    model_config = ConfigDict(extra="forbid")

    cluster: ClusterField | None = None
    status: ChannelStatus | None = None
    label: LabelField | None = None
    kind: ChannelKind | None = None
    verified: bool | None = None
    pinned: bool | None = None
    flapping: bool = False
    cursor: NameField | None = Field(default=None, description="From the page before.")
    limit: int = Field(100, ge=1, le=PAGE_MAX)

    def filter(self) -> ChannelFilter:
        """Return what the tables are asked for."""
        return ChannelFilter(
            self.cluster, self.status, self.label, self.kind, self.verified, self.pinned, self.flapping
        )


@router.get(
    "/channels",
    response_model=ChannelsPage,
    responses=NOT_MODIFIED | _NDJSON_TOO | problems(422, 503),
    openapi_extra=DEMANDS,
    summary="All channels, filtered, in pages or as NDJSON",
)
async def get_channels(request: Request, demanded: Demanded, asked: Annotated[ChannelsQuery, Query()]) -> Response:
    """Answer in order of name. Without `status` untracked channels are left out.

    With `Accept: application/x-ndjson` all that match are sent, one object a line, whatever `limit` says.
    """
    parts = parts_of(request)
    wanted, after, fresh = asked.filter(), asked.cursor or "", parts.board.now
    if NDJSON in request.headers.get("accept", ""):
        first = await _list_page(parts, wanted, after, PORTION, demanded)
        return StreamingResponse(_export(parts, wanted, first), media_type=NDJSON, headers=freshness_headers(fresh))
    rows = await _list_page(parts, wanted, after, asked.limit + 1, demanded)
    page = rows[: asked.limit]
    cursor = page[-1]["channel"] if len(rows) > asked.limit else None
    return respond(request, {"channels": page, "cursor": cursor}, fresh)


async def _list_page(
    parts: Parts, wanted: ChannelFilter, after: str, limit: int, demanded: Demanded | None = None
) -> list[ChannelRow]:
    async def read(connection: AsyncConnection) -> list[ChannelRow]:
        return await list_channels(connection, wanted, after=after, limit=limit, now_ms=now_ms())

    if demanded is None:
        return await parts.reader.read(read, timeout_s=BULK_TIMEOUT_S)
    return await parts.reader.read_at(demanded.position, read, wait_s=demanded.wait_s, timeout_s=BULK_TIMEOUT_S)


async def _export(parts: Parts, wanted: ChannelFilter, first: list[ChannelRow]) -> AsyncIterator[bytes]:
    rows = first
    while rows:
        yield b"".join(to_json(row) + b"\n" for row in rows)
        if len(rows) < PORTION:
            return
        rows = await _list_page(parts, wanted, rows[-1]["channel"], PORTION)


@router.get(
    "/channels/{name}/history",
    response_model=HistoryPage,
    responses=NOT_MODIFIED | problems(404, 422, 503),
    openapi_extra=DEMANDS,
    summary="The published changes of one channel, newest first",
)
async def get_history(
    request: Request,
    name: NamePath,
    demanded: Demanded,
    cursor: Annotated[
        str | None,
        Query(pattern=r"^\d{1,16}\.\d{1,9}$", description="From the page before.", examples=["12.1"]),
    ] = None,
    limit: Annotated[int | None, Query(ge=1, le=PAGE_MAX, description="100; with `evidence` 20, and at most.")] = None,
    evidence: Annotated[bool, Query(description="Also what the deciding events said, from the log.")] = False,
) -> Response:
    """Answer with every change, the ids of the events behind it, and the record of the log that decided."""
    parts = parts_of(request)
    channel = channel_named(name)
    before = _before(cursor)
    limit = limit or (RECORDS_MAX if evidence else HISTORY_PAGE)
    if evidence and limit > RECORDS_MAX:
        raise unprocessable(f"query.limit: at most {RECORDS_MAX} changes with their evidence")
    fresh = parts.board.now

    async def read(connection: AsyncConnection) -> tuple[ChannelRow | None, list[HistoryRow]]:
        row = await find_channel(connection, channel, now_ms())
        return row, await list_changes_of_channel(connection, channel, before=before, limit=limit + 1)

    row, changes = await parts.reader.read_at(demanded.position, read, wait_s=demanded.wait_s)
    if row is None:
        raise _never_tracked(channel)
    page = changes[:limit]
    last = page[-1] if len(changes) > limit else None
    words = await parts.records.fetch({(one.partition, one.offset) for one in page}) if evidence else {}
    return respond(
        request,
        {
            "channel": channel,
            **{member: row[member] for member in ("status", "version", "since", "verified_at")},
            "changes": [_history_entry(one, words.get((one.partition, one.offset))) for one in page],
            "cursor": None if last is None else f"{last.version}.{last.generation}",
        },
        fresh,
    )


def _before(cursor: str | None) -> tuple[int, int] | None:
    if cursor is None:
        return None
    version, _, generation = cursor.partition(".")
    return int(version), int(generation)


def _history_entry(row: HistoryRow, words: dict[str, object] | None) -> dict[str, Any]:
    return {
        "generation": row.generation,
        "version": row.version,
        "what": row.what,
        "previous": row.previous,
        "cluster": row.cluster,
        "since": row.since,
        "labels": row.labels,
        "evidence": row.evidence,
        "decided_by": {"partition": row.partition, "offset": row.offset, "event": words},
    }
