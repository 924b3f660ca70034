"""Which servers each cluster has, and the platform's own two answers, for bots that know only those."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.state import ChannelRow, find_channel
from serverchange.events import Channel, Cluster, TrackedData
from serverchange.platform import ChatPropertiesAnswer, ServersAnswer
from serverchange.state_api.answers import NOT_MODIFIED, respond
from serverchange.state_api.channel_routes import NamePath
from serverchange.state_api.parts import Parts, channel_named, freshness_headers, now_ms, parts_of
from serverchange.state_api.problems import ApiProblem, problems, unavailable
from serverchange.views import ClustersAnswer, ClusterView

router = APIRouter()

LOOKUP_SERVICE: Final = "lookups"
"""The service that wants channels tracked because somebody asked for them (`api.track_on_lookup`)."""

UNKNOWN_RETRY_S: Final = 1


@router.get(
    "/clusters",
    response_model=ClustersAnswer,
    responses=NOT_MODIFIED | problems(503),
    tags=["clusters"],
    summary="Which servers each cluster has",
)
async def get_clusters(request: Request) -> Response:
    """Answer as the platform last named them."""
    parts = parts_of(request)
    return respond(request, {"clusters": [view for _, view in sorted(_clusters(parts).items())]}, parts.board.now)


def _clusters(parts: Parts) -> dict[Cluster, ClusterView]:
    if not parts.feed.clusters_complete:
        raise unavailable("the clusters were not read from Kafka yet; try again")
    return parts.feed.clusters


@router.get(
    "/servers",
    response_model=ServersAnswer,
    responses=problems(404, 422, 503),
    tags=["drop-in"],
    summary="As the platform's own servers list",
)
async def get_servers(request: Request, channel: Annotated[str, Query(examples=["forsen"])]) -> Response:
    """Answer in the platform's shape, for clients that ask it there; freshness is in the headers."""
    parts = parts_of(request)
    row, cluster = await _locate(parts, channel_named(channel))
    answer = ServersAnswer(
        cluster=cluster.cluster, servers=cluster.servers, websockets_servers=cluster.websocket_servers
    )
    return _in_platform_shape(parts, row, answer.model_dump(mode="json"))


@router.get(
    "/api/channels/{name}/chat_properties",
    response_model=ChatPropertiesAnswer,
    responses=problems(404, 422, 503),
    tags=["drop-in"],
    summary="As the platform's older chat properties",
)
async def get_chat_properties(request: Request, name: NamePath) -> Response:
    """Answer in the older shape; what is not known of a channel has the shape's default."""
    parts = parts_of(request)
    row, cluster = await _locate(parts, channel_named(name))
    answer = ChatPropertiesAnswer(
        room=int(row["room_id"] or 0),
        cluster=cluster.cluster,
        eventchat=cluster.cluster == "event",
        chat_servers=cluster.servers,
        web_socket_servers=cluster.websocket_servers,
    )
    return _in_platform_shape(parts, row, answer.model_dump(mode="json"))


def _in_platform_shape(parts: Parts, row: ChannelRow, members: dict[str, Any]) -> Response:
    headers = {"serverchange-status": row["status"], "serverchange-version": str(row["version"])}
    return JSONResponse(members, headers={**headers, **freshness_headers(parts.board.now)})


async def _locate(parts: Parts, channel: Channel) -> tuple[ChannelRow, ClusterView]:
    """Return what is known of a channel and its cluster's servers.

    Raises:
        ApiProblem: 404: not tracked; 503: it is, and nobody knows yet where it is or which servers that cluster has.
    """

    async def find(connection: AsyncConnection) -> ChannelRow | None:
        return await find_channel(connection, channel, now_ms())

    row = await parts.reader.read(find)
    if row is None or row["status"] == "untracked":
        if not parts.settings.api.track_on_lookup:
            raise ApiProblem(HTTPStatus.NOT_FOUND, f"{channel} is not tracked")
        await parts.writer.track([channel], TrackedData(service=LOOKUP_SERVICE))
        raise unavailable(f"{channel} is tracked from now on; ask again", retry_after_s=UNKNOWN_RETRY_S)
    view = _clusters(parts).get(row["cluster"])
    if view is None:
        raise unavailable(f"where {channel} is, or its servers, is not known yet", retry_after_s=UNKNOWN_RETRY_S)
    return row, view
