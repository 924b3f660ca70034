"""Follows `cluster-changes` and `clusters` on a thread of its own and keeps the newest in memory.

The thread parses; the event loop owns the ring and the clusters. At most `BATCHES_MAX` batches wait between the two.
A broker that goes away and comes back is the consumer's own business; when its topic was made anew, the feed starts
a new ring, and streams of the old one are told to reset.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError
from pydantic import ValidationError

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import Cluster, ClusterServers, Rejected, parse_change
from serverchange.state_api.change_ring import RING_CHANGES, ChangeRing, ReceivedChange
from serverchange.state_api.log_watch import BOOTSTRAP_TIMEOUT_MS, RETRY_S, fetch_topic_id
from serverchange.topics import CLUSTER_CHANGES, CLUSTERS
from serverchange.views import ChangePosition, ClusterView, short_topic_id

_log = get_logger("change_feed")

POLL_TIMEOUT_MS: Final = 200
POLL_RECORDS: Final = 1_000
BATCHES_MAX: Final = 4
"""Batches parsed and not yet taken by the event loop: the loop is busy, so the thread waits."""


@dataclass(slots=True)
class _Batch:
    """What one poll brought.

    Attributes:
        ring: set where the topic is another than before, or the first.
        clusters: newest lists by cluster; None: the cluster has no list any more.
        passed: the consumer's positions where it stands behind commit markers.
    """

    ring: ChangeRing | None = None
    changes: list[ReceivedChange] = field(default_factory=list)
    clusters: dict[Cluster, ClusterView | None] = field(default_factory=dict)
    clusters_complete: bool = False
    passed: Sequence[int] | None = None


class ChangeFeed:
    """The newest changes and the clusters' servers; all attributes belong to the event loop.

    Attributes:
        ring: None until Kafka was reached for the first time.
        clusters: by name; complete once `clusters_complete`.
    """

    def __init__(self, settings: KafkaSettings, *, client_id: str, capacity: int = RING_CHANGES) -> None:
        self.ring: ChangeRing | None = None
        self.clusters: dict[Cluster, ClusterView] = {}
        self.clusters_complete = False
        self.closed = False
        self._settings = settings
        self._client_id = client_id
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._advanced = self._loop.create_future()
        self._room = threading.Semaphore(BATCHES_MAX)
        self._stopping = threading.Event()
        self._restarting = threading.Event()
        self._thread = threading.Thread(target=self._run, name="change-feed", daemon=True)

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following and let the streams end; the thread ends by itself and need not be waited for."""
        self._stopping.set()
        self.closed = True
        self._wake()

    def check_topic(self, topic_id: str) -> None:
        """Start anew where the topic's id is no longer the ring's."""
        if self.ring is not None and self.ring.topic != short_topic_id(topic_id):
            self._restarting.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when something was added, the feed was closed, or `timeout_s` is over."""
        await asyncio.wait([self._advanced], timeout=timeout_s)

    def _take(self, batch: _Batch) -> None:
        if batch.ring is not None:
            self.ring = batch.ring
        if self.ring is not None:
            for change in batch.changes:
                self.ring.append(change)
            if batch.passed is not None:
                self.ring.pass_markers(batch.passed)
        for cluster, view in batch.clusters.items():
            if view is None:
                self.clusters.pop(cluster, None)
            else:
                self.clusters[cluster] = view
        self.clusters_complete = self.clusters_complete or batch.clusters_complete
        self._room.release()
        self._wake()

    def _wake(self) -> None:
        advanced, self._advanced = self._advanced, self._loop.create_future()
        advanced.set_result(None)

    def _run(self) -> None:
        follower = _Follower(self._settings, f"{self._client_id}-feed", self._capacity)
        while not self._stopping.is_set():
            try:
                follower.open()
                self._follow(follower)
            except (KafkaError, OSError, RuntimeError, ValueError) as error:
                _log.warning(LogEvent.KAFKA_LOST, reason=f"{type(error).__name__}: {error}")
            finally:
                follower.close()
            self._stopping.wait(RETRY_S)

    def _follow(self, follower: _Follower) -> None:
        self._restarting.clear()
        while not self._stopping.is_set() and not self._restarting.is_set():
            batch = follower.poll()
            while batch is not None and not self._stopping.is_set():
                if self._room.acquire(timeout=RETRY_S):
                    with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                        self._loop.call_soon_threadsafe(self._take, batch)
                    break


class _Follower:
    """The consumer and what it knows of its place (own thread)."""

    def __init__(self, settings: KafkaSettings, client_id: str, capacity: int) -> None:
        self._settings = settings
        self._client_id = client_id
        self._capacity = capacity
        self._changes_topic = topic_name(settings, CLUSTER_CHANGES)
        self._clusters = TopicPartition(topic_name(settings, CLUSTERS), 0)
        self._consumer: Any = None
        self._place: ChangePosition | None = None
        self._next: list[int] = []
        self._fresh: ChangeRing | None = None
        self._clusters_end = 0
        self._clusters_told = False
        self._moved = False

    def open(self) -> None:
        """Connect and stand where the ring ends, or, for another topic, a ring's length before the topic's end."""
        self._consumer = make_consumer(
            self._settings,
            client_id=self._client_id,
            group=None,
            bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
            max_poll_records=POLL_RECORDS,
        )
        found = self._consumer.partitions_for_topic(self._changes_topic)
        if not found:
            raise RuntimeError(f"topic {self._changes_topic} does not exist: serverchange topics apply")
        changes = [TopicPartition(self._changes_topic, partition) for partition in sorted(found)]
        topic = short_topic_id(fetch_topic_id(self._settings, self._changes_topic, client_id=self._client_id))
        ends = self._consumer.end_offsets([*changes, self._clusters])
        if self._place is None or self._place.topic != topic or len(self._next) != len(changes):
            lows = self._consumer.beginning_offsets(changes)
            share = self._capacity // len(changes)
            self._next = [max(lows[partition], ends[partition] - share) for partition in changes]
            self._place = ChangePosition(topic, tuple(self._next))
            self._fresh = ChangeRing(self._place, capacity=self._capacity)
        self._clusters_end, self._clusters_told = ends[self._clusters], False
        self._consumer.assign([*changes, self._clusters])
        for partition, offset in zip(changes, self._next, strict=True):
            self._consumer.seek(partition, offset)
        self._consumer.seek_to_beginning(self._clusters)

    def close(self) -> None:
        if self._consumer is not None:
            with suppress(KafkaError):
                self._consumer.close(timeout_ms=1000)
            self._consumer = None

    def poll(self) -> _Batch | None:
        """Return what came, parsed, or None."""
        batch = _Batch(ring=self._fresh)
        for partition, records in self._consumer.poll(timeout_ms=POLL_TIMEOUT_MS).items():
            if partition == self._clusters:
                batch.clusters.update(_parse_clusters(records))
            else:
                batch.changes.extend(parse_changes(records))
                self._next[partition.partition] = records[-1].offset + 1
                self._moved = True
        if self._moved and not batch.changes:
            self._moved = False
            batch.passed = self._pass_markers()
        if not self._clusters_told:
            batch.clusters_complete = self._clusters_told = self._has_all_clusters()
        worth = batch.changes or batch.clusters or batch.clusters_complete or batch.passed
        if batch.ring is None and not worth:
            return None
        self._fresh = None
        return batch

    def _has_all_clusters(self) -> bool:
        at = self._position(self._clusters)
        return at is not None and at >= self._clusters_end

    def _pass_markers(self) -> list[int]:
        for partition, mine in enumerate(self._next):
            at = self._position(TopicPartition(self._changes_topic, partition))
            self._next[partition] = max(mine, at or 0)
        return list(self._next)

    def _position(self, partition: TopicPartition) -> int | None:
        """Return the consumer's place, None where Kafka must be asked and does not answer: changes are in hand."""
        with suppress(KafkaError):
            return self._consumer.position(partition, timeout_ms=POLL_TIMEOUT_MS)  # type: ignore[no-any-return]
        return None


def parse_changes(records: Sequence[Any]) -> list[ReceivedChange]:
    """Return the changes among records of `cluster-changes`; what is none is logged and left out."""
    changes = []
    for record in records:
        try:
            event = parse_change(record.key, record.value)
        except Rejected as error:
            _log.warning(
                LogEvent.RECORD_REFUSED,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                reason=str(error),
            )
            continue
        one_line = b"\n" not in record.value and b"\r" not in record.value
        value = record.value if one_line else event.to_record()
        changes.append(ReceivedChange(record.partition, record.offset, event, value, record.timestamp))
    return changes


def _parse_clusters(records: Sequence[Any]) -> dict[Cluster, ClusterView | None]:
    found: dict[Cluster, ClusterView | None] = {}
    for record in records:
        if record.value is None:
            found[Cluster((record.key or b"").decode("ascii", "replace"))] = None
            continue
        try:
            event = ClusterServers.model_validate_json(record.value)
        except ValidationError:
            _log.warning(LogEvent.RECORD_REFUSED, topic=record.topic, partition=0, offset=record.offset)
            continue
        found[event.subject] = ClusterView(
            cluster=event.subject,
            servers=event.data.servers,
            websocket_servers=event.data.websocket_servers,
            time=event.time,
        )
    return found
