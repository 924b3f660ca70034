"""TwitchIO 2 pointed at a simulated platform; run as a program, it tells what a bot on it reads.

The library knows the platform's two addresses only: `HOST` of its module `websocket`, and the API that says whose a
token is. Both are replaced, nothing else.

As a program: argv is JSON with `websocket_url`, `api_url`, `token` and `channels`. Every message that the library hands
to its bot comes out as tmi_client.cjs tells it: {"event": "chat", "args": [channel, tags, text]}, a line each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp
import twitchio
import twitchio.websocket


class PointedClient(twitchio.Client):  # type: ignore[misc,name-defined]
    """A client that asks our API about its token."""

    def __init__(self, api_url: str, token: str, channels: list[str]) -> None:
        super().__init__(token, initial_channels=channels, loop=asyncio.get_running_loop())
        self._api_url = api_url
        self._http.validate = self.validate

    async def validate(self, *, token: str) -> dict[str, Any]:
        """Ask our API as the library asks the platform's; it opens its session here, too."""
        if self._http.session is None:
            self._http.session = aiohttp.ClientSession()
        async with self._http.session.get(
            f"{self._api_url}/oauth2/validate", headers={"authorization": f"OAuth {token}"}
        ) as answer:
            answer.raise_for_status()
            return dict(await answer.json())


class TellingBot(PointedClient):
    """Writes each message to standard output."""

    async def event_message(self, message: Any) -> None:
        told = {"event": "chat", "args": [f"#{message.channel.name}", {}, message.content]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


async def _tell(websocket_url: str, api_url: str, token: str, channels: list[str]) -> None:
    twitchio.websocket.HOST = websocket_url
    await TellingBot(api_url, token, channels).start()


if __name__ == "__main__":
    asyncio.run(_tell(**json.loads(sys.argv[1])))
