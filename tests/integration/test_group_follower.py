"""A follower has the whole topic at `CaughtUp`, transaction markers at its end or not, and survives its neighbours."""

from __future__ import annotations

import itertools
import queue
import time
from dataclasses import dataclass, field

import pytest

from serverchange.adapters.kafka import group_follower
from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.group_assignments import assigned_partitions
from serverchange.adapters.kafka.group_follower import (
    Assigned,
    CaughtUp,
    Fetched,
    FollowerEvent,
    GroupFollower,
    Membership,
    Revoked,
)
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CLUSTER_CHANGES

WAIT_S = 30
CHANNELS = [f"channel_{number}" for number in range(40)]


@dataclass
class Member:
    """A follower that reads every partition it gets from the beginning."""

    settings: KafkaSettings
    name: str
    instance: str | None = None
    keys: list[bytes] = field(default_factory=list)
    caught_up: set[int] = field(default_factory=set)
    owned: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._events: queue.SimpleQueue[FollowerEvent] = queue.SimpleQueue()
        self._tickets = itertools.count()
        membership = Membership(CLUSTER_CHANGES, "shards", self.name, self.instance)
        self.follower = GroupFollower(self.settings, membership, deliver=self._events.put)
        self.follower.start()

    def step(self) -> None:
        event = self._events.get(timeout=WAIT_S)
        match event:
            case Assigned(partitions):
                self.owned |= partitions
                for partition in partitions:
                    self.follower.position(partition, None, next(self._tickets))
            case Revoked(partitions):
                self.owned -= partitions
                self.caught_up -= partitions
            case Fetched(records):
                self.keys.extend(record.key or b"" for record in records)
                self.follower.taken()
            case CaughtUp(partition, _):
                self.caught_up.add(partition)

    def until_caught_up(self, partitions: int) -> None:
        while len(self.caught_up) < partitions:
            self.step()


def write(settings: KafkaSettings, *, transactional: bool) -> None:
    options = {"transactional_id": f"{settings.topic_prefix}test"} if transactional else {}
    producer = make_producer(settings, client_id="test", **options)
    if transactional:
        producer.init_transactions()
        producer.begin_transaction()
    for channel in CHANNELS:
        producer.send(topic_name(settings, CLUSTER_CHANGES), key=channel.encode(), value=b"{}")
    if transactional:
        producer.commit_transaction()
    producer.close()


@pytest.mark.parametrize("transactional", [False, True])
def test_a_follower_is_caught_up_when_it_has_everything(kafka: KafkaSettings, transactional: bool) -> None:
    write(kafka, transactional=transactional)
    member = Member(kafka, "one")
    member.until_caught_up(kafka.partitions)
    assert sorted(member.keys) == sorted(channel.encode() for channel in CHANNELS)
    member.follower.stop(WAIT_S)


def test_a_second_member_takes_half_and_the_first_keeps_the_rest(kafka: KafkaSettings) -> None:
    first = Member(kafka, "one")
    first.until_caught_up(kafka.partitions)
    second = Member(kafka, "two")
    while len(first.owned) > kafka.partitions // 2:
        first.step()
    second.until_caught_up(kafka.partitions // 2)
    assert first.owned | second.owned == set(range(kafka.partitions))
    assert not first.owned & second.owned
    first.follower.stop(WAIT_S)
    second.follower.stop(WAIT_S)


def test_a_successor_with_the_same_instance_has_the_same_partitions(kafka: KafkaSettings) -> None:
    first, other = Member(kafka, "one", "shard-1"), Member(kafka, "other", "shard-2")
    while len(first.owned) != kafka.partitions // 2 or len(other.owned) != kafka.partitions // 2:
        (first if len(first.owned) > kafka.partitions // 2 or not first.owned else other).step()
    before = set(first.owned)
    first.follower.stop(WAIT_S)
    successor = Member(kafka, "one again", "shard-1")
    successor.until_caught_up(len(before))
    assert successor.owned == before
    successor.follower.stop(WAIT_S)
    other.follower.stop(WAIT_S)


def test_a_member_with_an_instance_that_is_told_to_leave_gives_its_partitions_to_the_others_at_once(
    kafka: KafkaSettings,
) -> None:
    lasting = kafka.model_copy(update={"session_timeout_s": 45})  # so that it is not the session's end that gives them
    first, other = Member(lasting, "one", "shard-1"), Member(lasting, "other", "shard-2")
    while len(first.owned) != kafka.partitions // 2 or len(other.owned) != kafka.partitions // 2:
        (first if len(first.owned) > kafka.partitions // 2 or not first.owned else other).step()
    first.follower.stop(WAIT_S, leave=True)
    other.until_caught_up(kafka.partitions)
    other.follower.stop(WAIT_S)


def test_a_member_that_leaves_does_not_put_its_successor_out(kafka: KafkaSettings) -> None:
    first = Member(kafka, "one", "shard-1")
    first.until_caught_up(kafka.partitions)
    successor = Member(kafka, "one", "shard-1")
    successor.until_caught_up(kafka.partitions)
    first.follower.stop(WAIT_S, leave=True)
    held = assigned_partitions(kafka, group="shards", topic=CLUSTER_CHANGES, client_id="test")
    assert held == frozenset(range(kafka.partitions))
    successor.follower.stop(WAIT_S)


def test_the_answer_to_a_join_is_taken_though_the_poll_that_asked_is_over(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[FollowerEvent] = []
    session = group_follower._Session(kafka, Membership(CLUSTER_CHANGES, "shards", "one"), delivered.append)
    deadline_s = time.monotonic() + WAIT_S
    while not delivered:
        session.poll()
    coordinator = session._consumer._coordinator
    monkeypatch.setattr(group_follower, "POLL_MS", 0)
    # Metadata that differ make the leader join again; what it then assigns by is what it has, so they agree once more.
    coordinator._metadata_snapshot = {}
    first = coordinator.group_metadata().generation_id
    while coordinator.group_metadata().generation_id == first or not coordinator.stable():
        session.poll()
        assert time.monotonic() < deadline_s
    assert delivered == [Assigned(frozenset(range(kafka.partitions)))]
    session.close()
