"""A lookup API whose answers a test decides, request by request; it keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, object, dict[str, str]]
"""Status, JSON body, further headers."""


@dataclass
class ScriptedPlatform:
    """Where each channel lives and who streams; `script` may answer in its place (None: the usual answer)."""

    clusters: dict[str, str] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    servers: dict[str, list[str]] = field(default_factory=dict)
    lookups: list[str] = field(default_factory=list)
    scans: int = 0
    url: str = ""
    script: Callable[[str, str], Answer | None] = lambda _route, _channel: None
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(self, reached: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `reached`, looked at after each request."""
        async with asyncio.timeout(timeout_s), self.asked:
            await self.asked.wait_for(reached)

    def count(self, channel: str) -> int:
        """Return how often this channel was looked up."""
        return self.lookups.count(channel)

    def answer(self, target: str) -> Answer:
        parts = urlsplit(target)
        asked = parse_qs(parts.query)["channel"][0]
        if parts.path == "/streams":
            self.scans += 1
        else:
            self.lookups.append(asked)
        scripted = self.script(parts.path, asked)
        if scripted is not None:
            return scripted
        if parts.path == "/streams":
            streams = [{"channel": name} for name in asked.split(",") if name in self.live]
            return 200, {"streams": streams}, {}
        cluster = self.clusters.get(asked)
        if cluster is None:
            return 404, {"error": "Not Found"}, {}
        servers = self.servers.get(cluster, [f"irc.{cluster}.example:6667"])
        return 200, {"cluster": cluster, "servers": servers, "websockets_servers": []}, {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                status, body, headers = self.answer(head.split(b" ", 2)[1].decode())
                content = json.dumps(body).encode()
                lines = [f"HTTP/1.1 {status} Scripted", f"content-length: {len(content)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                await writer.drain()
                async with self.asked:
                    self.asked.notify_all()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def scripted_platform(**options: object) -> AsyncIterator[ScriptedPlatform]:
    """Serve a platform on a free port of loopback."""
    platform = ScriptedPlatform(**options)  # type: ignore[arg-type]
    server = await asyncio.start_server(platform.serve, "127.0.0.1", 0)
    platform.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield platform
