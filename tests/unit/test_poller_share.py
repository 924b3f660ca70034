"""The share of a poller: partitions taken and forgotten, records folded once, whoever sends them again."""

from datetime import UTC, datetime

from serverchange.adapters.kafka.group_follower import Record
from serverchange.events import (
    Channel,
    ChannelEvent,
    ChannelTracked,
    ChannelUntracked,
    Cluster,
    TrackedData,
    UntrackedData,
)
from serverchange.poller.share import Share, Update, may_be_asked
from serverchange.tracker.channel_state import ChannelState, Status

FORSEN = Channel("forsen")
TICKET = 7
NOW = datetime(2016, 2, 13, 18, 0, tzinfo=UTC)


def tracked(channel: str = "forsen", **options: object) -> ChannelTracked:
    data = TrackedData.model_validate({"service": "test", **options})
    return ChannelTracked(id="t", source="test", time=NOW, subject=Channel(channel), data=data)


def untracked(channel: str = "forsen") -> ChannelUntracked:
    return ChannelUntracked(
        id="u", source="test", time=NOW, subject=Channel(channel), data=UntrackedData(service="test")
    )


def record(offset: int, event: ChannelEvent, *, partition: int = 0, ticket: int = TICKET) -> Record:
    return Record(ticket, partition, offset, event.subject.encode(), event.to_record(), 1_455_386_400_000)


def share_at(position: int = 0, *states: ChannelState, caught_up: bool = True) -> Share:
    share = Share()
    share.take(0, TICKET, position, states)
    if caught_up:
        list(share.caught_up(0, TICKET))
    return share


def test_a_record_changes_its_channel() -> None:
    share = share_at()
    update = share.fold(record(0, tracked()))
    assert isinstance(update, Update)
    assert (update.before, update.after.seq) == (None, 1)
    assert share.state(FORSEN) == update.after
    assert share.position(0) == 1


def test_a_repeat_changes_nothing() -> None:
    share = share_at(5)
    assert share.fold(record(4, tracked())) is None
    share.fold(record(5, tracked()))
    assert share.fold(record(5, untracked())) is None
    state = share.state(FORSEN)
    assert state is not None
    assert state.seq == 1


def test_a_record_of_an_earlier_ownership_changes_nothing() -> None:
    share = share_at()
    assert share.fold(record(0, tracked(), ticket=6)) is None
    assert share.fold(record(0, tracked(), partition=1)) is None
    assert len(share) == 0


def test_nothing_is_told_before_the_log_is_caught_up() -> None:
    share = share_at(caught_up=False)
    assert share.catching_up == {0}
    assert share.fold(record(0, tracked())) is None
    assert list(share.caught_up(0, 6)) == [], "another ticket's end is not ours"
    assert [state.channel for state in share.caught_up(0, TICKET)] == [FORSEN]
    assert list(share.caught_up(0, TICKET)) == [], "told once"
    assert share.catching_up == frozenset()


def test_the_fold_goes_on_from_the_projection() -> None:
    share = share_at(9, ChannelState(FORSEN, seq=40, status=Status.SETTLED, cluster=Cluster("main"), version=3))
    update = share.fold(record(9, tracked(labels=("staff",))))
    assert update is not None
    assert (update.after.seq, update.after.version, update.after.labels) == (41, 4, ("staff",))


def test_poison_counts_in_seq_and_is_told_to_nobody() -> None:
    share = share_at()
    share.fold(record(0, tracked()))
    for offset, value in enumerate((b"not json", None, b"[" * 10_000), start=1):
        assert share.fold(Record(TICKET, 0, offset, b"forsen", value, 0)) is None
    assert share.fold(Record(TICKET, 0, 4, None, b"{}", 0)) is None
    assert share.fold(Record(TICKET, 0, 5, b"\xff\xfe", b"{}", 0)) is None
    state = share.state(FORSEN)
    assert state is not None
    assert state.seq == 4
    assert share.position(0) == 6


def test_a_partition_that_is_lost_takes_its_channels_along() -> None:
    share = share_at()
    share.take(1, 8, 0, [ChannelState(Channel("other"))])
    share.fold(record(0, tracked()))
    assert share.forget(0) == {FORSEN}
    assert share.state(FORSEN) is None
    assert share.state(Channel("other")) is not None
    assert share.forget(0) == frozenset()
    assert share.partitions == {1}
    assert share.position(0) is None


def test_a_partition_that_comes_back_begins_anew() -> None:
    share = share_at()
    share.fold(record(0, tracked()))
    share.take(0, 9, 3, [ChannelState(FORSEN, seq=12)])
    assert share.fold(record(1, untracked())) is None
    state = share.state(FORSEN)
    assert state is not None
    assert state.seq == 12


def test_who_may_be_asked_about() -> None:
    base = ChannelState(FORSEN)
    assert may_be_asked(base)
    share = share_at()
    share.fold(record(0, tracked(kind="group")))
    group = share.state(FORSEN)
    assert group is not None
    assert not may_be_asked(group)
    share.fold(record(1, untracked()))
    gone = share.state(FORSEN)
    assert gone is not None
    assert not may_be_asked(gone)
