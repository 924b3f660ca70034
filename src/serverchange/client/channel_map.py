"""`ChannelMap`: where every channel is, in memory, kept up to date from `cluster-changes`."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from kafka.errors import KafkaError

from serverchange.client.change_log import Change, ChannelTable
from serverchange.client.errors import UnavailableError
from serverchange.client.kafka_topics import KafkaAddress, TopicConsumer
from serverchange.client.placed import Placed
from serverchange.events import Channel, Rejected, parse_channel
from serverchange.topics import CLUSTER_CHANGES

_log = logging.getLogger("serverchange.client")

POLL_S: Final = 0.2
RETRY_S: Final = 1.0
ASK_ENDS_S: Final = 1.0
"""How often the topic's ends are asked for: what `age_s` and `lag_records` rest on."""

CHECK_TOPIC_S: Final = 30.0
"""How often the topic's identity is checked; a topic made anew is read from its beginning."""

OnChange = Callable[[Change, Placed | None], None]
"""Called with a change and what was so before it (None: the channel is new to this map)."""


@dataclass(slots=True)
class _Progress:
    """Where the reading thread is (own thread writes, others read single members)."""

    topic_id: str = ""
    offsets: list[int] | None = None
    ends: list[int] | None = None
    complete_at_s: float | None = None
    last_error: str = "not connected yet"


