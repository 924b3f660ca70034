"""Answers of the platform's lookup APIs: what counts, and all that is no information."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from serverchange.adapters.platform_api import (
    RETRY_AFTER_MAX_S,
    ClusterAnswer,
    NoInformation,
    PlatformApi,
    Reason,
    parse_retry_after,
)
from serverchange.adapters.settings import PlatformSettings
from serverchange.events import Channel, LookupSource

FORSEN = Channel("forsen")
SERVERS = {"cluster": "aws", "servers": ["irc.chat.twitch.tv:6667"], "websockets_servers": ["irc-ws.chat.twitch.tv:80"]}

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


def gzipped(data: bytes) -> bytes:
    """The same bytes every time: parametrized tests must have the same names in every worker."""
    return gzip.compress(data, mtime=0)


@dataclass
class Platform:
    """A server that answers every request with the same bytes, and keeps the requests."""

    url: str
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def platform_that(write: Write) -> AsyncIterator[Platform]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            platform.requests.append(head.decode())
            await write(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    platform = Platform(f"http://127.0.0.1:{port}")
    async with server:
        yield platform


def response(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> Write:
    declared = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\ncontent-length: {declared}\r\nconnection: close\r\n{headers}\r\n".encode()

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)
        await writer.drain()

    return write


def json_response(value: object, **options: str) -> Write:
    return response(json.dumps(value).encode(), **options)  # type: ignore[arg-type]


async def ask(write: Write, **settings: object) -> ClusterAnswer | NoInformation:
    async with platform_that(write) as platform:
        options = PlatformSettings.model_validate({"api_url": platform.url, **settings})
        async with PlatformApi(options, connections_max=4) as api:
            return await api.fetch_cluster(FORSEN)


async def reason(write: Write, **settings: object) -> Reason:
    found = await ask(write, **settings)
    assert isinstance(found, NoInformation), found
    return found.reason


async def test_the_servers_route_tells_cluster_and_servers() -> None:
    async with platform_that(json_response(SERVERS)) as platform:
        async with PlatformApi(PlatformSettings(api_url=platform.url), connections_max=1) as api:
            assert await api.fetch_cluster(FORSEN) == ClusterAnswer(
                cluster="aws",
                servers=("irc.chat.twitch.tv:6667",),
                websocket_servers=("irc-ws.chat.twitch.tv:80",),
                via=LookupSource.SERVERS,
            )
        assert platform.requests[0].startswith("GET /servers?channel=forsen HTTP/1.1\r\n")


async def test_the_older_route_has_other_names() -> None:
    body = {
        "_id": 1,
        "cluster": "event",
        "eventchat": True,
        "chat_servers": ["10.1.2.3:80"],
        "web_socket_servers": ["10.1.2.4:80"],
        "hide_chat_links": False,
        "devchat": False,
        "game": "Chess",
        "subsonly": False,
    }
    async with platform_that(json_response(body)) as platform:
        settings = PlatformSettings(api_url=platform.url, lookup_via="chat_properties")
        async with PlatformApi(settings, connections_max=1) as api:
            found = await api.fetch_cluster(FORSEN)
        assert found == ClusterAnswer("event", ("10.1.2.3:80",), ("10.1.2.4:80",), LookupSource.CHAT_PROPERTIES)
        assert platform.requests[0].startswith("GET /api/channels/forsen/chat_properties HTTP/1.1\r\n")


async def test_a_streams_request_tells_who_of_those_asked_is_live() -> None:
    body = {"streams": [{"channel": "forsen"}, {"channel": "never_asked"}, {"channel": "Sodapoppin"}]}
    async with platform_that(json_response(body)) as platform:
        async with PlatformApi(PlatformSettings(api_url=platform.url), connections_max=1) as api:
            live = await api.fetch_live([FORSEN, Channel("sodapoppin"), Channel("offline")])
        assert live == {"forsen", "sodapoppin"}
        assert platform.requests[0].startswith("GET /streams?channel=forsen,sodapoppin,offline HTTP/1.1\r\n")


async def test_a_list_without_servers_still_tells_the_cluster() -> None:
    found = await ask(json_response({"cluster": "aws", "servers": []}))
    assert found == ClusterAnswer("aws", (), (), LookupSource.SERVERS)


async def test_a_gzipped_answer_counts() -> None:
    body = gzipped(json.dumps(SERVERS).encode())
    assert isinstance(await ask(response(body, headers="content-encoding: gzip\r\n")), ClusterAnswer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"0",
        b'"aws"',
        b"[[[[]]]]",
        b"[" * 100_000,
        b'{"a":' * 10_000,
        b"<html><body>Service unavailable</body></html>",
        b'{"cluster":"aws","servers":["irc.ch',
        b'{"cluster":"aws"}',
        b'{"cluster":"aws","servers":null}',
        b'{"cluster":"aws","servers":"irc.chat.twitch.tv:6667"}',
        b'{"cluster":"aws","servers":[["irc.chat.twitch.tv:6667"]]}',
        b'{"cluster":"aws","servers":["with space:80"]}',
        b'{"cluster":"aws","servers":[],"error":"Internal Server Error"}',
        b'{"cluster":"aws","servers":[],"more":' + b"1" * 5_000 + b"}",
        b'{"error":"Not Found","status":404}',
        b'{"cluster":"","servers":[]}',
        b'{"cluster":"main ","servers":[]}',
        b'{"cluster":"Main","servers":[]}',
        b'{"cluster":"ma\\u0000in","servers":[]}',
        b'{"cluster":{"name":"aws"},"servers":[]}',
        b'{"cluster":["aws"],"servers":[]}',
        b'{"cluster":7,"servers":[]}',
        b'{"cluster":null,"servers":[]}',
        b'{"cluster":"' + b"x" * 300 + b'","servers":[]}',
        b'{"cluster":"aws\xff","servers":[]}',
        b'{"cluster":"aws","servers":[' + b'"a:80",' * 64 + b'"a:80"]}',
    ],
    ids=lambda body: body[:40].decode("ascii", "replace"),
)
async def test_a_body_that_is_no_answer_is_no_information(body: bytes) -> None:
    assert await reason(response(body)) is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", Reason.NOT_FOUND),
        ("400 Bad Request", Reason.REFUSED),
        ("401 Unauthorized", Reason.UNAUTHORIZED),
        ("403 Forbidden", Reason.REFUSED),
        ("204 No Content", Reason.REFUSED),
        ("206 Partial Content", Reason.REFUSED),
        ("429 Too Many Requests", Reason.THROTTLED),
        ("500 Internal Server Error", Reason.SERVER_ERROR),
        ("503 Service Unavailable", Reason.SERVER_ERROR),
        ("301 Moved Permanently", Reason.REDIRECTED),
        ("304 Not Modified", Reason.REDIRECTED),
    ],
)
async def test_only_a_200_counts_whatever_its_body(status: str, expected: Reason) -> None:
    body = b"" if status.startswith(("204", "304")) else json.dumps(SERVERS).encode()
    assert await reason(response(body, status=status)) is expected


async def test_a_redirect_to_a_private_address_is_not_followed() -> None:
    async with platform_that(json_response(SERVERS)) as inside:
        for location in (f"{inside.url}/servers?channel=forsen", "http://[", "//", "http://a@b:99999/"):
            write = response(b"", status="302 Found", headers=f"location: {location}\r\n")
            assert await reason(write) in {Reason.REDIRECTED, Reason.UNREACHABLE}
        assert inside.requests == []


async def test_a_throttled_request_says_when_to_ask_again() -> None:
    found = await ask(json_response({}, status="429 Too Many Requests", headers="retry-after: 7\r\n"))
    assert found == NoInformation(Reason.THROTTLED, "status 429", 7.0)


@pytest.mark.parametrize(
    ("value", "date", "expected_s"),
    [
        (None, None, None),
        ("0", None, 0.0),
        (" 30 ", None, 30.0),
        ("999999999", None, RETRY_AFTER_MAX_S),
        ("-5", None, None),
        ("1.5", None, None),
        ("soon", None, None),
        ("", None, None),
        ("9" * 400, None, None),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:29:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:30 -0000", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", None, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, RETRY_AFTER_MAX_S),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, date: str | None, expected_s: float | None) -> None:
    assert parse_retry_after(value, date) == expected_s


async def test_a_body_over_the_limit_is_no_information() -> None:
    padded = json.dumps({**SERVERS, "padding": "x" * 4096}).encode()
    assert await reason(response(padded), answer_bytes_max=2048) is Reason.TOO_LONG


async def test_a_gzip_bomb_is_not_unpacked_beyond_the_limit() -> None:
    bomb = gzipped(b" " * 64_000_000 + json.dumps(SERVERS).encode())
    assert len(bomb) < 262_144
    assert await reason(response(bomb, headers="content-encoding: gzip\r\n")) is Reason.TOO_LONG


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzipped(json.dumps(SERVERS).encode())[:-9]),
        ("gzip", gzipped(json.dumps(SERVERS).encode()) + b"more"),
        ("gzip", b"not gzip at all"),
        ("gzip", b""),
        ("deflate", zlib.compress(json.dumps(SERVERS).encode())),
        ("gzip, gzip", gzipped(gzipped(json.dumps(SERVERS).encode()))),
        ("br", b"\x0b\x02\x80"),
    ],
)
async def test_a_broken_or_unwanted_encoding_is_no_information(encoding: str, body: bytes) -> None:
    assert await reason(response(body, headers=f"content-encoding: {encoding}\r\n")) is Reason.UNREADABLE


async def test_an_answer_cut_short_is_no_information() -> None:
    body = json.dumps(SERVERS).encode()
    assert await reason(response(body, length=len(body) + 1)) is Reason.UNREACHABLE


async def test_a_dripping_answer_meets_the_deadline_of_the_whole() -> None:
    gone = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    assert await reason(drip, request_timeout_s=0.3) is Reason.TOO_SLOW
    async with asyncio.timeout(10):
        await gone.wait()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 abc\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a" * 200_000]
)
async def test_what_is_no_http_is_no_information(answer: bytes) -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    assert await reason(write) is Reason.UNREACHABLE


async def test_nobody_listening_is_no_information() -> None:
    async with platform_that(json_response(SERVERS)) as platform:
        url = platform.url
    async with PlatformApi(PlatformSettings(api_url=url), connections_max=1) as api:
        found = await api.fetch_cluster(FORSEN)
    assert isinstance(found, NoInformation)
    assert found.reason is Reason.UNREACHABLE


async def test_an_answer_cannot_plant_a_cookie() -> None:
    async with platform_that(json_response(SERVERS, headers="set-cookie: a=b\r\n")) as platform:
        async with PlatformApi(PlatformSettings(api_url=platform.url), connections_max=1) as api:
            await api.fetch_cluster(FORSEN)
            await api.fetch_cluster(FORSEN)
        assert "cookie" not in platform.requests[1].lower()


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "%2e%2e%2f", "a,b", "a b", "a\r\nX: y", "a&cluster=b", "Ünal"]
)
async def test_a_name_that_is_no_channel_never_reaches_a_url(name: str) -> None:
    async with PlatformApi(PlatformSettings(api_url="http://127.0.0.1:9"), connections_max=1) as api:
        with pytest.raises(ValueError, match="no channel"):
            await api.fetch_cluster(Channel(name))
        with pytest.raises(ValueError, match="no channel"):
            await api.fetch_live([Channel(name)])


async def test_a_streams_request_carries_no_more_names_than_the_platform_takes() -> None:
    async with PlatformApi(PlatformSettings(api_url="http://127.0.0.1:9"), connections_max=1) as api:
        with pytest.raises(ValueError, match="101 names"):
            await api.fetch_live([FORSEN] * 101)
