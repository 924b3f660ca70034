"""The SDK's readers on a real broker: a map of all channels, changes that resume, chat without duplicates."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.client import Change, Changes, ChannelMap, ChatLines, Placed, PositionLostError, UnavailableError
from serverchange.client import channel_map as channel_map_module
from serverchange.events import Channel, ChatLine, ChatLineData, Cluster
from serverchange.topics import CHAT_LINES, CLUSTER_CHANGES

from .conftest import Topics, moved


def open_map(kafka: KafkaSettings, on_change: Callable[[Change, Placed | None], None] | None = None) -> ChannelMap:
    return ChannelMap(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix, on_change=on_change)


def open_changes(kafka: KafkaSettings, since: str | None = None, *, from_now: bool = False) -> Changes:
    return Changes(kafka.bootstrap_servers, since, from_now=from_now, topic_prefix=kafka.topic_prefix)


async def test_a_map_is_ready_with_the_snapshot_and_follows_what_happens(kafka: KafkaSettings, topics: Topics) -> None:
    await topics.change(moved("forsen", "main", 1), moved("caedrel", "aws", 1), moved("forsen", "aws", 2))
    seen: asyncio.Queue[tuple[str, Cluster | None, Cluster | None]] = asyncio.Queue()

    def note(change: Change, before: Placed | None) -> None:
        seen.put_nowait((change.channel, before and before.cluster, change.placed.cluster))

    async with open_map(kafka, note) as channels, asyncio.timeout(30):
        await channels.ready()
        assert {name: channels[name].cluster for name in channels} == {"forsen": "aws", "caedrel": "aws"}
        assert channels["#Forsen"].version == 2
        assert (channels.lag_records, seen.empty()) == (0, True)

        await topics.change(moved("forsen", "main", 3), moved("new", "aws", 1, what="first-seen", previous=None))

        assert {await seen.get(), await seen.get()} == {("forsen", "aws", "main"), ("new", None, "aws")}
        assert channels["forsen"].labels == ("partner",)
        assert "nobody" not in channels


async def test_a_map_keeps_the_newest_version_whatever_comes_later(kafka: KafkaSettings, topics: Topics) -> None:
    await topics.change(moved("forsen", "aws", 5), moved("forsen", "main", 4))
    told = asyncio.Event()

    async with open_map(kafka, lambda _change, _before: told.set()) as channels, asyncio.timeout(30):
        await channels.ready()
        assert channels["forsen"].cluster == "aws"
        await topics.change(moved("forsen", "event", 3), moved("forsen", "aws", 5), moved("other", "aws", 1))
        await told.wait()
        assert channels["forsen"].version == 5


async def test_a_map_serves_threads_too(kafka: KafkaSettings, topics: Topics) -> None:
    await topics.change(moved("forsen", "aws", 1))
    told = threading.Event()

    def read() -> Cluster | None:
        with open_map(kafka, lambda _change, _before: told.set()) as channels:
            channels.wait_ready(30)
            assert channels.age_s is not None
            return channels["forsen"].cluster

    assert await asyncio.to_thread(read) == "aws"
    assert not told.is_set()


def test_a_map_without_kafka_says_what_it_waits_for() -> None:
    with ChannelMap("127.0.0.1:1") as channels, pytest.raises(UnavailableError, match="not ready after"):
        channels.wait_ready(0.5)


async def test_a_map_starts_anew_when_the_topic_was_made_anew(
    kafka: KafkaSettings, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_map_module, "CHECK_TOPIC_S", 0.2)
    await topics.change(moved("gone", "aws", 1), moved("forsen", "aws", 7))
    seen: asyncio.Queue[tuple[str, Cluster | None]] = asyncio.Queue()

    def note(change: Change, _before: Placed | None) -> None:
        seen.put_nowait((change.channel, change.placed.cluster))

    async with open_map(kafka, note) as channels, asyncio.timeout(60):
        await channels.ready()
        await asyncio.to_thread(make_anew, kafka)
        await topics.change(moved("forsen", "main", 1))
        assert await seen.get() == ("forsen", "main")
        assert dict(channels).keys() == {"forsen"}


def make_anew(kafka: KafkaSettings) -> None:
    admin = make_admin(kafka, client_id="test")
    admin.delete_topics([topic_name(kafka, CLUSTER_CHANGES)])
    admin.close()
    apply_topics(kafka)


async def test_changes_resume_by_position_without_loss_or_repeat(kafka: KafkaSettings, topics: Topics) -> None:
    await topics.change(*(moved(f"c{number}", "aws", 1) for number in range(30)))

    def read(since: str | None, count: int) -> tuple[list[str], str | None]:
        with open_changes(kafka, since) as changes:
            found = [change.channel for change in islice(changes, count)]
            return [*map(str, found)], changes.position

    async with asyncio.timeout(60):
        first, position = await asyncio.to_thread(read, None, 11)
        second, _ = await asyncio.to_thread(read, position, 19)

    assert sorted(first + second) == sorted(f"c{number}" for number in range(30))


async def test_changes_drop_repeats_and_say_how_many_versions_are_missing(kafka: KafkaSettings, topics: Topics) -> None:
    async with open_changes(kafka) as changes, asyncio.timeout(30):
        await topics.change(*(moved("a", "aws", version) for version in (1, 2, 2, 1, 5, 4, 6)))
        found = []
        async for change in changes:
            found.append((change.placed.version, change.missed))
            if change.placed.version == 6:
                break

    assert found == [(1, 0), (2, 0), (5, 2), (6, 0)]
    assert changes.repeated == 3


@pytest.mark.parametrize("lost", ["00000000-0.0.0.0", "{topic}-fff.0.0.0", "{topic}-0.0"])
async def test_a_position_that_cannot_be_resumed_is_refused(kafka: KafkaSettings, topics: Topics, lost: str) -> None:
    await topics.change(moved("a", "aws", 1))

    def read(since: str | None) -> str:
        with open_changes(kafka, since) as changes:
            next(iter(changes))
            return changes.position or ""

    topic = (await asyncio.to_thread(read, None)).partition("-")[0]
    with pytest.raises(PositionLostError, match="since=None"):
        await asyncio.to_thread(read, lost.format(topic=topic))


def chat(channel: str, line: str, *, shard: str = "s1", cluster: str = "main") -> ChatLine:
    now = datetime.now(UTC)
    data = ChatLineData(line=line, cluster=Cluster(cluster), shard=shard, received_at=now)
    return ChatLine(id="x", source="reconnector/s1", time=now, subject=Channel(channel), data=data)


def said(number: int, message_id: str) -> str:
    return f"@id={message_id};room-id=1;tmi-sent-ts={number} :u!u@u PRIVMSG #a :line {number}"


async def test_chat_comes_once_whatever_a_handover_doubled(kafka: KafkaSettings) -> None:
    cleared = "@room-id=1;target-user-id=2;tmi-sent-ts=3 :tmi.twitch.tv CLEARCHAT #a :b"
    lines = [
        chat("a", said(1, "m1")),
        chat("a", said(1, "m1"), shard="s2", cluster="aws"),
        chat("a", cleared),
        chat("a", cleared, shard="s2", cluster="aws"),
        chat("a", said(2, "m2"), shard="s2", cluster="aws"),
        chat("a", said(2, "m2")),
        chat("b", said(2, "m2")),
        chat("a", "\r\n"),
        chat("a", said(4, "m4")),
    ]
    async with EventPublisher(kafka, client_id="test") as publisher, open_lines(kafka) as received:
        await asyncio.to_thread(received.open)
        for line in lines:
            await publisher.publish(CHAT_LINES, line.subject, line.to_record())
        found = []
        async with asyncio.timeout(30):
            async for one in received:
                found.append((one.channel, one.line.params[-1]))
                if len(found) == 5:
                    break

    assert sorted(found) == [("a", "b"), ("a", "line 1"), ("a", "line 2"), ("a", "line 4"), ("b", "line 2")]


def open_lines(kafka: KafkaSettings, since: datetime | None = None) -> ChatLines:
    return ChatLines(kafka.bootstrap_servers, since=since, topic_prefix=kafka.topic_prefix)


async def test_the_window_is_primed_from_before_the_start(kafka: KafkaSettings) -> None:
    async with EventPublisher(kafka, client_id="test") as publisher:
        before = chat("a", said(1, "m1"))
        await publisher.publish(CHAT_LINES, "a", before.to_record())
        async with open_lines(kafka) as received:
            await asyncio.to_thread(received.open)
            for line in (chat("a", said(1, "m1"), shard="s2"), chat("a", said(2, "m2"))):
                await publisher.publish(CHAT_LINES, "a", line.to_record())
            async with asyncio.timeout(30):
                async for one in received:
                    assert one.line.params[-1] == "line 2"
                    break


async def test_lines_are_read_since_a_moment(kafka: KafkaSettings) -> None:
    async with EventPublisher(kafka, client_id="test") as publisher:
        await publisher.publish(CHAT_LINES, "a", chat("a", said(1, "m1")).to_record())
        async with open_lines(kafka, datetime.now(UTC) - timedelta(minutes=5)) as received, asyncio.timeout(30):
            async for one in received:
                assert (one.channel, one.line.params[-1], one.raw) == ("a", "line 1", said(1, "m1").encode())
                break
