"""The SDK for other people's services: a map of all channels, changes that resume, the API, chat without duplicates.

Needs the base install alone (pydantic, kafka-python, httpx). Everything works in threads and in asyncio.
"""

from serverchange.client.change_log import Change
from serverchange.client.change_reader import Changes, changes
from serverchange.client.channel_map import ChannelMap
from serverchange.client.chat_reader import ChatLines, ReceivedLine, chat_lines
from serverchange.client.errors import ClientError, PositionLostError, RefusedError, UnavailableError
from serverchange.client.placed import Placed
from serverchange.client.state_client import AsyncStateClient, StateClient

__all__ = [
    "AsyncStateClient",
    "Change",
    "Changes",
    "ChannelMap",
    "ChatLines",
    "ClientError",
    "Placed",
    "PositionLostError",
    "ReceivedLine",
    "RefusedError",
    "StateClient",
    "UnavailableError",
    "changes",
    "chat_lines",
]
