"""The law of the rule: whatever the order, delay, loss and repetition of records, asking again ends on the truth."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serverchange.events import (
    ChannelDoubted,
    ChannelEvent,
    ChannelKind,
    ChannelPinned,
    ChannelTracked,
    ChannelUnpinned,
    ChannelUntracked,
    ClusterObserved,
    Rejected,
    ServerChangeReceived,
)
from serverchange.tracker.channel_state import Change, ChannelState, Status, fold, would_alter

NOW = datetime(2026, 5, 1, tzinfo=UTC)
T0 = int(NOW.timestamp() * 1000)
ASKS_MAX = 8
"""A channel is settled by three doubts and one agreeing lookup at most, whatever came before."""


def event(model: type[Any], **data: Any) -> Any:
    return model.model_validate(
        {"id": f"e{next(_ids)}", "source": "test", "time": NOW, "subject": "forsen", "data": data}
    )


_ids = itertools.count(1)


def observed(cluster: str, asked_after: int, at: datetime = NOW) -> ClusterObserved:
    result: ClusterObserved = event(
        ClusterObserved, cluster=cluster, asked_after=asked_after, asked_at=at, answered_at=at, via="servers"
    )
    return result


def notice(heard_on: str, target: str | None, version: int) -> ServerChangeReceived:
    result: ServerChangeReceived = event(
        ServerChangeReceived, heard_on=heard_on, target=target, believed_version=version, reason="moved"
    )
    return result


def folded(
    records: Sequence[ChannelEvent | Rejected], state: ChannelState | None = None
) -> tuple[ChannelState | None, list[Change]]:
    changes = []
    for number, record in enumerate(records):
        result = fold(state, record, T0 + number * 1_000)
        state = result.state
        if result.change is not None:
            changes.append(result.change)
    return state, changes


def ask_until_verified(state: ChannelState, truth: str, at_ms: int = T0 + 3_600_000) -> ChannelState:
    for asks in range(ASKS_MAX):
        if not state.needs_lookup:
            return state
        after = fold(state, observed(truth, asked_after=state.seq), at_ms + asks).state
        assert after is not None
        state = after
    raise AssertionError(f"not verified after {ASKS_MAX} lookups: {state}")


# A channel found and verified on main (seq 3, version 1) that moved to aws: what may still be under way, any of it
# late, lost or repeated. Some of it must tell of the move.
NEWS = (
    lambda: observed("aws", asked_after=3),
    lambda: notice("main", "aws", 1),
    lambda: notice("main", None, 1),
    lambda: notice("main", "aws", 0),
)
NOISE = (
    lambda: observed("main", asked_after=3),
    lambda: observed("main", asked_after=2),
    lambda: observed("main", asked_after=0),
    lambda: event(ChannelDoubted, reason="silent"),
    lambda: notice("event", "event2", 1),
    lambda: Rejected("not JSON"),
    lambda: event(ChannelTracked, service="demo", labels=("staff",)),
)


def test_every_order_of_a_few_records_ends_on_the_same_cluster():
    for news in NEWS:
        for first, second in itertools.combinations((*NOISE, *NEWS), 2):
            pool = [news(), first(), second()]
            for order in itertools.permutations(pool):
                state, _ = folded([*_found_on_main(), *order])
                assert state is not None
                assert ask_until_verified(state, "aws").cluster == "aws", order


@settings(deadline=None)
@given(
    news=st.lists(st.sampled_from(NEWS), min_size=1, max_size=4),
    noise=st.lists(st.sampled_from(NOISE), max_size=8),
    repeats=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_late_lost_and_repeated_records_in_any_order_end_on_the_truth(news, noise, repeats, order):
    pool = [make() for make in (*news, *noise)]
    pool += [order.choice(pool) for _ in range(repeats)]
    order.shuffle(pool)
    state, changes = folded([*_found_on_main(), *pool])
    assert state is not None
    assert ask_until_verified(state, "aws").cluster == "aws"
    assert [change.version for change in changes] == list(range(1, len(changes) + 1))


def _found_on_main() -> list[ChannelEvent | Rejected]:
    return [event(ChannelTracked, service="demo"), observed("main", 1), observed("main", 2)]


@dataclass
class World:
    """A channel that moves to and fro, two pollers that follow the log late, replicas that lag, hearers that miss."""

    chance: random.Random
    log: list[ChannelEvent] = field(default_factory=list)
    truth: list[tuple[float, str]] = field(default_factory=lambda: [(0.0, "main")])
    under_way: list[tuple[float, ChannelEvent]] = field(default_factory=list)
    now_s: float = 0.0

    def truth_at(self, at_s: float) -> str:
        return [cluster for since, cluster in self.truth if since <= at_s][-1]

    def poll(self) -> None:
        """Ask one of two replicas; the asker may have folded less than the log holds, the answer may be late."""
        behind = self.chance.choice((0, 0, 0, 1, 3))
        folded_seq = max(0, len(self.log) - behind)
        lag_s = self.chance.choice((0.0, self.chance.uniform(0, 60)))
        answer = observed(self.truth_at(max(0.0, self.now_s - lag_s)), folded_seq)
        self.send(answer)

    def move(self) -> None:
        before = self.truth_at(self.now_s)
        after = self.chance.choice([one for one in ("main", "event", "aws") if one != before])
        self.truth.append((self.now_s, after))
        state, _ = folded(self.log)
        version = state.version if state else 0
        if self.chance.random() < 0.7:
            said = self.chance.choice((after, None))
            for _ in range(self.chance.randint(1, 3)):
                self.send(notice(before, said, self.chance.choice((version, max(0, version - 1)))))

    def send(self, record: ChannelEvent) -> None:
        delay_s = self.chance.choice((0.1, 0.1, self.chance.uniform(0, 90)))
        self.under_way.append((self.now_s + delay_s, record))

    def step(self, seconds: float) -> None:
        self.now_s += seconds
        for due_s, record in sorted(self.under_way, key=lambda pair: pair[0]):
            if due_s <= self.now_s:
                self.log.append(record)
                self.under_way.remove((due_s, record))


@settings(deadline=None, max_examples=300)
@given(st.randoms(use_true_random=False))
def test_two_pollers_with_lagging_replicas_and_lossy_hearers_end_on_the_truth(chance):
    world = World(chance, log=[event(ChannelTracked, service="demo")])
    for _ in range(chance.randint(5, 40)):
        world.step(chance.uniform(0.1, 30))
        chance.choice((world.poll, world.poll, world.poll, world.move))()
    world.step(600)
    state, changes = folded(world.log)
    assert state is not None
    truth = world.truth_at(world.now_s)
    # Each channel is asked again some day, also a verified one: a move that nobody heard of has no record.
    asked = fold(state, observed(truth, asked_after=state.seq), T0 + 7_200_000).state
    assert asked is not None
    assert ask_until_verified(asked, truth, T0 + 7_200_000).cluster == truth
    assert [change.version for change in changes] == list(range(1, len(changes) + 1))


EVENTS = st.one_of(
    st.builds(
        lambda service, labels: event(ChannelTracked, service=service, labels=labels),
        st.sampled_from(("a", "b")),
        st.sampled_from(((), ("staff",), ("partner", "staff"))),
    ),
    st.builds(lambda: event(ChannelTracked, service="a", kind=ChannelKind.GROUP)),
    st.builds(lambda service: event(ChannelUntracked, service=service), st.sampled_from(("a", "b"))),
    st.builds(lambda cluster: event(ChannelPinned, cluster=cluster), st.sampled_from(("main", "aws"))),
    st.builds(lambda: event(ChannelUnpinned)),
    st.builds(observed, st.sampled_from(("main", "aws", "event")), st.integers(0, 12)),
    st.builds(
        notice,
        st.sampled_from(("main", "aws", "event")),
        st.sampled_from((None, "main", "aws", "group")),
        st.integers(0, 6),
    ),
    st.builds(lambda: event(ChannelDoubted, reason="silent")),
    st.builds(lambda: Rejected("not JSON")),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(EVENTS, max_size=30))
def test_what_must_always_hold_holds_after_every_record(records):
    state, version = None, 0
    for number, record in enumerate(records):
        before = state
        result = fold(state, record, T0 + number)
        state = result.state
        if state is None:
            assert result.change is None
            continue
        assert state.seq == (before.seq if before else 0) + 1
        assert state.known_after <= state.seq
        assert state.version == version + (result.change is not None)
        version = state.version
        assert (state.cluster is not None) or state.status in {Status.UNKNOWN, Status.UNTRACKED}
        assert state.left_cluster is None or state.left_cluster != state.cluster
        assert bool(state.wanting) == state.tracked
        assert not (state.pinned and not state.tracked)
        assert 0 <= state.doubts < 3
        if result.change is not None:
            assert (result.change.version, result.change.cluster) == (state.version, state.cluster)
        if not isinstance(record, Rejected) and before is not None:
            assert would_alter(before, record, T0 + number) == (not state.differs_only_in_seq(before))


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=30), st.data())
def test_folding_in_two_parts_is_folding_at_once(records, data):
    cut = data.draw(st.integers(0, len(records)))
    state = None
    for number, record in enumerate(records[:cut]):
        state = fold(state, record, T0 + number * 1_000).state
    for number, record in enumerate(records[cut:], start=cut):
        state = fold(state, record, T0 + number * 1_000).state
    assert state == folded(records)[0]
