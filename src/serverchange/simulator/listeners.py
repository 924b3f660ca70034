"""The ports of the clusters: each has its own plain, TLS and WebSocket ones; and which of them the API names."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from serverchange.events import Cluster
from serverchange.simulator.carriers import StreamCarrier, WebSocketCarrier
from serverchange.simulator.network import Network

BACKLOG: Final = 1024
"""Connections that may wait to be accepted: a fleet that starts opens hundreds at once."""

DEAD_SERVERS_MAX: Final = 16
"""Dead entries that a cluster's list may have."""

_KINDS: Final = (
    ("plain", StreamCarrier, False),
    ("tls", StreamCarrier, True),
    ("ws", WebSocketCarrier, False),
    ("wss", WebSocketCarrier, True),
)


@dataclass(slots=True)
class _Ports:
    servers: dict[str, asyncio.Server] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    dead: list[socket.socket] = field(default_factory=list)


class Listeners:
    """All listening sockets of the clusters."""

    def __init__(self, host: str, context: ssl.SSLContext) -> None:
        """Bind nothing yet; `context` is for the TLS ports."""
        self._host = host
        self._context = context
        self._ports: dict[Cluster, _Ports] = {}

    async def open(self, cluster: Cluster, network: Network) -> None:
        """Open a cluster's four ports; the ones that it had close, while links that were made by them live on."""
        loop = asyncio.get_running_loop()
        ports = _Ports(dead=self._ports[cluster].dead if cluster in self._ports else [])
        for name, carrier, is_encrypted in _KINDS:
            server = await loop.create_server(
                partial(carrier, network, cluster, name),
                self._host,
                0,
                ssl=self._context if is_encrypted else None,
                backlog=BACKLOG,
            )
            ports.servers[name] = server
            ports.addresses[name] = _address(server.sockets[0])
        self._close_servers(cluster)
        self._ports[cluster] = ports

    def set_dead(self, cluster: Cluster, count: int) -> None:
        """Put `count` servers that refuse every connection first into the cluster's lists."""
        if not 0 <= count <= DEAD_SERVERS_MAX:
            raise ValueError(f"dead servers must be 0 to {DEAD_SERVERS_MAX}")
        ports = self._ports[cluster]
        for reserved in ports.dead:
            reserved.close()
        ports.dead = [_reserve_port(self._host) for _ in range(count)]

    def shut(self, cluster: Cluster) -> None:
        """Close a cluster's ports for good, its addresses staying in the lists: all its servers are dead."""
        self._close_servers(cluster)

    def addresses(self, cluster: Cluster) -> dict[str, str]:
        """Return `host:port` by transport."""
        return dict(self._ports[cluster].addresses)

    def listed(self, cluster: Cluster, transport_name: str) -> list[str]:
        """Return the servers that the API names for a transport, dead ones first."""
        ports = self._ports[cluster]
        return [_address(reserved) for reserved in ports.dead] + [ports.addresses[transport_name]]

    def close(self) -> None:
        """Close everything."""
        for cluster, ports in self._ports.items():
            self._close_servers(cluster)
            for reserved in ports.dead:
                reserved.close()

    def _close_servers(self, cluster: Cluster) -> None:
        if cluster in self._ports:
            for server in self._ports[cluster].servers.values():
                server.close()


def _address(bound: socket.socket) -> str:
    name = bound.getsockname()
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"


def _reserve_port(host: str) -> socket.socket:
    """Bind a port without listening: connections are refused, and nobody else can take it meanwhile."""
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    reserved.bind((host, 0))
    return reserved
