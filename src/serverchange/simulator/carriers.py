"""The connections under the links: TCP, TLS, and WebSocket with the subprotocol `irc`.

TLS is asyncio's; the WebSocket protocol is the `websockets` package's, used without its I/O so that both kinds of
carrier write a batch of lines in one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from serverchange.events import Cluster
from serverchange.simulator.link import Link
from serverchange.simulator.network import Network

IRC: Final = Subprotocol("irc")
"""What tmi.js asks for."""

FRAME_BYTES_MAX: Final = 65_536
"""Longest message that a WebSocket client may send: sixteen of the longest lines."""

_TEXT_OPCODES: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


class StreamCarrier(asyncio.Protocol):
    """A TCP or TLS connection: bytes are lines."""

    def __init__(self, network: Network, cluster: Cluster, transport_name: str) -> None:
        """Serve `cluster`; `transport_name` is what the ledger calls the transport."""
        self._network = network
        self._cluster = cluster
        self.transport_name = transport_name
        self.address = ""
        self._transport: asyncio.Transport | None = None
        self._link: Link | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open a link."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Pass lines on."""
        if self._link is not None:
            self._network.receive_data(self._link, data)

    def eof_received(self) -> bool:
        """End the link: a client that has said everything has left."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the network."""
        if self._link is not None:
            why = "by the client" if exc is None else f"connection lost: {type(exc).__name__}"
            self._network.close_link(self._link, why, abort=True)

    def write(self, data: bytes) -> None:
        """Send whole lines."""
        if self._transport is not None:
            self._transport.write(data)

    def unsent_bytes(self) -> int:
        """How much the client has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def close(self) -> None:
        """Send what was written, then end the connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _begin(self) -> None:
        self._link = self._network.open_link(self._cluster, self)


class WebSocketCarrier(StreamCarrier):
    """A WebSocket: a text message is one line or several; the last of a message may lack its line end."""

    def __init__(self, network: Network, cluster: Cluster, transport_name: str) -> None:
        """Serve `cluster`, as above."""
        super().__init__(network, cluster, transport_name)
        self._protocol = ServerProtocol(
            subprotocols=[IRC], select_subprotocol=_select_subprotocol, max_size=FRAME_BYTES_MAX
        )

    def data_received(self, data: bytes) -> None:
        """Pass the lines of complete and partial messages on."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._open(event)
            elif isinstance(event, Frame) and event.opcode in _TEXT_OPCODES and self._link is not None:
                data = bytes(event.data)
                end = b"\r\n" if event.fin and not data.endswith(b"\n") else b""
                self._network.receive_data(self._link, data + end)
        self._drain()

    def eof_received(self) -> bool:
        """Let the protocol see the end."""
        self._protocol.receive_eof()
        self._drain()
        return False

    def write(self, data: bytes) -> None:
        """Send whole lines in one message; bytes that are no UTF-8 leave as a binary one."""
        if self._protocol.state is not State.OPEN:
            return  # The client has said that it closes; its end of the connection follows.
        try:
            data.decode()
        except UnicodeDecodeError:
            self._protocol.send_binary(data)
        else:
            self._protocol.send_text(data)
        self._drain()

    def close(self) -> None:
        """Send a close frame after what was written, then end the connection without waiting for the client's."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._drain()
        super().close()

    def _begin(self) -> None:
        """A link begins with the handshake's end, not with the connection."""

    def _open(self, request: Request) -> None:
        response = self._protocol.accept(request)
        self._protocol.send_response(response)
        if response.status_code == 101:
            super()._begin()

    def _drain(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                super().write(data)
            else:
                super().close()


def _select_subprotocol(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return IRC if IRC in offered else None
