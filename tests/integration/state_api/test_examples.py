"""The examples run as a user runs them: as programs, against a real broker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CHAT_LINES, CLUSTER_CHANGES

from .conftest import Topics, moved
from .test_client_kafka import chat, said

EXAMPLES = Path(__file__).parents[3] / "examples"


@asynccontextmanager
async def example(name: str, *arguments: str) -> AsyncIterator[AsyncIterator[str]]:
    """Run an example and yield the lines that it prints."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / name, *arguments, stdout=asyncio.subprocess.PIPE
    )

    async def lines() -> AsyncIterator[str]:
        assert running.stdout is not None
        async for line in running.stdout:
            yield line.decode().strip()

    try:
        async with asyncio.timeout(60):
            yield lines()
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def test_a_subscriber_with_kafka_python_alone(kafka: KafkaSettings, topics: Topics) -> None:
    await topics.change(moved("forsen", "main", 1, what="first-seen", previous=None))
    arguments = (kafka.bootstrap_servers, topic_name(kafka, CLUSTER_CHANGES))

    async with example("read_changes.py", *arguments) as lines:
        assert await anext(lines) == "forsen: first-seen, None -> main"
        await topics.change(moved("forsen", "main", 1), moved("forsen", "aws", 2))
        assert await anext(lines) == "forsen: moved, main -> aws"


def test_the_plain_subscriber_needs_nothing_of_ours() -> None:
    assert "serverchange" not in (EXAMPLES / "read_changes.py").read_text("utf-8")


async def test_a_notifier_goes_on_where_it_was_killed(kafka: KafkaSettings, topics: Topics, tmp_path: Path) -> None:
    kept = tmp_path / "moves.position"
    arguments = (kafka.bootstrap_servers, str(kept), kafka.topic_prefix)
    async with example("notify_moves.py", *arguments) as lines:
        version = 0
        told = asyncio.create_task(anext(aiter(lines)))
        while not told.done():  # it starts from now: say it until it is there to hear
            version += 1
            await topics.change(moved("forsen", "aws", version))
            await asyncio.wait([told], timeout=0.5)
        assert told.result() == "forsen moved from main to aws"
        await topics.change(moved("forsen", "aws", version + 1))
        await anext(lines)  # so the place behind the first is kept by now
    await topics.change(moved("forsen", "event", version + 2, previous="aws"))

    async with example("notify_moves.py", *arguments) as lines:
        async for line in lines:
            if line == "forsen moved from aws to event":
                break


async def test_an_alert_bot_says_each_line_once_and_where_the_channel_is(kafka: KafkaSettings, topics: Topics) -> None:
    await topics.change(moved("a", "aws", 1))

    async with example("alert_on_words.py", kafka.bootstrap_servers, "line", kafka.topic_prefix) as lines:
        assert await anext(lines) == "listening"
        for line in (chat("a", said(1, "m1")), chat("a", said(1, "m1"), shard="s2"), chat("a", said(2, "m2"))):
            await topics.publisher.publish(CHAT_LINES, "a", line.to_record())
        assert await anext(lines) == "#a (aws): line 1"
        assert await anext(lines) == "#a (aws): line 2"
