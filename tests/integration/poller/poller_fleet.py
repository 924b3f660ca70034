"""Runs pollers in a test, in process or as processes of their own, beside a fold of the log that tests can await."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer
from pydantic import SecretStr

from serverchange.adapters.kafka.clients import make_async_consumer
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.process import Process, Readiness
from serverchange.adapters.settings import PlatformSettings, PollerSettings, ProcessSettings, Settings
from serverchange.events import (
    Channel,
    ChannelEvent,
    ChannelTracked,
    ClusterObserved,
    NoticeReason,
    ServerChangeData,
    ServerChangeReceived,
    TrackedData,
    parse_channel_event,
)
from serverchange.poller.main import poll_platform
from serverchange.topics import CHANNEL_EVENTS, Topic
from serverchange.tracker.channel_state import ChannelState, fold

DEADLINE_S = 30.0
QUICK = {"repeat_after_s": (0.2, 0.4), "freshness_flush_s": 0.1, "time_scale": 50.0}
"""Spacings that a test can wait for; at this scale the schedule scans the streams ten times a second."""

_ids = itertools.count()


def attributes(channel: str) -> dict[str, Any]:
    return {"id": f"test-{next(_ids)}", "source": "test", "time": datetime.now(UTC), "subject": channel}


def tracked(channel: str, *labels: str) -> ChannelTracked:
    return ChannelTracked(**attributes(channel), data=TrackedData(service="test", labels=labels))


def notice(channel: str, *, heard_on: str, version: int, target: str | None = None) -> ServerChangeReceived:
    data = ServerChangeData.model_validate(
        {"heard_on": heard_on, "believed_version": version, "target": target, "reason": NoticeReason.MOVED}
    )
    return ServerChangeReceived(**attributes(channel), data=data)


def with_platform(settings: Settings, url: str, *, name: str = "one", **poller: object) -> Settings:
    """Return the settings of a poller that asks the platform at `url`, quickly."""
    return settings.model_copy(
        update={
            "platform": PlatformSettings(api_url=url, requests_per_second=200.0),
            "poller": PollerSettings.model_validate({**QUICK, **poller}),
            "process": ProcessSettings(name=name, log_format="json"),
        }
    )


@asynccontextmanager
async def running_poller(settings: Settings) -> AsyncIterator[Process]:
    """Run one poller in this process; it is stopped as by SIGTERM. One that fails ends the test with its error."""
    process = Process("poller", settings.process, asyncio.Event(), Readiness())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(poll_platform(settings, process))
        try:
            yield process
        finally:
            process.stopping.set()


@dataclass
class Log:
    """The log as a test sees it: it writes events, folds what it reads, and awaits what it expects."""

    settings: Settings
    publisher: EventPublisher
    events: list[ChannelEvent] = field(default_factory=list)
    states: dict[str, ChannelState] = field(default_factory=dict)
    refused: int = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def write(self, events: Iterable[ChannelEvent]) -> None:
        await self.publisher.publish_all(CHANNEL_EVENTS, [(event.subject, event.to_record()) for event in events])

    async def wait_for(self, reached: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
        async with asyncio.timeout(timeout_s), self.moved:
            await self.moved.wait_for(reached)

    async def settled(self, **clusters: str) -> None:
        """Wait until each channel is verified on its cluster."""

        def reached() -> bool:
            states = [(self.states.get(channel), cluster) for channel, cluster in clusters.items()]
            return all(state is not None and state.verified and state.cluster == to for state, to in states)

        await self.wait_for(reached)

    def observed(self, channel: str) -> list[ClusterObserved]:
        return [event for event in self.events if isinstance(event, ClusterObserved) and event.subject == channel]

    async def follow(self, consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            event = parse_channel_event(record.key, record.value)
            folded = fold(self.states.get(event.subject), event, record.timestamp)
            async with self.moved:
                self.events.append(event)
                self.refused += folded.refused is not None
                if folded.state is not None:
                    self.states[event.subject] = folded.state
                self.moved.notify_all()


@asynccontextmanager
async def followed_log(settings: Settings) -> AsyncIterator[Log]:
    consumer = make_async_consumer(settings.kafka, client_id="test-log", fetch_max_wait_ms=50)
    consumer.subscribe([topic_name(settings.kafka, CHANNEL_EVENTS)])
    await consumer.start()
    async with EventPublisher(settings.kafka, client_id="test") as publisher:
        log = Log(settings, publisher)
        task = asyncio.create_task(log.follow(consumer))
        try:
            yield log
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await consumer.stop()


async def records_until(
    settings: Settings, topic: Topic, enough: Callable[[dict[str, list[dict[str, Any]]]], bool]
) -> dict[str, list[dict[str, Any]]]:
    """Read a topic from its beginning, until `enough` is true of key → data of its events."""
    consumer = make_async_consumer(settings.kafka, client_id="test-topic", fetch_max_wait_ms=50)
    consumer.subscribe([topic_name(settings.kafka, topic)])
    await consumer.start()
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not enough(found):
                record = await consumer.getone()
                found.setdefault(record.key.decode(), []).append(json.loads(record.value)["data"])
    finally:
        await consumer.stop()
    return found


@asynccontextmanager
async def poller_process(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a poller as its own process; whatever is left of it is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from serverchange.adapters.settings import load_settings\n"
        "from serverchange.poller.main import main\n"
        "main(load_settings())",
        env={**os.environ, **environment(settings)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def environment(settings: Settings) -> dict[str, str]:
    """Return the settings of the sections that a poller reads as environment variables."""
    variables: dict[str, str] = {}
    for section in ("kafka", "postgres", "platform", "poller", "process"):
        values = getattr(settings, section)
        for name in values.model_fields_set:
            value = getattr(values, name)
            if value is None:
                continue
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            if not isinstance(value, str):
                value = json.dumps(value, default=str)
            variables[f"SERVERCHANGE_{section}_{name}".upper()] = value
    return variables


def channels(number: int) -> list[Channel]:
    tag = uuid.uuid4().hex[:6]
    return [Channel(f"c{tag}_{index}") for index in range(number)]


def now_ms() -> int:
    return time.time_ns() // 1_000_000
