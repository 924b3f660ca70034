"""The platform's lookups: servers, chat_properties, streams, token validation, with the real ones' lag and faults.

Shapes are those of `serverchange.platform`; routes and traps come from the platform's forum, thread 4877. A lookup of
an unknown channel is 404.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from serverchange.events import Channel, Cluster
from serverchange.simulator.faults import ApiFault, ApiFaultKind, FaultPlan
from serverchange.simulator.http_server import HttpRequest, HttpResponse, json_response
from serverchange.simulator.listeners import Listeners
from serverchange.simulator.migration import EVENT
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.world import LaggingView, World

STREAMS_NAMES_MAX: Final = 100
"""Names in one `streams` request; further ones are ignored."""

STORY_BEGINS: Final = datetime(2016, 2, 12, tzinfo=UTC)
"""Simulated second 0: a Friday."""

DRIP_PIECES_MAX: Final = 200

BOMB_BYTES: Final = 64 * 1024 * 1024

_HTML: Final = b"<!DOCTYPE html><html><head><title>We'll be right back</title></head><body>503</body></html>"


class PlatformApi:
    """Answers the platform's API."""

    def __init__(
        self,
        settings: SimulatorSettings,
        world: World,
        view: LaggingView,
        listeners: Listeners,
        faults: FaultPlan,
        *,
        now_s: Callable[[], float],
    ) -> None:
        """Wire the API.

        Args:
            settings: accounts, replicas, which ports to name.
            world: where channels live, who streams.
            view: what each replica shows of it.
            listeners: the clusters' servers.
            faults: asked at each request.
            now_s: simulated seconds.
        """
        self._world = world
        self._view = view
        self._listeners = listeners
        self._faults = faults
        self._now_s = now_s
        self._replicas = settings.api_replicas
        self._transport_name = settings.api_servers_transport
        self._logins = {account.token.get_secret_value(): account.login for account in settings.accounts}
        self._chance = random.Random(f"{settings.seed}/replica")  # noqa: S311  (which replica answers)
        self.requests: dict[str, int] = {"servers": 0, "chat_properties": 0, "streams": 0, "validate": 0}

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the answer to one request, after whatever fault strikes it."""
        route, channel = _route(request)
        if route is None:
            return json_response({"error": "Not Found", "status": 404}, 404)
        self.requests[route] += 1
        fault = self._faults.api(route, channel)
        if fault is not None and fault.kind in _INSTEAD:
            return _INSTEAD[fault.kind](fault)
        response = self._true_answer(route, channel, request)
        return response if fault is None else await _spoil(response, fault)

    def _true_answer(self, route: str, channel: str | None, request: HttpRequest) -> HttpResponse:
        if route == "streams":
            return self._streams(request.query.get("channel", "").split(",")[:STREAMS_NAMES_MAX])
        if route == "validate":
            return self._validate(request.headers.get("authorization", ""))
        profile = self._world.profiles.get(Channel(channel or ""))
        if profile is None:
            return json_response({"error": "Not Found", "message": "channel not found", "status": 404}, 404)
        cluster = self._shown_cluster(profile.name)
        servers = self._listeners.listed(cluster, self._transport_name)
        websockets = self._listeners.listed(cluster, "ws")
        if route == "servers":
            return json_response({"cluster": cluster, "servers": servers, "websockets_servers": websockets})
        return json_response(
            {
                "_id": int(profile.room_id),
                "hide_chat_links": False,
                "devchat": False,
                "game": "Simulation",
                "subsonly": False,
                "cluster": cluster,
                "eventchat": cluster == EVENT,
                "chat_servers": servers,
                "web_socket_servers": websockets,
            }
        )

    def _shown_cluster(self, channel: Channel) -> Cluster:
        replica = self._chance.randrange(self._replicas)
        return self._view.cluster(channel, self._world.cluster_of[channel], replica, self._now_s())

    def _streams(self, names: Iterable[str]) -> HttpResponse:
        live = self._world.live
        streams = [
            {"channel": name, "started_at": story_time(live[Channel(name)])}
            for name in dict.fromkeys(names)
            if name in live
        ]
        return json_response({"streams": streams})

    def _validate(self, authorization: str) -> HttpResponse:
        scheme, _, token = authorization.partition(" ")
        login = self._logins.get(token) if scheme in {"OAuth", "Bearer"} else None
        if login is None:
            return json_response({"status": 401, "message": "invalid access token"}, 401)
        return json_response(
            {
                "client_id": "simulated",
                "login": login,
                "scopes": ["chat:read", "chat:edit"],
                "user_id": "1",
                "expires_in": 14_400,
            }
        )


def story_time(simulated_s: float) -> str:
    """Return a simulated instant as the platform writes times."""
    return datetime.fromtimestamp(STORY_BEGINS.timestamp() + simulated_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _route(request: HttpRequest) -> tuple[str | None, str | None]:
    """Return the route's name and the channel in it."""
    parts = request.path.strip("/").split("/")
    if request.method != "GET":
        return None, None
    match parts:
        case ["servers"]:
            return "servers", request.query.get("channel", "").lower()
        case ["api", "channels", name, "chat_properties"]:
            return "chat_properties", name.lower()
        case ["streams"]:
            return "streams", None
        case ["oauth2", "validate"]:
            return "validate", None
        case _:
            return None, None


