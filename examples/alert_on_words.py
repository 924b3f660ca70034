# ruff: noqa: T201 - a program for a terminal prints
"""An alert bot on the chat that the fleet receives: says where a word was said, each line once.

    python alert_on_words.py 127.0.0.1:9092 giveaway,raffle

It has no connection to the chat servers and is not disturbed by moves: the shards read, and the SDK drops what a
handover doubled. It says with each alert which cluster the channel is on now, out of the map of all channels.
"""

import asyncio
import sys

from serverchange.client import ChannelMap, chat_lines


async def alert(bootstrap_servers: str, words: frozenset[str], topic_prefix: str = "") -> None:
    """Print each line that has one of `words`, for ever."""
    async with (
        ChannelMap(bootstrap_servers, topic_prefix=topic_prefix) as channels,
        chat_lines(bootstrap_servers, topic_prefix=topic_prefix) as lines,
    ):
        await channels.ready()
        await asyncio.to_thread(lines.open)
        print("listening", flush=True)
        async for received in lines:
            text = received.line.params[-1] if received.line.params else ""
            if received.line.command == "PRIVMSG" and words & set(text.lower().split()):
                placed = channels.get(received.channel)
                print(f"#{received.channel} ({placed.cluster if placed else 'unknown'}): {text}", flush=True)


if __name__ == "__main__":
    asyncio.run(alert(sys.argv[1], frozenset(sys.argv[2].split(",")), *sys.argv[3:]))
