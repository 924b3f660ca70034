"""What services and operators say: which channels are wanted, and where one is whatever the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from serverchange.events import Channel, PinnedData, TrackedData
from serverchange.state_api.channel_routes import NamePath
from serverchange.state_api.parts import Authorized, channel_named, parts_of
from serverchange.state_api.problems import ApiProblem, problems
from serverchange.state_api.writes import WRITE_NAMES_MAX
from serverchange.views import (
    POSITION_HEADER,
    PinRequest,
    TrackRequest,
    UntrackRequest,
    WriteAnswer,
    format_position,
)

router = APIRouter(tags=["writes"])

SECURITY: Final[dict[str, Any]] = {"security": [{"token": []}]}

_ACCEPTED: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "headers": {
            POSITION_HEADER: {
                "description": "Demand it of a read, and the read sees this write.",
                "schema": {"type": "string"},
            }
        }
    }
}


def _accepted(position: Mapping[int, int], accepted: int) -> Response:
    text = format_position(position)
    return JSONResponse({"accepted": accepted, "position": text}, HTTPStatus.ACCEPTED, {POSITION_HEADER: text})


def _distinct(channels: Sequence[Channel]) -> list[Channel]:
    if len(channels) > WRITE_NAMES_MAX:
        raise ApiProblem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{len(channels)} names; at most {WRITE_NAMES_MAX} in one write"
        )
    return list(dict.fromkeys(channels))


@router.post(
    "/channels",
    status_code=202,
    response_model=WriteAnswer,
    responses=_ACCEPTED | problems(401, 413, 422, 503),
    openapi_extra=SECURITY,
    summary="Want channels tracked",
)
async def track(
    request: Request,
    service: Authorized,
    wanted: Annotated[TrackRequest, Body(examples=[{"channels": ["forsen", "caedrel"], "labels": ["partner"]}])],
) -> Response:
    """Append one `channel.tracked` a channel, in the name of the token."""
    channels = _distinct(wanted.channels)
    data = TrackedData(service=service, labels=wanted.labels, kind=wanted.kind, account=wanted.account)
    return _accepted(await parts_of(request).writer.track(channels, data), len(channels))


@router.delete(
    "/channels",
    status_code=202,
    response_model=WriteAnswer,
    responses=_ACCEPTED | problems(401, 413, 422, 503),
    openapi_extra=SECURITY,
    summary="No longer want channels tracked",
)
async def untrack(
    request: Request,
    service: Authorized,
    unwanted: Annotated[UntrackRequest, Body(examples=[{"channels": ["forsen"]}])],
) -> Response:
    """Append one `channel.untracked` a channel; it stays tracked while another service wants it."""
    channels = _distinct(unwanted.channels)
    return _accepted(await parts_of(request).writer.untrack(channels, service), len(channels))


@router.put(
    "/channels/{name}/pin",
    status_code=202,
    response_model=WriteAnswer,
    responses=_ACCEPTED | problems(401, 422, 503),
    openapi_extra=SECURITY,
    summary="Say where a channel is, whatever the evidence",
)
async def pin(
    request: Request,
    service: Authorized,  # noqa: ARG001  (any known token may)
    name: NamePath,
    word: Annotated[PinRequest, Body(examples=[{"cluster": "aws"}])],
) -> Response:
    """Append `channel.pinned`."""
    position = await parts_of(request).writer.pin(channel_named(name), PinnedData(cluster=word.cluster))
    return _accepted(position, 1)


@router.delete(
    "/channels/{name}/pin",
    status_code=202,
    response_model=WriteAnswer,
    responses=_ACCEPTED | problems(401, 422, 503),
    openapi_extra=SECURITY,
    summary="Take that word back",
)
async def unpin(
    request: Request,
    service: Authorized,  # noqa: ARG001  (any known token may)
    name: NamePath,
) -> Response:
    """Append `channel.unpinned`; a lookup decides."""
    return _accepted(await parts_of(request).writer.unpin(channel_named(name)), 1)
