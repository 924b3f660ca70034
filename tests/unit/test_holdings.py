"""A partition's channels pass from one shard to another: dialogues over the topic."""

import random

import pytest

from serverchange.events import HoldingAction
from serverchange.tracker.holdings import (
    CHANNELS_PER_RECORD,
    Assigned,
    Confirmed,
    Emptied,
    GiveUp,
    Heard,
    Holding,
    Publish,
    Revoked,
    Taking,
    replay,
    step,
)

TAKING, CONFIRMED, RELEASED = HoldingAction.TAKING, HoldingAction.CONFIRMED, HoldingAction.RELEASED


def run(holding, *events):
    """All commands of these events, and where they lead."""
    commands = []
    for event in events:
        holding, more = step(holding, event)
        commands += more
    return holding, commands


def holder(us="a", generation=1):
    holding, _ = run(Holding(us), Assigned(), Heard(TAKING, Taking(us, generation)))
    assert holding.held
    return holding


def test_a_taker_claims_and_confirms_once_its_claim_is_read_back():
    holding, commands = run(Holding("a"), Assigned(), Confirmed(("x",)))
    assert commands == [Publish(TAKING, 1)]
    holding, commands = run(holding, Heard(TAKING, Taking("a", 1)), Confirmed(("y",)))
    assert commands == [Publish(CONFIRMED, 1, ("x",)), Publish(CONFIRMED, 1, ("y",))]


def test_confirmations_are_written_in_pieces():
    _, commands = run(holder(), Confirmed(tuple(f"c{number}" for number in range(1201))))
    assert [len(command.channels) for command in commands] == [CHANNELS_PER_RECORD, CHANNELS_PER_RECORD, 201]


def test_revoked_is_not_part():
    holding, commands = run(holder(), Revoked())
    assert commands == []
    assert holding.giving


def test_a_giver_parts_what_the_latest_taker_confirms_and_says_when_it_is_through():
    holding, commands = run(
        holder(),
        Revoked(),
        Heard(TAKING, Taking("b", 2)),
        Heard(CONFIRMED, Taking("b", 2), ("x", "y")),
        Emptied(),
    )
    assert commands == [GiveUp(("x", "y")), Publish(RELEASED, 2)]
    assert not holding.giving


def test_a_successor_with_the_same_group_instance_is_learned_of_from_its_claim():
    _, commands = run(holder(), Heard(TAKING, Taking("b", 2)), Heard(CONFIRMED, Taking("b", 2), ("x",)))
    assert commands == [GiveUp(("x",))]


@pytest.mark.parametrize(
    "quoted", [Taking("b", 1), Taking("c", 2), Taking("a", 1)], ids=["older claim", "other process", "our own"]
)
def test_a_confirmation_that_does_not_quote_the_latest_claim_parts_nothing(quoted):
    _, commands = run(holder(), Revoked(), Heard(TAKING, Taking("b", 2)), Heard(CONFIRMED, quoted, ("x",)))
    assert commands == []


def test_getting_the_partition_back_cancels_the_giving():
    holding, commands = run(
        holder(), Revoked(), Heard(TAKING, Taking("b", 2)), Assigned(), Heard(CONFIRMED, Taking("b", 2), ("x",))
    )
    assert commands == [Publish(TAKING, 3)]
    assert run(holding, Heard(TAKING, Taking("a", 3)))[0].held


def test_a_claim_on_its_way_stands_behind_what_is_heard_meanwhile():
    holding, _ = run(Holding("a"), Assigned(), Heard(TAKING, Taking("b", 1)))
    assert not holding.giving
    assert run(holding, Heard(TAKING, Taking("a", 1)))[0].held


def test_of_two_givers_both_obey_the_latest_taker():
    for us in ("a", "b"):
        _, commands = run(
            holder(us), Revoked(), Heard(TAKING, Taking("c", 2)), Heard(TAKING, Taking("d", 3)),
            Heard(CONFIRMED, Taking("c", 2), ("x",)), Heard(CONFIRMED, Taking("d", 3), ("x",)),
        )  # fmt: skip
        assert commands == [GiveUp(("x",))]


