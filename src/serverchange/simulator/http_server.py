"""A small HTTP/1.1 server over h11 whose answers can go wrong on purpose: late, in drops, cut in the middle.

A framework would repair exactly what clients of a failing API have to be tried with.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h11

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest body of a request; the longest honest one is a list of faults."""

READ_BYTES: Final = 65_536

IDLE_TIMEOUT_S: Final = 120.0
"""An idle connection is closed after this time."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, read to its end.

    Attributes:
        method: upper case.
        path: percent-encoded, as it came.
        query: the last of repeated names wins.
        headers: names in lower case.
        body: at most `BODY_BYTES_MAX`.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer.

    Attributes:
        status: HTTP status.
        body: whole, or an iterator of pieces that are sent as they come (chunked).
        content_type: media type of the body.
        headers: further headers.
        cut_after_bytes: end the connection after so many bytes of the body.
    """

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = field(default=())
    cut_after_bytes: int | None = None


Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]


def json_response(content: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> HttpResponse:
    """Return `content` as JSON."""
    return HttpResponse(status, json.dumps(content, separators=(",", ":")).encode(), headers=headers)


class HttpServer:
    """Serves one handler on one port."""

    def __init__(self, handler: Handler) -> None:
        """Answer every request by `handler`; an exception of it becomes 500 and goes to the loop's handler."""
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self, host: str, port: int) -> None:
        """Listen; `url` is set then."""
        self._server = await asyncio.start_server(self._accept, host, port)
        name = self._server.sockets[0].getsockname()
        shown = f"[{name[0]}]" if ":" in name[0] else name[0]
        self.url = f"http://{shown}:{name[1]}"

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while (request := await _read_request(connection, reader)) is not None:
                response = await self._answer(request)
                if not await _write_response(connection, writer, response):
                    break
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    break
                connection.start_next_cycle()
        except (h11.RemoteProtocolError, ConnectionError, TimeoutError):
            pass  # A client that breaks off or speaks nonsense is its own affair.
        finally:
            writer.close()

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        try:
            return await self._handler(request)
        except Exception as error:  # noqa: BLE001  (one request must not end the platform)
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{request.method} {request.path} failed", "exception": error}
            )
            return json_response({"error": f"the simulator failed: {type(error).__name__}: {error}"}, 500)


async def _read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> HttpRequest | None:
    """Return the next request, or None at the end of the connection."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await asyncio.wait_for(reader.read(READ_BYTES), IDLE_TIMEOUT_S))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                raise h11.RemoteProtocolError(f"a body over {BODY_BYTES_MAX} bytes", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            target = urlsplit(head.target.decode("ascii"))
            return HttpRequest(
                method=head.method.decode("ascii"),
                path=target.path,
                query=dict(parse_qsl(target.query, keep_blank_values=True)),
                headers={name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers},
                body=bytes(body),
            )
        else:
            return None


async def _write_response(connection: h11.Connection, writer: asyncio.StreamWriter, response: HttpResponse) -> bool:
    """Send an answer; return whether the connection may go on."""
    body = response.body
    length = ("content-length", str(len(body))) if isinstance(body, bytes) else ("transfer-encoding", "chunked")
    headers = [("content-type", response.content_type), length, *response.headers]
    writer.write(connection.send(h11.Response(status_code=response.status, headers=headers)) or b"")
    pieces = _once(body[: response.cut_after_bytes]) if isinstance(body, bytes) else body
    async for piece in pieces:
        writer.write(connection.send(h11.Data(data=piece)) or b"")
        await writer.drain()
    if response.cut_after_bytes is not None:
        return False
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    return True


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
