"""`changes`: every published change, in order a channel, from a place that the reader keeps."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from kafka.errors import KafkaError

from serverchange.client.change_log import Change, ChangeSieve, why_lost
from serverchange.client.errors import PositionLostError, UnavailableError
from serverchange.client.kafka_topics import DAY_MS, RESUME_DAYS, KafkaAddress, TopicConsumer
from serverchange.events import Rejected
from serverchange.topics import CLUSTER_CHANGES
from serverchange.views import ChangePosition, format_change_id, parse_change_id

POLL_S: Final = 1.0
RETRY_S: Final = 1.0


class Changes:
    """Every change, as an iterator for threads (`for`) and for asyncio (`async for`); it ends when it is closed.

    Made by `changes`:

        with changes("127.0.0.1:9092", since=load_position()) as reader:
            for change in reader:
                handle(change)
                save_position(reader.position)

    Without `since` it starts with the snapshot: the newest change of every channel, then all that happens. Repeats
    are dropped by (generation, version); where versions are missing, `Change.missed` says how many.

    On restart of your process give back the `position` that you kept: the changes after it come, none before. A
    change that you handled without keeping the position comes again. Where going on without loss is impossible
    (the position is older than 29 days, or of another topic) `PositionLostError` is raised: start with `since=None`.
    When Kafka goes away the iterator waits and goes on by itself.

    Args:
        bootstrap_servers: host:port list, comma separated.
        since: a `position` of this class, or an event id of the API's `/changes`; None: the snapshot first.
        from_now: skip the snapshot; only without `since`.
        topic_prefix: as in the fleet's setting `kafka.topic_prefix`.
        kafka_options: further options of kafka-python.

    Raises:
        ValueError: `since` is no position.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        since: str | None = None,
        *,
        from_now: bool = False,
        topic_prefix: str = "",
        **kafka_options: Any,
    ) -> None:
        self._consumer = TopicConsumer(KafkaAddress(bootstrap_servers, topic_prefix, kafka_options), CLUSTER_CHANGES)
        self._sieve = ChangeSieve()
        self._place = None if since is None else _parse(since)
        self._from_now = from_now
        self._offsets: list[int] = []
        self._waiting: deque[tuple[int, int, Change | None]] = deque()
        self._connected = False
        self._closed = False

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Changes:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def __iter__(self) -> Iterator[Change]:
        while not self._closed:
            change = self._next_waiting()
            if change is not None:
                yield change
            else:
                self._fetch(POLL_S)

    async def __aiter__(self) -> AsyncIterator[Change]:
        while not self._closed:
            change = self._next_waiting()
            if change is not None:
                yield change
            else:
                await asyncio.to_thread(self._fetch, POLL_S)

    @property
    def position(self) -> str | None:
        """The place behind the change that was handed out last; None before Kafka was reached."""
        if self._place is None:
            return None
        return format_change_id(self._place.topic, self._offsets)

    @property
    def repeated(self) -> int:
        """Records that were dropped since they were no news."""
        return self._sieve.repeated

    def close(self) -> None:
        """End the iteration and close the connection."""
        self._closed = True
        self._consumer.close()

    def _next_waiting(self) -> Change | None:
        """Return the next change that was fetched and move the place behind it."""
        while self._waiting:
            partition, offset, change = self._waiting.popleft()
            self._offsets[partition] = offset + 1
            if change is not None:
                return change
        return None

    def _fetch(self, timeout_s: float) -> None:
        """Have some more waiting, or none after `timeout_s` (blocking)."""
        try:
            if not self._connected:
                self._connect()
            for partition, records in self._consumer.poll(timeout_s):
                for record in records:
                    self._waiting.append((partition, record.offset, self._sieve.accept(record)))
        except (KafkaError, OSError, UnavailableError):
            if self._closed:
                return
            self._consumer.close()
            self._connected = False
            time.sleep(RETRY_S)

    def _connect(self) -> None:
        consumer = self._consumer
        consumer.connect()
        if self._place is None:
            self._offsets = consumer.ends() if self._from_now else consumer.beginnings()
            self._place = ChangePosition(consumer.topic_id, tuple(self._offsets))
        else:
            self._check(self._place if not self._offsets else ChangePosition(self._place.topic, tuple(self._offsets)))
        consumer.seek(self._offsets)
        self._connected = True

    def _check(self, place: ChangePosition) -> None:
        now_ms = round(time.time() * 1000)
        resumable = self._consumer.offsets_at(now_ms - RESUME_DAYS * DAY_MS)
        reason = why_lost(place, self._consumer.topic_id, self._consumer.ends(), resumable)
        if reason is not None:
            self.close()
            raise PositionLostError(f"{reason}: start with since=None")
        self._offsets = list(place.offsets)


def changes(
    bootstrap_servers: str,
    since: str | None = None,
    *,
    from_now: bool = False,
    topic_prefix: str = "",
    **kafka_options: Any,
) -> Changes:
    """Return an iterator over every change from `since` on; see `Changes` for all of it."""
    return Changes(bootstrap_servers, since, from_now=from_now, topic_prefix=topic_prefix, **kafka_options)


def _parse(since: str) -> ChangePosition:
    try:
        return parse_change_id(since)
    except Rejected as error:
        raise ValueError(str(error)) from error