class ChannelMap(Mapping[str, Placed]):
    """Where every channel is: first the snapshot, then every change as it happens.

    Use it as a context manager, with `with` in threads or with `async with` in asyncio:

        async with ChannelMap("127.0.0.1:9092") as channels:
            await channels.ready()
            channels["forsen"].cluster

    Before it is ready it holds part of the channels. Names are taken as people type them (`#Forsen`). Untracked
    channels stay, with `tracked` false. Reading never waits for Kafka; `age_s` and `lag_records` say how old it is.

    On restart of your process the map is read again from the compacted topic (a million channels in some ten
    seconds), and callbacks are called only for what happens after `ready`: a move that happened while you were down
    is in the snapshot, not in a callback. To handle every change use `changes`, which resumes. When Kafka goes away
    the map stays as it is and goes on by itself when Kafka is back.

    Args:
        bootstrap_servers: host:port list, comma separated.
        on_change: called for each change after `ready`, in version order a channel: in the event loop with
            `async with`, else in the reading thread. An exception in it is reported and changes nothing.
        topic_prefix: as in the fleet's setting `kafka.topic_prefix`.
        kafka_options: further options of kafka-python, e.g. `security_protocol` and credentials.
    """

    def __init__(
        self, bootstrap_servers: str, *, on_change: OnChange | None = None, topic_prefix: str = "", **kafka_options: Any
    ) -> None:
        self._address = KafkaAddress(bootstrap_servers, topic_prefix, kafka_options)
        self._on_change = on_change
        self._table = ChannelTable()
        self._progress = _Progress()
        self._ready: Future[None] = Future()
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="serverchange-map", daemon=True)

    def __enter__(self) -> ChannelMap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    async def __aenter__(self) -> ChannelMap:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)

    def __getitem__(self, name: str) -> Placed:
        found = self._table.channels.get(Channel(name))
        if found is None:
            with suppress(Rejected):
                found = self._table.channels.get(parse_channel(name))
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._table.channels))

    def __len__(self) -> int:
        return len(self._table.channels)

    async def ready(self) -> None:
        """Return once the map holds all that the topic held when it was opened."""
        await asyncio.shield(asyncio.wrap_future(self._ready))

    def wait_ready(self, timeout_s: float) -> None:
        """Return once the map holds all that the topic held when it was opened.

        Raises:
            UnavailableError: it does not after `timeout_s`; says what Kafka answered last.
        """
        try:
            self._ready.result(timeout_s)
        except TimeoutError:
            raise UnavailableError(f"not ready after {timeout_s:g} s: {self._progress.last_error}") from None

    @property
    def age_s(self) -> float | None:
        """Seconds since the map was last known to hold everything; None: never yet."""
        complete_at_s = self._progress.complete_at_s
        return None if complete_at_s is None else time.monotonic() - complete_at_s

    @property
    def lag_records(self) -> int | None:
        """Records that Kafka has and the map has not, as of at most a second ago; None while Kafka is away."""
        offsets, ends = self._progress.offsets, self._progress.ends
        if offsets is None or ends is None:
            return None
        return sum(max(0, end - mine) for mine, end in zip(offsets, ends, strict=True))

    def _run(self) -> None:
        consumer = TopicConsumer(self._address, CLUSTER_CHANGES)
        while not self._stopping.is_set():
            try:
                consumer.connect()
                self._follow(consumer)
            except (KafkaError, OSError, UnavailableError, ValueError) as error:
                self._progress.ends = None
                self._progress.last_error = f"{type(error).__name__}: {error}"
                self._stopping.wait(RETRY_S)
            finally:
                consumer.close()

    def _follow(self, consumer: TopicConsumer) -> None:
        """Read from where the map stands, or all of it where the topic is another, until it is another again."""
        progress = self._progress
        known = progress.topic_id == consumer.topic_id and progress.offsets is not None
        if not known:
            progress.topic_id, progress.offsets = consumer.topic_id, None
            table, offsets = ChannelTable(), consumer.beginnings()
            if not self._load(consumer, table, offsets):
                return
            self._replace(table)
            progress.offsets = offsets
        offsets = list(progress.offsets or ())
        consumer.seek(offsets)
        self._keep(consumer, offsets)

    def _load(self, consumer: TopicConsumer, table: ChannelTable, offsets: list[int]) -> bool:
        """Read the snapshot into `table`, up to the ends of now; False: stopped before."""
        ends = consumer.ends()
        consumer.seek(offsets)
        while not self._stopping.is_set():
            for partition, records in consumer.poll(POLL_S):
                table.load(records)
                offsets[partition] = records[-1].offset + 1
            if all(mine >= end for mine, end in zip(offsets, ends, strict=True)):
                return True
            if any(mine + 1 >= end > mine for mine, end in zip(offsets, ends, strict=True)):
                offsets[:] = map(max, offsets, consumer.positions())  # the last offset may be a commit marker
        return False

    def _keep(self, consumer: TopicConsumer, offsets: list[int]) -> None:
        """Apply what comes, and ask for the ends now and then, until stopped or the topic is another."""
        progress = self._progress
        asked_at_s, checked_at_s = float("-inf"), time.monotonic()
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if now_s - checked_at_s >= CHECK_TOPIC_S:
                checked_at_s = now_s
                if consumer.fetch_topic_id() != progress.topic_id:
                    return
            if now_s - asked_at_s >= ASK_ENDS_S:
                asked_at_s = now_s
                progress.ends = consumer.ends()
            for partition, records in consumer.poll(POLL_S):
                for record in records:
                    self._apply(record)
                offsets[partition] = records[-1].offset + 1
                progress.offsets = list(offsets)
            if progress.ends is not None and (self.lag_records or 0) > 0:
                offsets[:] = map(max, offsets, consumer.positions())
                progress.offsets = list(offsets)
            if self.lag_records == 0:
                progress.complete_at_s = asked_at_s
                if not self._ready.done():
                    self._ready.set_result(None)

    def _apply(self, record: Any) -> None:
        applied = self._table.apply(record)
        if applied is not None and self._ready.done():
            self._tell(*applied)

    def _replace(self, table: ChannelTable) -> None:
        """Show the new snapshot at once, and tell what differs where an older one was shown."""
        before, self._table = self._table, table
        if self._ready.done():
            for channel, placed in list(table.channels.items()):
                known = before.channels.get(channel)
                if known != placed:
                    self._tell(Change(channel, placed), known)

    def _tell(self, change: Change, before: Placed | None) -> None:
        if self._on_change is None:
            return
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(self._on_change, change, before)
            return
        try:
            self._on_change(change, before)
        except Exception:  # noqa: BLE001  (the callback's fault must not end the reading)
            _log.exception("a callback for a change of %s failed", change.channel)
