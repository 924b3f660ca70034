"""Decides which servers a link may connect to, and which of them may see a token; opens no connection itself.

The threat: whoever can put a host name into a servers list or an event makes bots send `PASS oauth:TOKEN` to it. So
a server's name must stand on the allow-list, every address that it resolves to must be public (or lie in a network
that a setting allows), and a token goes out over TLS alone, or to hosts that a setting names. This module parses and
judges names and addresses; `host_resolution` asks the resolver, once, and connects are made to the checked address.

Sources: RFC 3986 (authority), RFC 1123 section 2.1 (host names), the WHATWG URL standard ("ends in a number": hosts
such as `0x7f.1` are addresses in disguise), IANA's special-purpose address registries by way of `ipaddress`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from serverchange.adapters.settings import PlatformSettings

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

HOST_CHARACTERS_MAX: Final = 253
"""Longest host name in text form (RFC 1123, RFC 1035 section 2.3.4)."""

PRIVILEGED_PORTS_ALLOWED: Final = frozenset({80, 443})
"""Below 1024 the platform serves IRC and WebSocket on these two; all others are other programs' doors (22, 25 ...)."""

_ENTRY: Final = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[A-Za-z0-9.-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last four bytes are an IPv4 address, and that is where the packets go."""


class HostRefused(Exception):  # noqa: N818  (an answer, not a fault of ours: the link takes the next server)
    """A server is not one that links may connect to; the message says which rule and which setting decide."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a link connects: a host (a name in lower case, or an address in its canonical form) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The host as an address, or None where it is a name."""
        return _as_address(self.host)


def parse_server(entry: str, *, default_port: int) -> Server:
    """Return the server that `host[:port]` or `[address][:port]` names; entries may lack a port.

    Raises:
        HostRefused: not exactly that (user info, path, other letters than ASCII, a port out of range or of another
            service, an address in disguise such as `127.1`).
    """
    match = _ENTRY.fullmatch(entry) if len(entry) <= HOST_CHARACTERS_MAX + len("[]:65535") else None
    if match is None:
        raise HostRefused(f"{entry[:80]!r} is no host:port")
    port = default_port if match["port"] is None else int(match["port"])
    _check_port(port, entry)
    if match["bracketed"] is not None:
        return Server(str(_parse_v6(match["bracketed"], entry)), port)
    host = match["host"].lower()
    return Server(host if _as_address(host) else _parse_name(host, entry), port)


def _check_port(port: int, entry: str) -> None:
    if not 1 <= port <= 65_535 or (port < 1024 and port not in PRIVILEGED_PORTS_ALLOWED):
        raise HostRefused(f"{entry[:80]!r}: port {port} is none of the platform's (80, 443, or 1024 and above)")


def _parse_v6(text: str, entry: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError as error:
        raise HostRefused(f"{entry[:80]!r}: no IPv6 address in the brackets") from error


def _parse_name(host: str, entry: str) -> str:
    labels = host.split(".")
    if len(host) > HOST_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostRefused(f"{entry[:80]!r} is no host name (RFC 1123)")
    if _NUMBER.fullmatch(labels[-1]):
        # Resolvers read 127.1, 2130706433 and 0x7f.1 as 127.0.0.1.
        raise HostRefused(f"{entry[:80]!r} is an address in disguise")
    return host


def _as_address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _parse_network(text: str) -> Network:
    try:
        return ip_network(text, strict=True)
    except ValueError as error:
        raise ValueError(f"platform.allowed_networks: {text!r} is no network in CIDR form: {error}") from error


@dataclass(frozen=True, slots=True)
class HostRules:
    """The allow-list: names by suffix, addresses by network, and who may get a token without TLS.

    Attributes:
        suffixes: a name must equal one, or end in a dot and one; lower case.
        networks: where a server may be although it is named by address or the address is not public.
        plaintext_token_hosts: hosts that may get a token over a connection without TLS.
    """

    suffixes: tuple[str, ...]
    networks: tuple[Network, ...] = ()
    plaintext_token_hosts: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, settings: PlatformSettings) -> HostRules:
        """Return the rules that the settings ask for.

        Raises:
            ValueError: `allowed_networks` names something that is no network.
        """
        return cls(
            suffixes=tuple(suffix.lower().removeprefix(".") for suffix in settings.allowed_host_suffixes),
            networks=tuple(_parse_network(text) for text in settings.allowed_networks),
            plaintext_token_hosts=frozenset(host.lower() for host in settings.plaintext_token_hosts),
        )

    def check_host(self, server: Server) -> None:
        """Return if the server's name or address stands on the allow-list; its addresses are still to be checked.

        Raises:
            HostRefused: it does not.
        """
        address = server.address
        if address is not None:
            if not self._in_networks(address):
                raise HostRefused(f"{server}: {address} lies in none of platform.allowed_networks")
            return
        if not any(server.host == suffix or server.host.endswith("." + suffix) for suffix in self.suffixes):
            raise HostRefused(f"{server}: the name ends in none of platform.allowed_host_suffixes")

    def check_address(self, address: Address) -> None:
        """Return if a server may be at `address`, one of those that its name resolved to.

        Raises:
            HostRefused: loopback, private, link-local, multicast, reserved, or an IPv4 address inside an IPv6 one
                (mapped, 6to4, Teredo), and in none of the allowed networks.
        """
        if self._in_networks(address):
            return
        if isinstance(address, IPv6Address):
            _check_v6_form(address)
            if address in _NAT64:
                self.check_address(IPv4Address(int(address) & 0xFFFF_FFFF))
                return
        if not address.is_global or address.is_multicast or address.is_reserved:
            raise HostRefused(f"{address} is not a public address, and in none of platform.allowed_networks")

    def may_send_token(self, host: str, *, tls: bool) -> bool:
        """Return whether a token may go to `host`: over verified TLS, or because a setting names the host."""
        return tls or host.lower() in self.plaintext_token_hosts

    def allowed(self, entries: Iterable[str], *, default_port: int) -> tuple[list[Server], list[HostRefused]]:
        """Return the servers of a list that links may connect to, in its order, and why the others may not be."""
        servers: list[Server] = []
        refused: list[HostRefused] = []
        for entry in entries:
            try:
                server = parse_server(entry, default_port=default_port)
                self.check_host(server)
                servers.append(server)
            except HostRefused as refusal:
                refused.append(refusal)
        return servers, refused

    def _in_networks(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.networks)


def _check_v6_form(address: IPv6Address) -> None:
    if address.scope_id is not None:
        raise HostRefused(f"{address} names a network interface of this machine")
    if address.ipv4_mapped is not None or address.sixtofour is not None or address.teredo is not None:
        raise HostRefused(f"{address} wraps an IPv4 address; such servers are named by IPv4")
