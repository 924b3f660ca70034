"""The load of `bench api`: keep-alive requests for single channels, and readers of the stream of changes.

Written on bare sockets, so that the measured thing is the server: a full HTTP client would take most of the CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Sequence
from typing import Final

CONNECTIONS: Final = 8
LINE_LIMIT: Final = 2**20
RECONNECT_S: Final = 0.2

_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_VERSION: Final = re.compile(rb'"version":(\d+)')


async def requests_per_second(port: int, names: Sequence[str], seconds: float, *, seed: int) -> float:
    """Ask for single channels over `CONNECTIONS` connections and return how many were answered a second."""
    started_s = time.perf_counter()
    deadline_s = started_s + seconds
    counts = await asyncio.gather(
        *(_ask(port, names, deadline_s, random.Random(f"{seed}/{number}")) for number in range(CONNECTIONS))
    )
    return sum(counts) / (time.perf_counter() - started_s)


async def _ask(port: int, names: Sequence[str], deadline_s: float, draw: random.Random) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    while time.perf_counter() < deadline_s:
        writer.write(f"GET /channels/{draw.choice(names)} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise RuntimeError(f"the server answered {head[:60]!r}")
        await reader.readexactly(int(length[1]))
        answered += 1
    writer.close()
    return answered


class StreamReader:
    """One client of `GET /changes`, which comes back with its newest id whenever the connection ends."""

    def __init__(self, port: int, wanted: int) -> None:
        self._port = port
        self._wanted = wanted
        self._last_id = b""
        self.versions: set[int] = set()
        self.repeated = 0
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Read until all that is wanted came."""
        while len(self.versions) < self._wanted:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._read()
            if len(self.versions) < self._wanted:
                await asyncio.sleep(RECONNECT_S)

    async def _read(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=LINE_LIMIT)
        try:
            resume = b"last-event-id: %s\r\n" % self._last_id if self._last_id else b""
            writer.write(b"GET /changes HTTP/1.1\r\nhost: bench\r\n%s\r\n" % resume)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                return
            newest_id = b""
            while len(self.versions) < self._wanted:
                line = await reader.readuntil(b"\n")
                if line.startswith(b"id: "):
                    newest_id = line[4:].strip()
                elif line.startswith(b"data: "):
                    self._take(line)
                elif line == b"\n" and newest_id:
                    self._last_id = newest_id
                    self.connected.set()
        finally:
            writer.close()

    def _take(self, line: bytes) -> None:
        found = _VERSION.search(line)
        if found is not None:
            version = int(found[1])
            self.repeated += version in self.versions
            self.versions.add(version)