def test_a_new_process_knows_the_latest_claim_and_none_of_its_own():
    past = [Heard(TAKING, Taking("a", 4)), Heard(CONFIRMED, Taking("a", 4), ("x",)), Heard(TAKING, Taking("b", 5))]
    holding = replay("c", past)
    assert (holding.latest, holding.held, holding.giving) == (Taking("b", 5), False, False)
    assert run(holding, Assigned())[1] == [Publish(TAKING, 6)]


class Shard:
    """A process that joins what it claims and gives what another confirms."""

    def __init__(self, name, topic):
        self.holding, self.topic, self.position = Holding(name), topic, 0
        self.joined, self.wanting = set(), False

    def tell(self, event):
        self.holding, commands = step(self.holding, event)
        for command in commands:
            if isinstance(command, GiveUp):
                self.joined -= set(command.channels)
                if not self.joined:
                    self.tell(Emptied())
            else:
                taking = (
                    self.holding.latest if command.action is RELEASED else Taking(self.holding.us, command.generation)
                )
                self.topic.append(Heard(command.action, taking, command.channels))

    def read(self):
        if self.position < len(self.topic):
            self.position += 1
            self.tell(self.topic[self.position - 1])

    def assign(self):
        self.wanting = True
        self.tell(Assigned())
        self.tell(Confirmed(tuple(sorted(self.joined))))

    def revoke(self):
        self.wanting = False
        self.tell(Revoked())

    def join(self, channel):
        if self.wanting and self.holding.ours is not None and channel not in self.joined:
            self.joined.add(channel)
            self.tell(Confirmed((channel,)))


def test_a_taker_killed_half_way_leaves_one_owner_a_channel():
    """discord-cross-hosting 5, discord-hybrid-sharding 62: both answered after a rolling restart, or none."""
    topic = []
    giver, taker = Shard("a", topic), Shard("b", topic)

    def both_read():
        for shard in (giver, taker) * len(topic):
            shard.read()

    giver.assign()
    for channel in "xy":
        giver.join(channel)
    giver.revoke()
    taker.assign()
    both_read()
    assert giver.joined == {"x", "y"}
    taker.join("x")
    both_read()
    assert (giver.joined, taker.joined) == ({"y"}, {"x"})
    taker.joined.clear()  # kill -9; the group gives the partition back
    giver.assign()
    assert "y" in giver.joined
    giver.join("x")
    successor = Shard("b2", topic)
    for shard in (giver, successor) * len(topic):
        shard.read()
    assert giver.holding.held
    assert (giver.joined, successor.joined) == ({"x", "y"}, set())


@pytest.mark.parametrize("seed", range(100))
def test_whatever_the_group_does_no_channel_is_left_and_in_the_end_one_has_each(seed):
    draw, topic = random.Random(seed), []
    shards = [Shard(name, topic) for name in "abc"]
    channels = ["x", "y", "z"]
    owner, covered = shards[0], set()
    owner.assign()
    for _ in range(120):
        action = draw.choice(["read", "read", "read", "join", "join", "move"])
        if action == "read":
            draw.choice(shards).read()
        elif action == "join":
            channel = draw.choice(channels)
            owner.join(channel)
        elif action == "move":
            taker = draw.choice([shard for shard in shards if shard is not owner])
            if draw.random() < 0.7:
                owner.revoke()
            taker.assign()
            owner = taker
        covered |= {channel for shard in shards for channel in shard.joined}
        assert all(any(channel in shard.joined for shard in shards) for channel in covered), f"seed {seed}"
    for channel in channels:
        owner.join(channel)
    for _ in range(3):
        for shard in shards:
            while shard.position < len(topic):
                shard.read()
    assert owner.joined == set(channels)
    assert all(not shard.joined for shard in shards if shard is not owner), f"seed {seed}"
