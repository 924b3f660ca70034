"""Carries one client dialogue over TCP, TLS or WebSocket: connects to a checked address, reads, writes, pings.

A link decides nothing. Its listener gets what the dialogue heard, in order, by plain calls from the reader: it must
return at once (post to a queue), so that a slow consumer of lines never delays a PONG (tmi.js 484, 253). All bytes
leave through one writer, PONGs before all else; `join` returns when the bytes have left for the kernel, which is
when a confirm timeout may start (twitch-js 227).

A token is sent over verified TLS, or to a host that a setting names, and to a checked address alone (`hosts`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

import websockets.asyncio.client as websocket
from pydantic import SecretStr
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from serverchange.adapters.first_of import first_of
from serverchange.adapters.host_resolution import Endpoint, Resolver, resolve_server, system_resolver
from serverchange.adapters.hosts import HostRefused, HostRules, Server
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.events import Channel, Cluster
from serverchange.irc.client import ClientDialogue
from serverchange.irc.client_events import ClientEvent, LinkClosed, LoggedIn, LoginRefused, PongReceived
from serverchange.irc.client_states import LinkState
from serverchange.irc.line import DialogueError, LineError

_log = get_logger("links")

Transport: TypeAlias = Literal["tls", "plain", "websocket", "websocket-tls"]

DEFAULT_PORTS: Final[dict[Transport, int]] = {"tls": 6697, "plain": 6667, "websocket": 80, "websocket-tls": 443}
"""Of entries without a port (the platform's documentation; 2016 lists name 80 and 6667)."""

TLS_PORTS: Final = frozenset({443, 6697})
PLAIN_PORTS: Final = frozenset({80, 6667})

CONNECT_TIMEOUT_S: Final = 5.0
LOGIN_TIMEOUT_S: Final = 10.0
"""From connected to 376; the platform answers within one second."""
PING_IDLE_S: Final = 30.0
"""An idle link is pinged so often: between twitch-irc-rs (30 s) and tmi.js (60 s)."""
PONG_TIMEOUT_S: Final = 10.0
"""tmi.js closes after 9.999 s without an answer, twitch-irc-rs after 5 s."""
READ_BYTES: Final = 65_536
FRAME_BYTES_MAX: Final = 1_048_576
"""Many lines may arrive in one WebSocket frame; the library's own default limit."""
CLOSE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in on a link; no token: a nameless reader (`justinfan` and digits)."""

    nick: str
    token: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class LinkRules:
    """What every link of a process shares.

    Attributes:
        hosts: which servers and addresses are allowed, and which may see a token.
        transport: how to connect.
        tls: verifies servers; unused by the two plain transports.
        resolver: asks for a name's addresses.
    """

    hosts: HostRules
    transport: Transport
    tls: ssl.SSLContext | None = None
    resolver: Resolver = system_resolver

    @property
    def encrypted(self) -> bool:
        """Whether links of this transport verify their server."""
        return self.transport in {"tls", "websocket-tls"}


def make_tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that verifies servers against `ca_file`, or the system's authorities where it is None."""
    return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))


def servers_for(transport: Transport, servers: Sequence[str], websocket_servers: Sequence[str]) -> tuple[str, ...]:
    """Return those entries of a cluster's server lists that this transport can use, in their order.

    Lists tell ports, not protocols: 443 and 6697 speak TLS, 80 and 6667 do not, any other port is taken to speak
    what we speak. Where a list names plain ports alone (as in 2016), links over TLS take its hosts with the default.
    """
    entries = websocket_servers if transport.startswith("websocket") else servers
    encrypted = transport in {"tls", "websocket-tls"}
    unfit = PLAIN_PORTS if encrypted else TLS_PORTS
    fitting = tuple(entry for entry in entries if _port(entry) not in unfit)
    if fitting or not encrypted:
        return fitting
    return tuple(dict.fromkeys(entry.rpartition(":")[0] for entry in entries))


def _port(entry: str) -> int | None:
    head, _, tail = entry.rpartition(":")
    return int(tail) if head and tail.isdecimal() else None


class _Wire(Protocol):
    """A connection's bytes: TCP and WebSocket behind one small interface."""

    async def read(self) -> bytes:
        """Return what came, or nothing at the end."""

    async def write(self, data: bytes) -> None:
        """Return when the bytes have left for the kernel."""

    async def close(self) -> None:
        """Close; never raises."""


