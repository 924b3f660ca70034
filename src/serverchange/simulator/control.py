"""The control interface: drives the simulator over HTTP and hands out its ledger.

The routes are listed in `docs/simulator.md`. Whoever reaches this port owns the platform, so it is bound to loopback
unless a setting says otherwise.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from serverchange.simulator import orders
from serverchange.simulator.faults import Faults
from serverchange.simulator.http_server import HttpRequest, HttpResponse, json_response
from serverchange.simulator.ledger import Entry, EntryKind, SentLine
from serverchange.simulator.platform_api import story_time
from serverchange.simulator.world import OrderRefusedError

if TYPE_CHECKING:
    from serverchange.simulator.link import Link
    from serverchange.simulator.simulator import Simulator

WAIT_MAX_S: Final = 600.0
"""Longest time that `GET /control/wait` holds a request."""

ROWS_A_PIECE: Final = 2_000
"""Rows of NDJSON written at once; between pieces everything else goes on."""

MINUTE_S: Final = 60.0

_Order = TypeVar("_Order", bound=BaseModel)

_Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]


class BadRequestError(ValueError):
    """A request that makes no sense; the message goes back to the asker."""


class Control:
    """Answers the control interface of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        """Serve `simulator`."""
        self._simulator = simulator
        self._waves: set[asyncio.Task[None]] = set()
        self._truth: tuple[int, bytes] | None = None
        self._routes: dict[tuple[str, str], _Handler] = {
            ("GET", "addresses"): self._get_addresses,
            ("GET", "status"): self._get_status,
            ("GET", "truth"): self._get_truth,
            ("GET", "channels"): self._get_channels,
            ("GET", "links"): self._get_links,
            ("GET", "ledger"): self._get_ledger,
            ("GET", "lines"): self._get_lines,
            ("GET", "wait"): self._get_wait,
            ("GET", "faults"): self._get_faults,
            ("PUT", "faults"): self._put_faults,
            ("DELETE", "faults"): self._delete_faults,
            ("POST", "script"): self._post_script,
            ("POST", "time"): self._post_time,
            ("POST", "move"): self._post_move,
            ("POST", "live"): self._post_live,
            ("POST", "suspend"): self._post_suspend,
            ("POST", "chat"): self._post_chat,
            ("POST", "chat-rate"): self._post_chat_rate,
            ("POST", "clearchat"): self._post_clearchat,
            ("POST", "raw"): self._post_raw,
            ("POST", "reconnect"): self._post_reconnect,
            ("POST", "drop"): self._post_drop,
            ("POST", "servers"): self._post_servers,
            ("POST", "api-lag"): self._post_api_lag,
        }

    @property
    def routes(self) -> Collection[tuple[str, str]]:
        """The method of each route, and what stands after `/control/`."""
        return self._routes.keys()

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the answer to one request."""
        handler = self._routes.get((request.method, request.path.removeprefix("/control/")))
        if handler is None or not request.path.startswith("/control/"):
            return json_response({"error": f"there is no {request.method} {request.path}; see docs/simulator.md"}, 404)
        try:
            return await handler(request)
        except OrderRefusedError as error:
            return json_response({"error": str(error)}, 409)
        except ValidationError as error:
            return json_response({"error": "; ".join(_faults_of(error))}, 400)
        except ValueError as error:
            return json_response({"error": str(error)}, 400)

    def stop(self) -> None:
        """Forget the waves of RECONNECT that are still to come."""
        for task in self._waves:
            task.cancel()

    # What is.

    async def _get_addresses(self, _: HttpRequest) -> HttpResponse:
        return json_response(self._simulator.addresses.model_dump(mode="json"))

    async def _get_status(self, _: HttpRequest) -> HttpResponse:
        simulator = self._simulator
        world, script, now_s = simulator.world, simulator.world.script, simulator.clock.now_s()
        return json_response(
            {
                "at": time.monotonic(),
                "simulated_s": now_s,
                "story_time": story_time(now_s),
                "time_scale": simulator.clock.scale,
                "script": {
                    "state": script.state,
                    "step": script.step_name,
                    "waiting": script.waiting,
                },
                "moves": world.moves,
                "channels": len(world.profiles),
                "channels_by_cluster": dict(Counter(world.cluster_of.values())),
                "live": len(world.live),
                "links": len(simulator.network.links),
                "lines_sent": len(simulator.ledger.lines),
                "lines_per_second": simulator.lines_per_second,
                "entries": len(simulator.ledger.entries),
                "violations": dict(simulator.ledger.violations),
                "api_requests": simulator.api.requests,
                "wrong_cluster": simulator.settings.wrong_cluster,
            }
        )

    async def _get_truth(self, _: HttpRequest) -> HttpResponse:
        """The map is written anew only after a move."""
        world = self._simulator.world
        if self._truth is None or self._truth[0] != world.moves:
            self._truth = (world.moves, json.dumps(world.cluster_of, separators=(",", ":")).encode())
        at = time.monotonic()
        head = {"at": at, "wall": self._simulator.ledger.wall_s(at), "moves": world.moves}
        return HttpResponse(body=json.dumps(head)[:-1].encode() + b', "channels": ' + self._truth[1] + b"}")

    async def _get_channels(self, _: HttpRequest) -> HttpResponse:
        world, lines = self._simulator.world, self._simulator.ledger.lines
        return json_response(
            {
                profile.name: {
                    "room_id": profile.room_id,
                    "kind": profile.kind,
                    "labels": profile.labels,
                    "cohort": profile.cohort,
                    "home": profile.home,
                    "cluster": world.cluster_of[profile.name],
                    "live": profile.name in world.live,
                    "weight": profile.weight,
                    "lines": lines.last_number(profile.name),
                }
                for profile in world.profiles.values()
            }
        )

    async def _get_links(self, _: HttpRequest) -> HttpResponse:
        return json_response(
            [
                {
                    "link": link.number,
                    "cluster": link.cluster,
                    "transport": link.carrier.transport_name,
                    "login": link.account,
                    "joined": sorted(link.joined),
                    "doomed": link.doomed,
                }
                for link in self._simulator.network.links.values()
            ]
        )

    # What happened.

    async def _get_ledger(self, request: HttpRequest) -> HttpResponse:
        kinds = {EntryKind(kind) for kind in request.query.get("kinds", "").split(",") if kind}
        found = self._simulator.ledger.find(kinds, since=_whole(request, "since", 0))
        return _ndjson(map(self._entry_row, found))

    async def _get_lines(self, request: HttpRequest) -> HttpResponse:
        with_links = request.query.get("links", "0") == "1"
        lines = self._simulator.ledger.lines
        found = lines.since(_whole(request, "since", 0), len(lines))
        return _ndjson(self._line_row(line, with_links=with_links) for line in found)

    async def _get_wait(self, request: HttpRequest) -> HttpResponse:
        query = request.query
        fields: dict[str, object] = {
            name: query[name] for name in ("channel", "cluster", "previous", "account", "detail") if name in query
        }
        if "link" in query:
            fields["link"] = _whole(request, "link", 0)
        timeout_s = min(float(query.get("timeout_s", "10")), WAIT_MAX_S)
        kind, since = EntryKind(query.get("kind", "")), _whole(request, "since", 0)
        try:
            entry = await self._simulator.ledger.wait_for(kind, since=since, timeout_s=timeout_s, **fields)
        except TimeoutError as error:
            return json_response({"error": str(error)}, 408)
        return json_response(self._entry_row(entry))

    def _entry_row(self, entry: Entry) -> dict[str, Any]:
        row = {name: value for name in _ENTRY_FIELDS if (value := getattr(entry, name)) is not None}
        row["wall"] = self._simulator.ledger.wall_s(entry.at)
        return row

    def _line_row(self, line: SentLine, *, with_links: bool) -> dict[str, Any]:
        row: dict[str, Any] = {
            "channel": line.channel,
            "number": line.number,
            "at": line.at,
            "wall": self._simulator.ledger.wall_s(line.at),
            "cluster": line.cluster,
        }
        if with_links:
            row["links"] = line.links
        return row

    # What shall be.

    async def _post_script(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.ScriptOrder)
        if order.action == "start":
            self._simulator.start_script()
        else:
            self._simulator.pause_script()
        return await self._get_status(request)

    async def _post_time(self, request: HttpRequest) -> HttpResponse:
        self._simulator.set_time_scale(_order(request, orders.TimeOrder).scale)
        return await self._get_status(request)

    async def _post_move(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.MoveOrder)
        if order.channel is None:
            moved = self._simulator.move_all(order.cluster, force=order.force)
            return json_response({"cluster": order.cluster, "moved": moved})
        move = self._simulator.move(order.channel, order.cluster, force=order.force)
        return json_response({"channel": move.channel, "previous": move.previous, "cluster": move.cluster})

    async def _post_live(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.LiveOrder)
        self._simulator.set_live(order.channel, order.live)
        return json_response({"channel": order.channel, "live": order.live})

    async def _post_suspend(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.SuspendOrder)
        self._simulator.world.set_suspended(order.channel, order.suspended)
        return json_response({"channel": order.channel, "suspended": order.suspended})

    async def _post_chat(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.ChatOrder)
        return json_response({"numbers": self._simulator.say(order.channel, order.count, order.text)})

    async def _post_chat_rate(self, request: HttpRequest) -> HttpResponse:
        self._simulator.lines_per_second = _order(request, orders.ChatRateOrder).lines_per_second
        return await self._get_status(request)

    async def _post_clearchat(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.ClearChatOrder)
        if order.channel not in self._simulator.world.profiles:
            raise BadRequestError(f"there is no channel {order.channel!r}")
        self._simulator.network.send_clearchat(order.channel, order.user)
        return json_response({})

    async def _post_raw(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.RawOrder)
        data = (
            base64.b64decode(order.line_base64) if order.line is None else order.line.encode("utf-8", "surrogatepass")
        )
        links = self._chosen(order)
        if order.channel is not None:
            links = [link for link in links if order.channel in link.joined]
        for link in links:
            link.dialogue.send_raw(data if data.endswith(b"\n") else data + b"\r\n")
            link.wake()
        return json_response({"links": [link.number for link in links]})

    async def _post_reconnect(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.ReconnectOrder)
        links = self._chosen(order)
        links = links[: round(len(links) * order.share)]
        size = max(1, -(-len(links) // order.waves))
        waves = [links[start : start + size] for start in range(0, len(links), size)]
        task = asyncio.create_task(self._send_waves(waves, order))
        self._waves.add(task)
        task.add_done_callback(self._waves.discard)
        return json_response({"links": [link.number for link in links]})

    async def _send_waves(self, waves: list[list[Link]], order: orders.ReconnectOrder) -> None:
        for index, wave in enumerate(waves):
            if index:
                await asyncio.sleep(order.wave_interval_s)
            self._simulator.reconnect(wave, order.close_after_s)

    async def _post_drop(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.DropOrder)
        links = self._chosen(order)
        self._simulator.drop(links, abort=order.abort)
        return json_response({"links": [link.number for link in links]})

    async def _post_servers(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.ServersOrder)
        await self._simulator.change_servers(order.cluster, renew=order.renew, dead=order.dead, shut=order.shut)
        return await self._get_addresses(request)

    async def _post_api_lag(self, request: HttpRequest) -> HttpResponse:
        order = _order(request, orders.ApiLagOrder)
        self._simulator.view.mean_s = order.mean_minutes * MINUTE_S
        self._simulator.view.max_s = order.max_minutes * MINUTE_S
        return json_response({})

    async def _get_faults(self, _: HttpRequest) -> HttpResponse:
        return json_response(self._simulator.faults.faults.model_dump(mode="json"))

    async def _put_faults(self, request: HttpRequest) -> HttpResponse:
        self._simulator.set_faults(_order(request, Faults))
        return await self._get_faults(request)

    async def _delete_faults(self, request: HttpRequest) -> HttpResponse:
        self._simulator.set_faults(Faults())
        return await self._get_faults(request)

    def _chosen(self, order: orders.LinksOrder) -> list[Link]:
        return self._simulator.links(link=order.link, cluster=order.cluster, account=order.account)


_ENTRY_FIELDS: Final = ("sequence", "at", "kind", "channel", "cluster", "previous", "link", "account", "detail")


def _order(request: HttpRequest, model: type[_Order]) -> _Order:
    return model.model_validate_json(request.body or b"{}")


def _whole(request: HttpRequest, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isdecimal():
        raise BadRequestError(f"{name} must be a whole number, not {text!r}")
    return int(text)


def _faults_of(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        yield f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}"


def _ndjson(rows: Iterator[dict[str, Any]]) -> HttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        while batch := list(itertools.islice(rows, ROWS_A_PIECE)):
            yield "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in batch).encode()
            await asyncio.sleep(0)

    return HttpResponse(body=pieces(), content_type="application/x-ndjson")
