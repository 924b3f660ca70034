"""Asks the platform's APIs: which cluster a channel lives on, which channels stream now, whose a token is.

Whatever is not a complete, well-formed answer is `NoInformation`, never a change and never an exception: failures,
redirects, HTML, `error` bodies, 404, 429, answers too long, too slow or cut short. An answer has one deadline from
the first byte sent to the last byte read (a server that drips ten bytes a second passes every per-read timeout),
and one size limit, on the wire and unpacked (a gzip bomb of 256 KiB unpacks to 256 MiB). Redirects are never
followed: their target is the answerer's choice and may lie inside our network.

Sources: the platform's forum, thread 4877 (routes and shapes); RFC 9110, sections 10.2.3 (Retry-After) and 15.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from typing import Final, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from serverchange.adapters import metrics
from serverchange.adapters.settings import PlatformSettings
from serverchange.events import CHANNEL_PATTERN, Channel, Cluster, LookupSource, describe_error
from serverchange.platform import ChatPropertiesAnswer, ServersAnswer, StreamsAnswer, TokenAnswer

STREAMS_NAMES_MAX: Final = 100
"""Names that one streams request may carry (the platform's limit)."""

RETRY_AFTER_MAX_S: Final = 3600.0
"""A longer wait is cut to this: a mistaken date must not silence a poller for good."""

USER_AGENT: Final = "serverchange (https://pypi.org/project/serverchange/)"

_CHANNEL: Final = re.compile(CHANNEL_PATTERN, re.ASCII)
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,500}", re.ASCII)
_GZIP_WINDOW_BITS: Final = 16 + zlib.MAX_WBITS


class Reason(StrEnum):
    """Why a request brought no information; a bounded set, since it labels metrics."""

    NOT_FOUND = "not-found"
    THROTTLED = "throttled"
    REDIRECTED = "redirected"
    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"
    SERVER_ERROR = "server-error"
    UNREADABLE = "unreadable"
    TOO_LONG = "too-long"
    TOO_SLOW = "too-slow"
    UNREACHABLE = "unreachable"


class Route(StrEnum):
    """The platform's routes that we ask, as metric labels."""

    SERVERS = "servers"
    CHAT_PROPERTIES = "chat_properties"
    STREAMS = "streams"
    VALIDATE = "validate"


@dataclass(frozen=True, slots=True)
class ClusterAnswer:
    """Where the platform says that a channel lives, and which servers that cluster has."""

    cluster: Cluster
    servers: tuple[str, ...]
    websocket_servers: tuple[str, ...]
    via: LookupSource


@dataclass(frozen=True, slots=True)
class NoInformation:
    """The request told nothing about any channel; ask again, not before `retry_after_s` where the platform named it."""

    reason: Reason
    detail: str
    retry_after_s: float | None = None


