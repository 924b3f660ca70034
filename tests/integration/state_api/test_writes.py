"""What services and operators say lands on `channel-events`, and a read can demand to see it."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from kafka import TopicPartition
from pydantic import SecretStr

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.events import ChannelEvent, parse_channel_event
from serverchange.topics import CHANNEL_EVENTS
from serverchange.views import POSITION_HEADER, parse_position

from .conftest import BEARER, OLD_TOKEN, RunningApi, Tables, settled


def read_events(kafka: KafkaSettings, position: str) -> dict[str, ChannelEvent]:
    """Return the newest event of each channel up to a position."""
    topic, ends = topic_name(kafka, CHANNEL_EVENTS), parse_position(position)
    found = {}
    consumer = make_consumer(kafka, client_id="test", group=None)
    try:
        partitions = {TopicPartition(topic, partition): end for partition, end in ends.items()}
        consumer.assign(list(partitions))
        while any(consumer.position(partition) <= end for partition, end in partitions.items()):
            for records in consumer.poll(timeout_ms=1000).values():
                for record in records:
                    found[record.key.decode()] = parse_channel_event(record.key, record.value)
    finally:
        consumer.close()
    return found


async def test_tracking_appends_one_event_a_channel_in_the_tokens_name(api: RunningApi, kafka: KafkaSettings) -> None:
    response = await api.client.post(
        "/channels", headers=BEARER, json={"channels": ["#Forsen", "caedrel", "forsen"], "labels": ["partner"]}
    )

    assert response.status_code == 202
    assert response.json()["accepted"] == 2
    assert response.headers[POSITION_HEADER] == response.json()["position"]
    events = await asyncio.to_thread(read_events, kafka, response.json()["position"])
    assert set(events) == {"forsen", "caedrel"}
    assert {event.data.service for event in events.values()} == {"my-bot"}  # type: ignore[union-attr]
    assert events["forsen"].data.labels == ("partner",)  # type: ignore[union-attr]


async def test_untracking_and_pinning_append_their_events(api: RunningApi, kafka: KafkaSettings) -> None:
    gone = await api.client.request("DELETE", "/channels", headers=BEARER, json={"channels": ["a"]})
    pinned = await api.client.put("/channels/b/pin", headers=BEARER, json={"cluster": "aws"})
    unpinned = await api.client.delete("/channels/c/pin", headers=BEARER)

    types = set()
    for response in (gone, pinned, unpinned):
        assert response.status_code == 202
        events = await asyncio.to_thread(read_events, kafka, response.json()["position"])
        types |= {event.type for event in events.values()}
    assert {str(one).split(".")[3] for one in types} == {"untracked", "pinned", "unpinned"}


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic Y29ycmVjdA==", "Bearer x y", "correct-horse"])
async def test_without_a_known_token_nothing_is_written(api: RunningApi, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}

    response = await api.client.post("/channels", headers=headers, json={"channels": ["forsen"]})

    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_two_tokens_of_one_name_are_valid_at_once(api: RunningApi) -> None:
    headers = {"authorization": f"Bearer {OLD_TOKEN}"}

    response = await api.client.post("/channels", headers=headers, json={"channels": ["forsen"]})

    assert response.status_code == 202


async def test_a_token_is_rotated_without_a_gap(settings: Settings) -> None:
    """As docs/operations.md has it: add the new one and restart, take the old one out and restart."""
    old, new = (f"my-bot={hashlib.sha256(token.encode()).hexdigest()}" for token in (OLD_TOKEN, "brand-new"))

    async def answers(tokens: str) -> list[int]:
        api_settings = settings.api.model_copy(update={"tokens": SecretStr(tokens)})
        async with RunningApi(settings.model_copy(update={"api": api_settings})) as api:
            return [
                (
                    await api.client.post(
                        "/channels", headers={"authorization": f"Bearer {token}"}, json={"channels": ["forsen"]}
                    )
                ).status_code
                for token in (OLD_TOKEN, "brand-new")
            ]

    assert await answers(old) == [202, 401]
    assert await answers(f"{old},{new}") == [202, 202]
    assert await answers(new) == [401, 202]


async def test_a_read_that_demands_a_position_waits_until_the_tables_hold_it(api: RunningApi, tables: Tables) -> None:
    written = await api.client.post("/channels", headers=BEARER, json={"channels": ["forsen"]})
    position = written.headers[POSITION_HEADER]
    demand = {POSITION_HEADER: position}

    early = await api.client.get("/channels/forsen", headers={**demand, "prefer": "wait=0"})
    assert early.status_code == 503
    assert int(early.headers["retry-after"]) > 0

    waiting = asyncio.create_task(api.client.get("/channels/forsen", headers={**demand, "prefer": "wait=10"}))
    await tables.store([settled("forsen", on="aws")])
    await tables.fold_to({partition: offset + 1 for partition, offset in parse_position(position).items()})
    assert (await waiting).status_code == 200


async def test_a_malformed_position_is_refused(api: RunningApi) -> None:
    for text in ("x", "1@", "1@2,1@3", "-1@2", "1@2;3@4", "१@2"):
        response = await api.client.get("/channels/forsen", headers=[(POSITION_HEADER, text.encode())])
        assert response.status_code == 422, text


async def test_too_many_names_in_one_write_are_refused(api: RunningApi) -> None:
    names = [f"c{number}" for number in range(10_001)]

    response = await api.client.post("/channels", headers=BEARER, json={"channels": names})

    assert response.status_code == 413


async def test_one_bad_name_refuses_the_whole_write_and_is_named(api: RunningApi) -> None:
    response = await api.client.post("/channels", headers=BEARER, json={"channels": ["forsen", "#a\r\nQUIT"]})

    assert response.status_code == 422
    assert "channels.1" in response.json()["detail"]


async def test_a_body_past_the_limit_is_refused_before_it_is_read(api: RunningApi) -> None:
    async def endless() -> object:
        for _ in range(80):
            yield b'{"channels":["' + b"a" * 65_536

    declared = await api.client.post("/channels:lookup", content=b"x" * 5_000_000)
    undeclared = await api.client.post("/channels:lookup", content=endless())  # type: ignore[arg-type]

    assert (declared.status_code, undeclared.status_code) == (413, 413)
    assert undeclared.headers["content-type"] == "application/problem+json"


async def test_answers_say_how_far_the_tables_are_behind(api: RunningApi, tables: Tables) -> None:
    written = await api.client.post("/channels", headers=BEARER, json={"channels": ["forsen"]})
    await tables.store([settled("forsen", on="aws")])

    await api.until("/channels/forsen", lambda response: response.json()["behind_records"] == 1)

    ends = {partition: offset + 1 for partition, offset in parse_position(written.headers[POSITION_HEADER]).items()}
    await tables.fold_to(ends)
    caught_up = await api.until("/channels/forsen", lambda response: response.json()["behind_records"] == 0)
    assert caught_up.json()["as_of"] is not None
