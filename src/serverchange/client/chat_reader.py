"""`chat_lines`: the chat that the fleet's shards received, each line once."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kafka.errors import KafkaError
from pydantic import ValidationError

from serverchange.client.errors import UnavailableError
from serverchange.client.kafka_topics import KafkaAddress, TopicConsumer
from serverchange.events import Channel, ChatLine, Cluster
from serverchange.irc.line import Line, LineError, parse_line
from serverchange.topics import CHAT_LINES
from serverchange.tracker.dedupe import WINDOW_S, LineMemory, StateMemory
from serverchange.tracker.handover_words import LinkId

POLL_S: Final = 1.0
RETRY_S: Final = 1.0
STATE_COMMANDS: Final = frozenset({"ROOMSTATE", "USERSTATE"})


@dataclass(frozen=True, slots=True)
class ReceivedLine:
    """One line of chat.

    Attributes:
        raw: the bytes as the server sent them.
        line: the same, taken apart: `line.command`, `line.tags`, `line.params`.
        cluster: where the shard heard it.
        shard: who heard it.
        received_at: when, by the shard's clock.
    """

    channel: Channel
    raw: bytes
    line: Line
    cluster: Cluster
    shard: str
    received_at: datetime


class LineSieve:
    """Lets each line through once. Pure: time comes with the records.

    Two shards, or two links of one, bring a line twice during a handover; a shard that Kafka did not answer writes
    its lines again.
    """

    def __init__(self) -> None:
        self.refused = 0
        self.repeated = 0
        self._lines = LineMemory()
        self._states = StateMemory()

    def accept(self, value: bytes | None, appended_ms: int) -> ReceivedLine | None:
        """Return the line in a record, or None where it is a repeat or no line."""
        try:
            event = ChatLine.model_validate_json(value or b"")
            raw = _raw(event)
            line = parse_line(raw)
        except (ValidationError, LineError, binascii.Error):
            self.refused += 1
            return None
        data = event.data
        if line.command in STATE_COMMANDS:
            new = self._states.arrive(event.subject, line)
        else:
            link = LinkId(zlib.crc32(f"{data.shard}/{data.cluster}".encode()))
            new = self._lines.arrive(event.subject, line, link, appended_ms / 1000).new
        if not new:
            self.repeated += 1
            return None
        return ReceivedLine(event.subject, raw, line, data.cluster, data.shard, data.received_at)


def _raw(event: ChatLine) -> bytes:
    data = event.data
    if data.line is not None:
        return data.line.encode()
    return base64.b64decode(data.line_base64 or "", validate=True)


class ChatLines:
    """Every line of chat once, as an iterator for threads (`for`) and for asyncio (`async for`).

    Made by `chat_lines`:

        with chat_lines("127.0.0.1:9092") as lines:
            for received in lines:
                if received.line.command == "PRIVMSG": ...

    It starts now, or at `since` (the topic keeps an hour). What it drops: the copies that a handover, two shards or a
    repeated write made, by message id, or by command, channel, time, target and text where a line has no id. So
    that it knows what came just before it started, it reads the 60 s before without handing them out.

    On restart of your process give `since` a little before the `received_at` that you handled last: lines of that
    overlap come again, no line is lost. When Kafka goes away the iterator waits and goes on by itself.

    Args:
        bootstrap_servers: host:port list, comma separated.
        since: start there; None: now.
        topic_prefix: as in the fleet's setting `kafka.topic_prefix`.
        kafka_options: further options of kafka-python.
    """

    def __init__(
        self, bootstrap_servers: str, *, since: datetime | None = None, topic_prefix: str = "", **kafka_options: Any
    ) -> None:
        self._consumer = TopicConsumer(KafkaAddress(bootstrap_servers, topic_prefix, kafka_options), CHAT_LINES)
        self._since = since
        self._sieve = LineSieve()
        self._starts: list[int] = []
        self._offsets: list[int] = []
        self._waiting: deque[ReceivedLine] = deque()
        self._connected = False
        self._closed = False

    def __enter__(self) -> ChatLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> ChatLines:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def __iter__(self) -> Iterator[ReceivedLine]:
        while not self._closed:
            if self._waiting:
                yield self._waiting.popleft()
            else:
                self._fetch(POLL_S)

    async def __aiter__(self) -> AsyncIterator[ReceivedLine]:
        while not self._closed:
            if self._waiting:
                yield self._waiting.popleft()
            else:
                await asyncio.to_thread(self._fetch, POLL_S)

    @property
    def repeated(self) -> int:
        """Lines that were dropped as repeats."""
        return self._sieve.repeated

    def open(self) -> None:
        """Connect now, so that what is written from now on is read; iterating does it by itself.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        try:
            self._connect()
        except (KafkaError, OSError) as error:
            self._consumer.close()
            raise UnavailableError(f"Kafka does not answer: {error}") from error

    def close(self) -> None:
        """End the iteration and close the connection."""
        self._closed = True
        self._consumer.close()

    def _fetch(self, timeout_s: float) -> None:
        try:
            if not self._connected:
                self._connect()
            for partition, records in self._consumer.poll(timeout_s):
                self._take(partition, records)
        except (KafkaError, OSError, UnavailableError):
            if self._closed:
                return
            self._consumer.close()
            self._connected = False
            time.sleep(RETRY_S)

    def _take(self, partition: int, records: list[Any]) -> None:
        for record in records:
            received = self._sieve.accept(record.value, record.timestamp)
            if received is not None and record.offset >= self._starts[partition]:
                self._waiting.append(received)
        self._offsets[partition] = records[-1].offset + 1

    def _connect(self) -> None:
        consumer = self._consumer
        consumer.connect()
        if not self._offsets:
            since = self._since or datetime.now(UTC)
            start_ms = round(since.timestamp() * 1000)
            self._starts = consumer.ends() if self._since is None else consumer.offsets_at(start_ms)
            primed = consumer.offsets_at(start_ms - round(WINDOW_S * 1000))
            self._offsets = list(map(min, self._starts, primed))
        consumer.seek(self._offsets)
        self._connected = True


def chat_lines(
    bootstrap_servers: str, *, since: datetime | None = None, topic_prefix: str = "", **kafka_options: Any
) -> ChatLines:
    """Return an iterator over every line of chat, each once; see `ChatLines` for all of it."""
    return ChatLines(bootstrap_servers, since=since, topic_prefix=topic_prefix, **kafka_options)