class _NoAnswerError(Exception):
    def __init__(self, reason: Reason, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.information = NoInformation(reason, detail, retry_after_s)


_Answer = TypeVar("_Answer", bound=BaseModel)


class PlatformApi:
    """A client of these APIs; use as an async context manager. Methods may run concurrently.

    Each call sends exactly one request and counts it in `serverchange_lookups_total`; the caller keeps the budget.
    With `carries_token` a request in clear passes no proxy that the environment names.
    """

    def __init__(self, settings: PlatformSettings, *, connections_max: int, carries_token: bool = False) -> None:
        self._settings = settings
        self._client = httpx.AsyncClient(
            base_url=settings.api_url,
            headers={"user-agent": USER_AGENT, "accept": "application/json", "accept-encoding": "gzip"},
            follow_redirects=False,
            timeout=None,  # noqa: S113  (one deadline for the whole answer, in `_fetch`)
            limits=httpx.Limits(max_connections=connections_max, max_keepalive_connections=connections_max),
            # A proxy from the environment is meant for the outside; it cannot reach this machine's loopback.
            trust_env=not _is_loopback(settings.api_url)
            and (settings.api_url.startswith("https:") or not carries_token),
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def __aenter__(self) -> PlatformApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def fetch_cluster(self, channel: Channel) -> ClusterAnswer | NoInformation:
        """Ask where one channel lives, by the route that the settings name."""
        name = _quoted(channel)
        if self._settings.lookup_via == "servers":
            found = await self._ask(Route.SERVERS, f"/servers?channel={name}", ServersAnswer)
            if isinstance(found, NoInformation):
                return found
            return ClusterAnswer(found.cluster, found.servers, found.websockets_servers, LookupSource.SERVERS)
        properties = await self._ask(
            Route.CHAT_PROPERTIES, f"/api/channels/{name}/chat_properties", ChatPropertiesAnswer
        )
        if isinstance(properties, NoInformation):
            return properties
        return ClusterAnswer(
            properties.cluster,
            properties.chat_servers,
            properties.web_socket_servers,
            LookupSource.CHAT_PROPERTIES,
        )

    async def fetch_live(self, channels: Sequence[Channel]) -> frozenset[Channel] | NoInformation:
        """Ask which of up to `STREAMS_NAMES_MAX` channels stream now; all others asked do not.

        Raises:
            ValueError: more names than one request may carry.
        """
        if len(channels) > STREAMS_NAMES_MAX:
            raise ValueError(f"{len(channels)} names in one streams request, at most {STREAMS_NAMES_MAX}")
        names = ",".join(_quoted(channel) for channel in channels)
        found = await self._ask(Route.STREAMS, f"/streams?channel={names}", StreamsAnswer)
        if isinstance(found, NoInformation):
            return found
        live = {stream.channel.lower() for stream in found.streams}
        return frozenset(channel for channel in channels if channel in live)

    async def fetch_token_owner(self, token: SecretStr) -> TokenAnswer | NoInformation:
        """Ask whose `token` it is; `Reason.UNAUTHORIZED`: nobody's. The caller sees to it that this host may see it."""
        text = token.get_secret_value().removeprefix("oauth:")
        if not _TOKEN.fullmatch(text):
            # Never handed to the HTTP library: its complaint about a header's value shows that value.
            return NoInformation(Reason.UNAUTHORIZED, "the token has characters that no token has")
        return await self._ask(Route.VALIDATE, "/oauth2/validate", TokenAnswer, {"authorization": f"OAuth {text}"})

    async def _ask(
        self, route: Route, target: str, model: type[_Answer], headers: Mapping[str, str] | None = None
    ) -> _Answer | NoInformation:
        try:
            answer = _parse(model, await self._fetch(target, headers))
        except _NoAnswerError as error:
            metrics.LOOKUPS.labels(route=route, outcome=error.information.reason).inc()
            return error.information
        metrics.LOOKUPS.labels(route=route, outcome="answered").inc()
        return answer

    async def _fetch(self, target: str, headers: Mapping[str, str] | None) -> bytes:
        timeout_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s), self._client.stream("GET", target, headers=headers) as response:
                _check_status(response)
                return await _read_body(response, self._settings.answer_bytes_max)
        except TimeoutError as error:
            raise _NoAnswerError(Reason.TOO_SLOW, f"no whole answer within {timeout_s:g} s") from error
        except httpx.InvalidURL as error:
            raise _NoAnswerError(Reason.REDIRECTED, f"redirect to no URL: {error}") from error
        except httpx.HTTPError as error:
            raise _NoAnswerError(Reason.UNREACHABLE, f"{type(error).__name__}: {error}") from error


def _quoted(channel: Channel) -> str:
    if not _CHANNEL.fullmatch(channel):
        raise ValueError(f"{channel[:40]!r} is no channel")
    return quote(channel, safe="")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == httpx.codes.OK:
        return
    detail = f"status {status}"
    if status == httpx.codes.NOT_FOUND:
        raise _NoAnswerError(Reason.NOT_FOUND, detail)
    if 300 <= status < 400:
        raise _NoAnswerError(Reason.REDIRECTED, detail)
    retry_after_s = parse_retry_after(response.headers.get("retry-after"), response.headers.get("date"))
    if status == httpx.codes.TOO_MANY_REQUESTS:
        raise _NoAnswerError(Reason.THROTTLED, detail, retry_after_s)
    if status >= 500:
        raise _NoAnswerError(Reason.SERVER_ERROR, detail, retry_after_s)
    raise _NoAnswerError(Reason.UNAUTHORIZED if status == httpx.codes.UNAUTHORIZED else Reason.REFUSED, detail)


def parse_retry_after(value: str | None, date: str | None) -> float | None:
    """Return the seconds to wait that a Retry-After header names, within 0 and `RETRY_AFTER_MAX_S`, or None.

    A date is compared with the answer's own `Date` where it has one: the platform's clock and ours may differ.
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip(), re.ASCII):
        return min(float(value), RETRY_AFTER_MAX_S)
    until = _parse_date(value)
    if until is None:
        return None
    now = (_parse_date(date) if date is not None else None) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_MAX_S)


def _parse_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


async def _read_body(response: httpx.Response, bytes_max: int) -> bytes:
    """Read and unpack at most `bytes_max` bytes; httpx's own decoder unpacks a chunk of any size at once."""
    unpack = _unpacker(response.headers.get("content-encoding", "identity"))
    body = bytearray()
    received = 0
    async for chunk in response.aiter_raw():
        received += len(chunk)
        if received > bytes_max:
            _refuse_length(bytes_max)
        body += chunk if unpack is None else _unpacked(unpack, chunk, bytes_max + 1 - len(body))
        if len(body) > bytes_max:
            _refuse_length(bytes_max)
    if unpack is not None and not unpack.eof:
        raise _NoAnswerError(Reason.UNREADABLE, "gzip stream cut short")
    return bytes(body)


def _refuse_length(bytes_max: int) -> NoReturn:
    raise _NoAnswerError(Reason.TOO_LONG, f"more than {bytes_max} bytes")


def _unpacker(encoding: str) -> zlib._Decompress | None:
    match encoding.strip().lower():
        case "identity" | "":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(_GZIP_WINDOW_BITS)
        case other:
            raise _NoAnswerError(Reason.UNREADABLE, f"content encoding {other[:40]!r}, which was not asked for")


def _unpacked(unpack: zlib._Decompress, chunk: bytes, bytes_max: int) -> bytes:
    try:
        piece = unpack.decompress(chunk, max(bytes_max, 1))
    except zlib.error as error:
        raise _NoAnswerError(Reason.UNREADABLE, f"broken gzip stream: {error}") from error
    if unpack.unused_data:
        raise _NoAnswerError(Reason.UNREADABLE, "bytes behind the end of the gzip stream")
    return piece


def _parse(model: type[_Answer], body: bytes) -> _Answer:
    try:
        answer = model.model_validate_json(body)
    except ValidationError as error:
        raise _NoAnswerError(Reason.UNREADABLE, describe_error(error)) from error
    if _names_an_error(body):
        raise _NoAnswerError(Reason.UNREADABLE, "the body names an error")
    return answer


def _names_an_error(body: bytes) -> bool:
    """Whether a body that fits a model, hence an object, has a member `error` beside it."""
    try:
        return "error" in json.loads(body)
    except (ValueError, RecursionError):  # e.g. a number of 5,000 digits in a member that no model reads
        return True
