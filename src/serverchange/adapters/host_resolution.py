"""Resolves a server's name once and checks every address, so that the checked address is the one connected to.

A name that is resolved again at connect time may answer differently (DNS rebinding); so a link connects to the
address of an `Endpoint` and uses the name for TLS and nothing else.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from serverchange.adapters.hosts import Address, HostRefused, HostRules, Server

RESOLVE_TIMEOUT_S: Final = 5.0
"""libc's resolver tries for 5 s a name server by default; a link has other servers to try meanwhile."""

ADDRESSES_MAX: Final = 32
"""A name with more addresses is refused: the platform's have fewer than ten."""

Resolver = Callable[[str], Awaitable[list[str]]]
"""Name in, addresses in text form out, in the order to try them; raises OSError."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One checked address of a server: connect to (`address`, `server.port`); TLS verifies `server.host`."""

    server: Server
    address: Address


async def system_resolver(name: str) -> list[str]:
    """Ask the operating system's resolver (hosts file, DNS).

    Raises:
        OSError: the name is unknown, or no name server answered.
    """
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


async def resolve_server(
    rules: HostRules, server: Server, *, resolver: Resolver = system_resolver
) -> tuple[Endpoint, ...]:
    """Return the checked addresses of an allowed server, at least one, in the resolver's order.

    One refused address refuses the whole name: an honest name has none, and which one would be tried is luck.

    Raises:
        HostRefused: the server is not on the allow-list, or one of its addresses is not allowed.
        OSError: the name did not resolve (in time); another server may.
    """
    rules.check_host(server)
    if server.address is not None:
        return (Endpoint(server, server.address),)
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await resolver(server.host)
    except TimeoutError as error:
        raise OSError(f"{server.host} did not resolve within {RESOLVE_TIMEOUT_S:.0f} s") from error
    if not found:
        raise OSError(f"{server.host} has no address")
    if len(found) > ADDRESSES_MAX:
        raise HostRefused(f"{server.host} has {len(found)} addresses, more than {ADDRESSES_MAX}")
    addresses = [ip_address(text) for text in found]
    for address in addresses:
        _check(rules, server, address)
    return tuple(Endpoint(server, address) for address in addresses)


def _check(rules: HostRules, server: Server, address: Address) -> None:
    try:
        rules.check_address(address)
    except HostRefused as refusal:
        raise HostRefused(f"{server} resolves to {address}: {refusal}") from refusal