async def _spoil(response: HttpResponse, fault: ApiFault) -> HttpResponse:
    """Return the true answer, damaged."""
    body = response.body if isinstance(response.body, bytes) else b""
    match fault.kind:
        case ApiFaultKind.SLOW:
            await asyncio.sleep(fault.delay_s)
            return response
        case ApiFaultKind.DRIP:
            return replace(response, body=_drip(body, fault.delay_s))
        case ApiFaultKind.CUT:
            return replace(response, cut_after_bytes=len(body) // 2)
        case ApiFaultKind.TRUNCATED:
            return replace(response, body=body[: len(body) // 2])
        case _:
            content = json.loads(body)
            return json_response(_damage(content, fault.kind), response.status)


def _damage(content: dict[str, object], kind: ApiFaultKind) -> dict[str, object]:
    if kind is ApiFaultKind.EMPTY_LIST:
        return {name: [] if isinstance(value, list) else value for name, value in content.items()}
    if kind is ApiFaultKind.BAD_CLUSTER:
        return {**content, "cluster": "main "}
    wrong = {str: ["text"], list: "list", int: "1", bool: 1}
    return {name: wrong.get(type(value)) for name, value in content.items()}


async def _drip(body: bytes, delay_s: float) -> AsyncIterator[bytes]:
    size = max(1, len(body) // DRIP_PIECES_MAX)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    for piece in pieces:
        await asyncio.sleep(delay_s / len(pieces))
        yield piece


def _gzip_bomb(_: ApiFault) -> HttpResponse:
    packer = zlib.compressobj(level=9, wbits=31)
    zeros = bytes(1024 * 1024)
    packed = b"".join(packer.compress(zeros) for _ in range(BOMB_BYTES // len(zeros))) + packer.flush()
    return HttpResponse(200, packed, headers=(("content-encoding", "gzip"),))


_INSTEAD: Final[dict[ApiFaultKind, Callable[[ApiFault], HttpResponse]]] = {
    ApiFaultKind.NOT_FOUND: lambda _: json_response({"error": "Not Found", "status": 404}, 404),
    ApiFaultKind.TOO_MANY: lambda fault: json_response(
        {"error": "Too Many Requests", "status": 429}, 429, (("retry-after", str(fault.retry_after_s)),)
    ),
    ApiFaultKind.SERVER_ERROR: lambda _: json_response({"error": "Internal Server Error", "status": 500}, 500),
    ApiFaultKind.HTML: lambda _: HttpResponse(200, _HTML, "text/html; charset=utf-8"),
    ApiFaultKind.ERROR_BODY: lambda _: json_response({"error": "Service Unavailable", "message": "try later"}),
    ApiFaultKind.GZIP_BOMB: _gzip_bomb,
    ApiFaultKind.REDIRECT: lambda _: HttpResponse(302, headers=(("location", "http://169.254.169.254/latest/"),)),
}
"""Faults that need no true answer."""
