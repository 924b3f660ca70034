"""The examples run as a user runs them: as programs, against a real broker."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CHAT_LINES, CLUSTER_CHANGES

from .conftest import TOKEN, RunningApi, Tables, Topics, moved, settled
from .test_client_kafka import chat, said

EXAMPLES = Path(__file__).parents[3] / "examples"
DOCS = Path(__file__).parents[3] / "docs"
ADDRESSES = {"kafka": '"127.0.0.1:9092"', "api": "http://127.0.0.1:8080", "token": "…"}


@asynccontextmanager
async def example(name: str | Path, *arguments: str, folder: Path | None = None) -> AsyncIterator[AsyncIterator[str]]:
    """Run an example and yield the lines that it prints."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / name, *arguments, stdout=asyncio.subprocess.PIPE, cwd=folder
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


def from_the_sdks_page(what: str, folder: Path, **instead: str) -> Path:
    """Write the page's example of `what` as a program, with this test's addresses in place of the page's."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "sdk.md").read_text("utf-8"), re.DOTALL)
    (text,) = [block for block in blocks if re.search(rf"from serverchange.client import .*\b{what}\b", block)]
    for page, mine in instead.items():
        assert ADDRESSES[page] in text
        text = text.replace(ADDRESSES[page], mine)
    program = folder / "example.py"
    program.write_text(text)
    return program


def reached(kafka: KafkaSettings) -> str:
    return f'"{kafka.bootstrap_servers}", topic_prefix="{kafka.topic_prefix}"'


async def test_the_pages_map(kafka: KafkaSettings, topics: Topics, tmp_path: Path) -> None:
    await topics.change(moved("forsen", "main", 1))
    program = from_the_sdks_page("ChannelMap", tmp_path, kafka=reached(kafka))

    async with example(program) as lines:
        assert await anext(lines) == "main 0"
        await topics.change(moved("forsen", "aws", 2))
        assert await anext(lines) == "forsen main -> aws"


async def test_the_pages_reader_of_changes(kafka: KafkaSettings, topics: Topics, tmp_path: Path) -> None:
    await topics.change(moved("forsen", "aws", 1), moved("forsen", "main", 3))
    program = from_the_sdks_page("changes", tmp_path, kafka=reached(kafka))

    async with example(program, folder=tmp_path) as lines:
        assert await anext(lines) == "forsen moved aws 0"
        assert await anext(lines) == "forsen moved main 1"


async def test_the_pages_reader_of_chat(kafka: KafkaSettings, topics: Topics, tmp_path: Path) -> None:
    program = from_the_sdks_page("chat_lines", tmp_path, kafka=reached(kafka))

    async with example(program) as lines:
        number, told = 0, asyncio.create_task(anext(aiter(lines)))
        while not told.done():  # it starts from now: say it until it is there to hear
            number += 1
            line = chat("a", said(number, f"m{number}"))
            await topics.publisher.publish(CHAT_LINES, "a", line.to_record())
            await asyncio.wait([told], timeout=0.5)
        assert told.result().startswith("a line ")


async def test_the_pages_client_of_the_api(api: RunningApi, tables: Tables, tmp_path: Path) -> None:
    await tables.store([settled("forsen", on="aws"), settled("caedrel", on="main")])
    await tables.store_history("forsen", ["main", "aws"])
    await tables.fold_to(dict.fromkeys(range(4), 1_000))
    program = from_the_sdks_page("StateClient", tmp_path, api=api.url, token=TOKEN)

    async with example(program) as lines:
        assert [line async for line in lines] == ["aws", "('nobody',)", "forsen 2016-02-20 20:26:40+00:00", "None"]
