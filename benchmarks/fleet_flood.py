"""How many chat lines a second does one shard carry into `chat-lines`? The last figure of `bench fleet`.

A chat server that does nothing but talk stands in for the platform, so that the shard is what is measured: its lines
are written before the clock starts, with the tags of a real one, each with its own id and number, and it sends as fast
as the shard's links take them. The judge is Kafka: the clock stops when the topic's end has moved by as many records as
lines were sent, and every line is read back.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from fleet_world import Decisions, ShardProcess, line_number, process_environment
from kafka import TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.events import Channel, ChannelKind, ChatLine, Cluster
from serverchange.irc.line import parse_line
from serverchange.irc.server import ServerDialogue
from serverchange.irc.server_events import JoinRequested, LoginRequested, PartRequested
from serverchange.simulator.chat_lines import ChatWriter
from serverchange.simulator.migration import Cohort
from serverchange.simulator.world import Profile
from serverchange.topics import CHAT_LINES

MAIN: Final = Cluster("main")
CHANNELS: Final = 300
LINES: Final = 60_000
CHUNK_LINES: Final = 20
STUCK_AFTER_S: Final = 20.0
LOOK_S: Final = 0.05


class Talker:
    """A chat server on one port: welcomes everyone, confirms every JOIN, and talks once it is told to."""

    def __init__(self) -> None:
        self.joined: dict[Channel, asyncio.StreamWriter] = {}
        self.all_joined = asyncio.Event()
        self._wanted = 0

    async def serve(self, wanted: int) -> tuple[asyncio.Server, int]:
        """Listen; `all_joined` is set once so many channels were joined."""
        self._wanted = wanted
        server = await asyncio.start_server(self._talk_to, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    async def _talk_to(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialogue = ServerDialogue()
        while data := await reader.read(65_536):
            events = dialogue.receive_data(data)
            while events:
                event = events.pop(0)
                match event:
                    case LoginRequested():
                        events += dialogue.accept_login()
                    case JoinRequested(channels):
                        for channel in channels:
                            dialogue.confirm_join(channel, "1")
                            self.joined[channel] = writer
                    case PartRequested(channels):
                        for channel in channels:
                            dialogue.confirm_part(channel)
            writer.write(dialogue.data_to_send())
            await writer.drain()
            if len(self.joined) >= self._wanted:
                self.all_joined.set()
        writer.close()


@dataclass(frozen=True, slots=True)
class Speech:
    """What is said: chunks of whole lines, by channel, in the order of time."""

    chunks: list[tuple[Channel, bytes]]
    numbers: dict[Channel, int]

    @property
    def count(self) -> int:
        """Lines in all."""
        return sum(self.numbers.values())


def write_speech(channels: list[Channel], lines: int) -> Speech:
    """Return so many lines, each channel's numbered from 1, a few of one channel at a time."""
    writer = ChatWriter(uuid.uuid4())
    numbers: defaultdict[Channel, int] = defaultdict(int)
    chunks = []
    for start in range(0, lines, CHUNK_LINES):
        channel = channels[start // CHUNK_LINES % len(channels)]
        profile = Profile(channel, "1", ChannelKind.CHAT, Cohort.EVERYONE, (), MAIN, 1.0)
        said = []
        for _ in range(min(CHUNK_LINES, lines - start)):
            numbers[channel] += 1
            said.append(writer.numbered(profile, numbers[channel], time.time()).tagged)
        chunks.append((channel, b"".join(said)))
    return Speech(chunks, dict(numbers))


class _Topic:
    """`chat-lines` as Kafka has it; every call blocks."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._consumer = make_consumer(kafka, group=None, client_id="bench-flood")
        name = topic_name(kafka, CHAT_LINES)
        self._partitions = [TopicPartition(name, number) for number in self._consumer.partitions_for_topic(name)]
        self._consumer.assign(self._partitions)

    def end(self) -> int:
        """Records ever appended."""
        return sum(self._consumer.end_offsets(self._partitions).values())

    def read(self) -> dict[Channel, list[int]]:
        """Return the numbers of all numbered lines, by channel, in the topic's order."""
        numbers: defaultdict[Channel, list[int]] = defaultdict(list)
        self._consumer.seek_to_beginning(*self._partitions)
        left = self.end()
        while left > 0:
            for records in self._consumer.poll(timeout_ms=1_000).values():
                for record in records:
                    left -= 1
                    event = ChatLine.model_validate_json(record.value)
                    line = parse_line((event.data.line or "").encode())
                    if line.command == "PRIVMSG" and (number := line_number(line.params[-1])) is not None:
                        numbers[event.subject].append(number)
        return dict(numbers)

    def close(self) -> None:
        """End the connection."""
        self._consumer.close()


async def measure_flood(
    settings: Settings, folder: Path, tell: Callable[[str], None], *, lines: int = LINES
) -> dict[str, Any]:
    """Return `lines_per_s` of one shard, and what became of the lines; on topics of its own."""
    kafka = settings.kafka.model_copy(update={"topic_prefix": f"{settings.kafka.topic_prefix}flood."})
    own = settings.model_copy(update={"kafka": kafka})
    apply_topics(kafka)
    channels = [Channel(f"flood_{number:03}") for number in range(CHANNELS)]
    talker, topic, decisions = Talker(), _Topic(kafka), Decisions(kafka)
    server, port = await talker.serve(len(channels))
    shard = ShardProcess(
        "flood",
        process_environment(
            own,
            PLATFORM_SEEDS=json.dumps({MAIN: [f"127.0.0.1:{port}"]}),
            PLATFORM_ALLOWED_NETWORKS=json.dumps(["127.0.0.1/32"]),
            PLATFORM_TRANSPORT="plain",
            RECONNECTOR_ACCOUNT_CLASS="verified",
            RECONNECTOR_LINES_PER_LINK="1000000",
        ),
        folder / "flood.log",
    )
    try:
        await asyncio.to_thread(decisions.publish, decisions.prepare(channels, MAIN, 1))
        await shard.start()
        await shard.ready()
        await asyncio.wait_for(talker.all_joined.wait(), 120)
        speech = write_speech(channels, lines)
        before = await asyncio.to_thread(topic.end)
        began = time.monotonic()
        saying = asyncio.create_task(_say(talker, speech))
        ended = await _wait_for_end(topic, before + speech.count)
        await saying
        read = await asyncio.to_thread(topic.read)
    finally:
        await shard.end()
        server.close()
        topic.close()
        decisions.close()
    right = {channel: list(range(1, count + 1)) for channel, count in speech.numbers.items()}
    missing = sum(len(set(numbers) - set(read.get(channel, ()))) for channel, numbers in right.items())
    rate = round((speech.count - missing) / (ended - began))
    tell(f"flood: {speech.count} lines, {rate} a second, {missing} missing")
    return {"lines_per_s": rate, "flood_lines": speech.count, "flood_missing": missing, "flood_in_order": read == right}


async def _say(talker: Talker, speech: Speech) -> None:
    for channel, said in speech.chunks:
        writer = talker.joined[channel]
        writer.write(said)
        await writer.drain()


async def _wait_for_end(topic: _Topic, end: int) -> float:
    """Return when the topic's end was seen to get there, or moved for the last time."""
    reached, at = 0, time.monotonic()
    while True:
        now_at = await asyncio.to_thread(topic.end)
        if now_at != reached:
            reached, at = now_at, time.monotonic()
        if reached >= end or time.monotonic() > at + STUCK_AFTER_S:
            return at
        await asyncio.sleep(LOOK_S)
