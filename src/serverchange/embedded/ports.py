"""Chooses loopback ports that stay ours while the server is down."""

from __future__ import annotations

import errno
import random
import socket

LOOPBACK = "127.0.0.1"
PORT_RANGE = range(15_000, 32_000)
"""Below the ports that Linux (32768-60999) and macOS (49152-65535) lend to outgoing connections.

A port from that range could be lent while the server restarts; a client that retries may even connect to itself
(TCP simultaneous open on loopback) and so keep the server out for good.
"""
CHOICE_LIMIT = 200


def choose_ports(count: int) -> tuple[int, ...]:
    """Return ``count`` different ports that nobody listens on now.

    Raises:
        OSError: No free ports after ``CHOICE_LIMIT`` tries.
    """
    chosen: list[int] = []
    for port in random.SystemRandom().sample(PORT_RANGE, CHOICE_LIMIT):
        if is_free(port):
            chosen.append(port)
        if len(chosen) == count:
            return tuple(chosen)
    raise OSError(errno.EADDRINUSE, f"found no {count} free ports on {LOOPBACK} in {PORT_RANGE}")


def is_free(port: int) -> bool:
    """Tell whether a server could listen on the port; connections that linger in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(port: int, timeout_s: float = 1.0) -> bool:
    """Tell whether somebody accepts connections on the port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout_s).close()
    except OSError:
        return False
    return True
