"""The stream of changes resumes without loss, and says so where it cannot."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from serverchange.adapters.kafka.clients import make_admin, make_producer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.events import ClusterChanged
from serverchange.state_api import change_routes
from serverchange.topics import CLUSTER_CHANGES

from .conftest import RunningApi, Topics, moved


@dataclass(frozen=True, slots=True)
class Event:
    """One Server-Sent Event; `event` is None for a comment."""

    event: str | None
    id: str | None
    data: Any

    @property
    def version(self) -> int:
        return ClusterChanged.model_validate(self.data).data.version


async def parse(response: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield Event(None, None, None)
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(fields.get("event"), fields.get("id"), json.loads(fields["data"]))
            fields = {}


@asynccontextmanager
async def stream(api: RunningApi, last_id: str | None = None, **params: Any) -> AsyncIterator[AsyncIterator[Event]]:
    headers = {"last-event-id": last_id} if last_id else {}
    async with asyncio.timeout(30), api.client.stream("GET", "/changes", headers=headers, params=params) as response:
        assert response.status_code == 200
        yield parse(response)


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    """Return the next `count` changes, `ready` and comments left out."""
    found: list[Event] = []
    async for event in events:
        if event.event == "change":
            found.append(event)
        if len(found) == count:
            return found
    raise AssertionError(f"the stream ended after {len(found)} changes")


async def test_changes_come_as_they_happen(api: RunningApi, topics: Topics) -> None:
    await api.until_streaming()
    async with stream(api) as events:
        assert (await anext(events)).event == "ready"
        await topics.change(moved("forsen", "aws", 1), moved("caedrel", "aws", 1), moved("forsen", "main", 2))

        found = await take(events, 3)

    assert sorted((event.data["subject"], event.version) for event in found) == [
        ("caedrel", 1),
        ("forsen", 1),
        ("forsen", 2),
    ]
    assert len({event.id for event in found}) == 3


async def test_a_resume_brings_what_happened_meanwhile_and_nothing_twice(
    api: RunningApi, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_routes, "HEARTBEAT_S", 0.05)
    await api.until_streaming()
    async with stream(api) as events:
        await anext(events)
        await topics.change(*(moved(f"c{number}", "aws", number) for number in range(1, 7)))
        first = await take(events, 6)
        heartbeat = await anext(events)
    assert (heartbeat.event, heartbeat.id) == (None, None)
    await topics.change(*(moved(f"c{number}", "aws", number) for number in range(7, 10)))

    async with stream(api, first[-1].id) as events:
        await topics.change(moved("c10", "aws", 10))
        second = await take(events, 4)

    assert sorted(event.version for event in first) == [1, 2, 3, 4, 5, 6]
    assert sorted(event.version for event in second) == [7, 8, 9, 10]


async def test_every_id_resumes_exactly_behind_its_own_event(api: RunningApi, topics: Topics) -> None:
    await api.until_streaming()
    async with stream(api) as events:
        ready = await anext(events)
        await topics.change(*(moved(f"c{number}", "aws", number) for number in range(1, 21)))
        whole = await take(events, 20)
    order = [event.version for event in whole]

    for place, last_id in enumerate([ready.id, *(event.id for event in whole[:-1])]):
        async with stream(api, last_id) as events:
            rest = await take(events, 20 - place)
        assert [event.version for event in rest] == order[place:]


async def test_a_resume_over_a_restart_of_the_api_loses_nothing(settings: Settings, topics: Topics) -> None:
    async with RunningApi(settings) as before:
        await before.until_streaming()
        async with stream(before) as events:
            await anext(events)
            await topics.change(moved("a", "aws", 1), moved("b", "aws", 2), moved("c", "aws", 3))
            first = await take(events, 2)
    await topics.change(*(moved(f"x{number}", "aws", number) for number in range(4, 30)))

    async with RunningApi(settings) as after:
        await after.until_streaming()
        async with stream(after, first[-1].id) as events:
            second = await take(events, 27)

    assert sorted(event.version for event in [*first, *second]) == list(range(1, 30))


async def test_a_reader_behind_the_memory_is_served_from_kafka(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverchange.state_api.app.ChangeFeed", small_feed)
    async with RunningApi(settings) as api:
        await api.until_streaming()
        async with stream(api) as events:
            ready = await anext(events)
            await topics.change(*(moved(f"c{number % 7}", "aws", number) for number in range(1, 101)))
            live = await take(events, 100)
        async with stream(api, ready.id) as events:
            again = await take(events, 100)
        async with stream(api, again[49].id) as events:
            rest = await take(events, 50)

    assert sorted(event.version for event in live) == list(range(1, 101))
    assert sorted(event.version for event in again) == list(range(1, 101))
    assert {event.version for event in [*again[:50], *rest]} == set(range(1, 101))


def small_feed(*arguments: Any, **options: Any) -> Any:
    from serverchange.state_api.change_feed import ChangeFeed  # noqa: PLC0415  (the name in `app` is patched)

    return ChangeFeed(*arguments, **options, capacity=8)


async def test_a_stream_is_filtered(api: RunningApi, topics: Topics) -> None:
    await api.until_streaming()
    async with stream(api, channel=["forsen", "b"], cluster="aws") as events:
        await anext(events)
        await topics.change(
            moved("forsen", "event", 1),
            moved("caedrel", "aws", 2),
            moved("forsen", "aws", 3, previous="event"),
            moved("b", "main", 4, previous="aws"),
        )
        found = await take(events, 2)

    assert sorted(event.version for event in found) == [3, 4]


@pytest.mark.parametrize(
    ("last_id", "reason"),
    [("00000000-0.0.0.0", "another topic"), ("{topic}-0.0", "another topic"), ("{topic}-0.0.0.fffff", "past the end")],
)
async def test_what_cannot_be_resumed_says_reset(api: RunningApi, last_id: str, reason: str) -> None:
    await api.until_streaming()
    async with stream(api) as events:
        topic = ((await anext(events)).id or "").partition("-")[0]

    async with stream(api, last_id.format(topic=topic)) as events:
        reset = await anext(events)

    assert reset.event == "reset"
    assert reason in reset.data["reason"]
    assert reset.data["snapshot"] == "/channels"


async def test_last_months_id_says_reset_although_its_records_are_still_there(
    settings: Settings, kafka: KafkaSettings
) -> None:
    month_ago_ms = round(time.time() * 1000) - 31 * 86_400_000

    def write(timestamp_ms: int | None, *versions: int) -> None:
        producer = make_producer(kafka, client_id="test")
        for version in versions:
            change = moved("forsen", "aws", version)
            key, value = change.subject.encode(), change.to_record()
            producer.send(topic_name(kafka, CLUSTER_CHANGES), key=key, value=value, timestamp_ms=timestamp_ms)
        producer.close()

    await asyncio.to_thread(write, month_ago_ms, 1, 2)
    await asyncio.to_thread(write, None, 3)
    async with RunningApi(settings) as api:
        await api.until_streaming()
        async with stream(api) as events:
            now = (await anext(events)).id or ""
        topic, _, offsets = now.partition("-")
        async with stream(api, f"{topic}-{offsets.replace('3', '1')}") as events:
            reset = await anext(events)
        async with stream(api, f"{topic}-{offsets.replace('3', '2')}") as events:
            assert [event.version for event in await take(events, 1)] == [3]

    assert reset.event == "reset"
    assert "29 days" in reset.data["reason"]


async def test_what_is_no_id_is_refused(api: RunningApi) -> None:
    await api.until_streaming()
    for text in ("x", "1-2", "00000000-", "00000000-g", "00000000-1..2", "9" * 70_000):
        response = await api.client.get("/changes", params={"since": text[:60_000]})
        assert response.status_code == 422, text[:20]


async def test_a_topic_made_anew_resets_the_streams(api: RunningApi, kafka: KafkaSettings, topics: Topics) -> None:
    await api.until_streaming()
    async with stream(api) as events:
        await anext(events)

        def make_anew() -> None:
            admin = make_admin(kafka, client_id="test")
            admin.delete_topics([topic_name(kafka, CLUSTER_CHANGES)])
            admin.close()
            apply_topics(kafka)

        await asyncio.to_thread(make_anew)
        async for event in events:
            if event.event == "reset":
                break
        await topics.change(moved("forsen", "aws", 1))
        assert [one.version for one in await take(events, 1)] == [1]
