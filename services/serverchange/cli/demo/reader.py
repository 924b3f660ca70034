"""Reads the topics as any subscriber could: the changes, our own fold of the log, and the chat."""

from __future__ import annotations

import re
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.cli.demo.facts import Belief, Decided, Published
from serverchange.cli.faults import UnavailableFault
from serverchange.events import Channel, ChatLine, Rejected, parse_change, parse_channel_event
from serverchange.topics import CHANNEL_EVENTS, CHAT_LINES, CLUSTER_CHANGES, DEAD_LETTERS, Topic
from serverchange.tracker.channel_state import ChannelState, fold

CLIENT_ID: Final = "serverchange-demo"
POLL_MS: Final = 200
READ_TIMEOUT_S: Final = 60.0
"""Longest wait for the end of a topic; the demo's whole log is read in under a second."""

IDS_KEPT: Final = 200_000
"""Message ids that a reader remembers: more than a demo sends, so a repeat at any distance is found."""

_LINE: Final = re.compile(
    r"^@(?:[^ ]*;)?id=(?P<id>[^; ]+)[^ ]* :[^ ]+ PRIVMSG #(?P<channel>[^ ]+) :#(?P<number>\d+) (?P=channel) "
)
"""A numbered line of the simulator, written apart from our IRC codec: the judge must not share its faults."""


def read_topic(settings: KafkaSettings, topic: Topic) -> Iterator[Any]:
    """Yield all records of `topic` up to its end as of now, each partition in order.

    Raises:
        UnavailableFault: the end was not reached in time.
    """
    consumer, ends = _open(settings, topic)
    deadline = time.monotonic() + READ_TIMEOUT_S
    try:
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(timeout_ms=POLL_MS).values():
                yield from records
            if time.monotonic() > deadline:
                raise UnavailableFault(f"the end of {topic.name} was not reached within {READ_TIMEOUT_S:.0f} s")
    finally:
        consumer.close()


def _open(settings: KafkaSettings, topic: Topic) -> tuple[KafkaConsumer, dict[TopicPartition, int]]:
    consumer = make_consumer(settings, client_id=CLIENT_ID, group=None)
    name = topic_name(settings, topic)
    partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    return consumer, dict(consumer.end_offsets(partitions))


def read_changes(settings: KafkaSettings) -> list[Published]:
    """Return all of `cluster-changes`."""
    found = []
    for record in read_topic(settings, CLUSTER_CHANGES):
        change = parse_change(record.key, record.value)
        data = change.data
        found.append(
            Published(
                channel=change.subject,
                what=data.what,
                previous=data.previous,
                cluster=data.cluster,
                generation=data.generation,
                version=data.version,
                at_s=record.timestamp / 1000.0,
            )
        )
    return found


def fold_log(settings: KafkaSettings) -> tuple[dict[Channel, Belief], list[Decided]]:
    """Fold `channel-events` ourselves; return what is believed at the end, and every change decided."""
    states: dict[str, ChannelState | None] = defaultdict(lambda: None)
    decided = []
    for record in read_topic(settings, CHANNEL_EVENTS):
        key = (record.key or b"").decode("ascii", "replace")
        event: Any
        try:
            event = parse_channel_event(record.key, record.value)
        except Rejected as refusal:
            event = refusal
        folded = fold(states[key], event, record.timestamp)
        states[key] = folded.state
        if folded.change is not None:
            decided.append(Decided(folded.change.channel, folded.change.version, folded.change.cluster))
    beliefs = {state.channel: Belief(state.cluster, state.status.value) for state in states.values() if state}
    return beliefs, decided


def count_dead_letters(settings: KafkaSettings) -> int:
    """Return how many records `dead-letters` has."""
    return sum(1 for _ in read_topic(settings, DEAD_LETTERS))


class ChatReader:
    """A reader of `chat-lines` that drops duplicates by message id, and counts each numbered line it is left with."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._consumer, _ = _open(settings, CHAT_LINES)
        self._ids: OrderedDict[str, None] = OrderedDict()
        self.received: Counter[tuple[Channel, int]] = Counter()
        self.records = 0

    def poll(self) -> int:
        """Read what is there now, waiting a moment for more; return how many records came."""
        came = 0
        for records in self._consumer.poll(timeout_ms=POLL_MS).values():
            for record in records:
                self._take(record.value)
                came += 1
        self.records += came
        return came

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _take(self, value: bytes) -> None:
        line = ChatLine.model_validate_json(value).data.line
        match = _LINE.match(line or "")
        if match is None or match["id"] in self._ids:
            return
        self._ids[match["id"]] = None
        if len(self._ids) > IDS_KEPT:
            self._ids.popitem(last=False)
        self.received[Channel(match["channel"]), int(match["number"])] += 1