class _StreamWire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # drain() then waits until the kernel has all bytes: a confirm timeout must not start before.
        writer.transport.set_write_buffer_limits(high=0)

    async def read(self) -> bytes:
        return await self._reader.read(READ_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()


class _WebSocketWire:
    def __init__(self, connection: websocket.ClientConnection) -> None:
        self._connection = connection

    async def read(self) -> bytes:
        try:
            frame = await self._connection.recv()
        except WebSocketException:
            return b""
        data = frame.encode() if isinstance(frame, str) else frame
        # A frame ends a line whether or not the server says so.
        return data if data.endswith(b"\n") else data + b"\r\n"

    async def write(self, data: bytes) -> None:
        try:
            await self._connection.send(data.decode("utf-8", "surrogateescape"))
        except WebSocketException as error:
            raise ConnectionError(str(error)) from error

    async def close(self) -> None:
        with contextlib.suppress(OSError, TimeoutError, WebSocketException):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._connection.close()


async def _connect(endpoint: Endpoint, rules: LinkRules) -> _Wire:
    host, port = str(endpoint.address), endpoint.server.port
    tls = rules.tls if rules.encrypted else None
    if rules.transport in {"tls", "plain"}:
        name = None if tls is None else endpoint.server.host
        return _StreamWire(*await asyncio.open_connection(host, port, ssl=tls, server_hostname=name))
    scheme = "wss" if tls is not None else "ws"
    # Without `server_hostname` websockets verifies the name in the URL, which is the server's.
    options: dict[str, Any] = {} if tls is None else {"ssl": tls}
    connection = await websocket.connect(
        f"{scheme}://{endpoint.server}/",
        host=host,
        port=port,
        subprotocols=[Subprotocol("irc")],
        max_size=FRAME_BYTES_MAX,
        open_timeout=CONNECT_TIMEOUT_S,
        ping_interval=None,
        proxy=None,
        compression=None,
        **options,
    )
    return _WebSocketWire(connection)


class Link:
    """One connection, from its connect to its end.

    Run `run` in a task of its own; it returns when the link is over and raises nothing but cancellation. What the
    server says goes to `listener`, at last a `LinkClosed` that names what was lost.

    Args:
        generation: higher than that of any link before it in this process.
        cluster: the cluster whose server this is.
        server: where to connect.
        login: who logs in.
        rules: what all links share.
        listener: called with the link and a run of events; must return at once.

    Attributes:
        end_reason: why the link ended, once it has.
    """

    def __init__(
        self,
        generation: int,
        *,
        cluster: Cluster,
        server: Server,
        login: Login,
        rules: LinkRules,
        listener: Callable[[Link, Sequence[ClientEvent]], None],
    ) -> None:
        self.generation = generation
        self.cluster = cluster
        self.server = server
        self.end_reason = ""
        self._login = login
        self._rules = rules
        self._listener = listener
        self._dialogue = ClientDialogue(generation)
        self._loop = asyncio.get_running_loop()
        self._to_write = asyncio.Event()
        self._written: list[asyncio.Future[float]] = []
        self._closing = asyncio.Event()
        self._heard_at = self._loop.time()
        self._ponged = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether channels can be joined here: logged in, and not about to be closed by the server."""
        return self._dialogue.state is LinkState.READY

    @property
    def open(self) -> bool:
        """Whether the server still delivers here."""
        return self._dialogue.state in {LinkState.READY, LinkState.DRAINING}

    @property
    def channel_count(self) -> int:
        """Channels on this link in any state."""
        return self._dialogue.channel_count

    @property
    def confirmed(self) -> frozenset[Channel]:
        """Channels whose JOIN is confirmed on this link."""
        return self._dialogue.confirmed

    async def join(self, channels: Iterable[Channel]) -> float:
        """Ask for channels and return the loop's time at which the bytes had left.

        Raises:
            DialogueError: the link is not ready (any more), or ended before the bytes left.
        """
        self._dialogue.join(channels)
        return await self._flushed()

    async def part(self, channels: Iterable[Channel]) -> None:
        """Leave channels; on a link that has ended there is nothing to leave."""
        if self.open:
            self._dialogue.part(channels)
            with contextlib.suppress(DialogueError):
                await self._flushed()

    def close(self, reason: str) -> None:
        """Ask the link to end; `LinkClosed` follows."""
        self.end_reason = self.end_reason or reason
        self._closing.set()

    async def run(self) -> None:
        """Connect, log in, and carry until the end."""
        try:
            self._check_token()
            async with self._connected() as wire:
                await self._carry(wire)
        except (HostRefused, LineError) as error:
            self.end_reason = f"refused: {error}"
            _log.error(LogEvent.HOST_REFUSED, server=str(self.server), cluster=self.cluster, reason=str(error))
        except (OSError, TimeoutError, WebSocketException, ssl.SSLError) as error:
            self.end_reason = self.end_reason or f"{type(error).__name__}: {error}"
        finally:
            self._end()

    def _check_token(self) -> None:
        allowed = self._rules.hosts.may_send_token(self.server.host, tls=self._rules.encrypted)
        if self._login.token is not None and not allowed:
            raise HostRefused(
                f"{self.server} would get a token without TLS: use platform.transport tls, or name the host in "
                "platform.plaintext_token_hosts"
            )

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Wire]:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            endpoints = await resolve_server(self._rules.hosts, self.server, resolver=self._rules.resolver)
            wire = await _connect(endpoints[0], self._rules)
        try:
            yield wire
        finally:
            await wire.close()

    async def _carry(self, wire: _Wire) -> None:
        token = self._login.token
        self._dialogue.login(self._login.nick, None if token is None else token.get_secret_value())
        self._to_write.set()
        await first_of(
            {
                f"link {self.generation} reads": self._read(wire),
                f"link {self.generation} writes": self._write(wire),
                f"link {self.generation} is watched": self._watch(),
                f"link {self.generation} closes": self._closing.wait(),
            }
        )

    async def _read(self, wire: _Wire) -> None:
        while data := await wire.read():
            self._heard_at = self._loop.time()
            events = self._dialogue.receive_data(data)
            self._to_write.set()
            if events:
                self._take_note(events)
                self._listener(self, events)
        self.end_reason = self.end_reason or "closed by the server"

    def _take_note(self, events: Sequence[ClientEvent]) -> None:
        for event in events:
            match event:
                case PongReceived():
                    self._ponged.set()
                case LoggedIn():
                    _log.info(LogEvent.LINK_OPENED, server=str(self.server), cluster=self.cluster, link=self.generation)
                case LoginRefused():
                    self.end_reason = f"login refused: {event.reason}"
                    _log.error(LogEvent.LINK_REFUSED, server=str(self.server), reason=event.reason)
                case _:
                    pass

    async def _write(self, wire: _Wire) -> None:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            waiting, self._written = self._written, []
            try:
                if data := self._dialogue.data_to_send():
                    await wire.write(data)
            except BaseException:
                self._written = waiting + self._written  # `_end` tells them
                raise
            left_at = self._loop.time()
            for written in waiting:
                if not written.done():
                    written.set_result(left_at)

    async def _watch(self) -> None:
        """End a link that does not log in, or no longer answers."""
        await asyncio.sleep(LOGIN_TIMEOUT_S)
        if not self.open:
            raise TimeoutError(f"no welcome within {LOGIN_TIMEOUT_S:.0f} s")
        while True:
            idle_s = self._loop.time() - self._heard_at
            if idle_s < PING_IDLE_S:
                await asyncio.sleep(PING_IDLE_S - idle_s)
                continue
            self._ponged.clear()
            self._dialogue.ping(f"serverchange {self.generation}")
            self._to_write.set()
            async with asyncio.timeout(PONG_TIMEOUT_S):
                await self._ponged.wait()

    def _flushed(self) -> asyncio.Future[float]:
        written: asyncio.Future[float] = self._loop.create_future()
        self._written.append(written)
        self._to_write.set()
        return written

    def _end(self) -> None:
        for written in self._written:
            if not written.done():
                written.set_exception(DialogueError("the link ended before the bytes left"))
        self._written.clear()
        lost: LinkClosed | None = self._dialogue.receive_eof()
        if lost is not None:
            _log.info(
                LogEvent.LINK_CLOSED,
                server=str(self.server),
                cluster=self.cluster,
                link=self.generation,
                reason=self.end_reason,
                confirmed=len(lost.confirmed),
                asked=len(lost.asked),
            )
            self._listener(self, [lost])
