"""The rule of a change, as playbooks: records in, state and changes out."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from serverchange.events import (
    GROUP_CLUSTER,
    ChangeKind,
    Channel,
    ChannelDoubted,
    ChannelEvent,
    ChannelKind,
    ChannelPinned,
    ChannelTracked,
    ChannelUnpinned,
    ChannelUntracked,
    Cluster,
    ClusterObserved,
    DoubtedData,
    DoubtReason,
    LookupSource,
    NoticeReason,
    ObservedData,
    PinnedData,
    Rejected,
    ServerChangeData,
    ServerChangeReceived,
    TrackedData,
    UnpinnedData,
    UntrackedData,
)
from serverchange.tracker.channel_state import (
    DOUBT_WINDOW_MS,
    FLAPPING_ABOVE,
    PENALTY_MAX,
    SERVICES_MAX,
    Change,
    ChannelState,
    Status,
    fold,
    is_flapping,
    penalty_at,
    would_alter,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
T0 = int(NOW.timestamp() * 1000)
SECOND = 1_000
MINUTE = 60 * SECOND
_ids = itertools.count(1)


def tracked(service: str = "demo", *labels: str, kind: str = "chat", account: str | None = None) -> ChannelTracked:
    data = TrackedData(service=service, labels=labels, kind=ChannelKind(kind), account=account)
    return ChannelTracked(**_envelope(), data=data)


def untracked(service: str = "demo") -> ChannelUntracked:
    return ChannelUntracked(**_envelope(), data=UntrackedData(service=service))


def pinned(cluster: str) -> ChannelPinned:
    return ChannelPinned(**_envelope(), data=PinnedData(cluster=Cluster(cluster)))


def unpinned() -> ChannelUnpinned:
    return ChannelUnpinned(**_envelope(), data=UnpinnedData())


def observed(on: str, *, asked_after: int, asked_at: datetime = NOW, room_id: str | None = None) -> ClusterObserved:
    data = ObservedData(
        cluster=Cluster(on),
        asked_after=asked_after,
        asked_at=asked_at,
        answered_at=asked_at + timedelta(milliseconds=80),
        via=LookupSource.SERVERS,
    )
    return ClusterObserved(**_envelope(), room_id=room_id, data=data)


def notice(on: str, *, to: str | None = None, believed_version: int = 0) -> ServerChangeReceived:
    data = ServerChangeData(
        heard_on=Cluster(on),
        target=None if to is None else Cluster(to),
        believed_version=believed_version,
        reason=NoticeReason.MOVED,
    )
    return ServerChangeReceived(**_envelope(), data=data)


def doubted() -> ChannelDoubted:
    return ChannelDoubted(**_envelope(), data=DoubtedData(reason=DoubtReason.SILENT))


def _envelope() -> dict[str, object]:
    return {"id": f"e{next(_ids)}", "source": "test", "time": NOW, "subject": "forsen"}


class Play:
    """Folds records of one channel, one second apart unless told, and keeps what came out."""

    def __init__(self, *events: ChannelEvent | Rejected) -> None:
        self.state: ChannelState | None = None
        self.changes: list[Change] = []
        self.refused: list[str] = []
        self.now_ms = T0
        self.then(*events)

    def then(self, *events: ChannelEvent | Rejected, after_ms: int = SECOND) -> Play:
        for event in events:
            self.now_ms += after_ms
            folded = fold(self.state, event, self.now_ms)
            self.state = folded.state
            self.changes += [folded.change] if folded.change else []
            self.refused += [folded.refused] if folded.refused else []
        return self

    @property
    def now(self) -> ChannelState:
        assert self.state is not None
        return self.state

    @property
    def story(self) -> list[tuple[str, str | None, str | None]]:
        return [(change.what.value, change.previous, change.cluster) for change in self.changes]


def on_main() -> Play:
    """A channel that was found on main by one lookup and verified by a second: seq 3, version 1."""
    return Play(tracked(), observed("main", asked_after=1), observed("main", asked_after=2))


def test_a_first_lookup_finds_the_channel_and_a_second_verifies_it():
    play = Play(tracked(), observed("main", asked_after=1))
    assert play.story == [("first-seen", None, "main")]
    assert (play.now.status, play.now.verified, play.now.version) == (Status.SETTLED, False, 1)
    assert play.then(observed("main", asked_after=2)).now.verified
    assert len(play.changes) == 1


def test_records_before_the_first_tracked_leave_no_trace():
    play = Play(observed("main", asked_after=0), notice("main"), doubted(), pinned("aws"), untracked(), Rejected("x"))
    assert play.state is None
    assert play.then(tracked()).now.seq == 1


def test_every_record_counts_in_seq_whatever_it_holds():
    play = Play(tracked(), Rejected("not JSON"), notice("elsewhere"), observed("main", asked_after=9))
    assert play.now.seq == 4


def test_a_lookup_that_claims_to_know_its_own_record_is_refused():
    play = Play(tracked(), observed("main", asked_after=2))
    assert play.refused == ["asked_after 2 is impossible: the record itself is number 2"]
    assert (play.now.seq, play.now.status) == (2, Status.UNKNOWN)


def test_a_move_is_published_and_stays_unverified_until_a_later_lookup_agrees():
    play = on_main().then(observed("aws", asked_after=3))
    assert play.story[-1] == ("moved", "main", "aws")
    assert (play.now.cluster, play.now.left_cluster, play.now.verified) == ("aws", "main", False)
    assert not play.then(observed("aws", asked_after=3)).now.verified, "asked before the move was known"
    assert play.then(observed("aws", asked_after=4)).now.verified


def test_a_lookup_asked_before_the_notice_changes_nothing_and_one_asked_after_it_decides():
    play = on_main().then(notice("main", believed_version=1))
    assert (play.now.status, play.now.cluster, len(play.changes)) == (Status.MOVING, "main", 1)
    play.then(observed("aws", asked_after=3))
    assert play.now.status is Status.MOVING
    play.then(observed("aws", asked_after=4))
    assert play.story[-1] == ("moved", "main", "aws")


def test_a_stale_lookup_that_contradicts_takes_the_verification_away_and_changes_nothing_else():
    play = on_main().then(observed("aws", asked_after=3), observed("aws", asked_after=4))
    before = play.now
    after = play.then(observed("event", asked_after=2)).now
    assert after == before._replace(seq=before.seq + 1, verified=False)


def test_a_stale_lookup_that_agrees_changes_nothing():
    play = on_main().then(observed("aws", asked_after=3), observed("aws", asked_after=4))
    before = play.now
    assert play.then(observed("aws", asked_after=0)).now.differs_only_in_seq(before)


def test_going_back_takes_three_lookups_each_asked_after_the_one_before():
    play = on_main().then(observed("aws", asked_after=3), observed("aws", asked_after=4))
    play.then(observed("main", asked_after=5))
    assert (play.now.cluster, play.now.doubts, play.now.verified) == ("aws", 1, False)
    play.then(observed("main", asked_after=5))
    assert play.now.doubts == 1, "asked before the first doubt was known"
    play.then(observed("main", asked_after=6))
    assert (play.now.cluster, play.now.doubts) == ("aws", 2)
    play.then(observed("main", asked_after=8))
    assert play.story[-1] == ("moved", "aws", "main")


def test_an_agreeing_lookup_between_two_doubts_starts_the_count_anew():
    play = on_main().then(observed("aws", asked_after=3))
    play.then(observed("main", asked_after=4), observed("main", asked_after=5), observed("aws", asked_after=6))
    assert (play.now.doubts, play.now.verified) == (0, True)
    play.then(observed("main", asked_after=7))
    assert (play.now.cluster, play.now.doubts) == ("aws", 1)


def test_a_third_cluster_needs_no_doubts():
    play = on_main().then(observed("aws", asked_after=3), observed("event", asked_after=4))
    assert play.story[-1] == ("moved", "aws", "event")


def test_ten_minutes_after_a_verified_move_one_lookup_suffices_to_go_back():
    play = on_main().then(observed("aws", asked_after=3), observed("aws", asked_after=4))
    play.then(observed("main", asked_after=5), after_ms=DOUBT_WINDOW_MS - 2 * SECOND)
    assert play.now.cluster == "aws"
    play.then(observed("aws", asked_after=6)).then(observed("main", asked_after=7), after_ms=DOUBT_WINDOW_MS)
    assert play.story[-1] == ("moved", "aws", "main")


def test_an_unverified_move_is_doubted_however_old():
    play = on_main().then(observed("aws", asked_after=3))
    play.then(observed("main", asked_after=4), after_ms=100 * DOUBT_WINDOW_MS)
    assert (play.now.cluster, play.now.doubts) == ("aws", 1)


def test_a_moving_channel_that_three_lookups_find_where_it_was_settles_there_without_a_change():
    play = on_main().then(notice("main", believed_version=1))
    for asked_after in (4, 5, 6):
        assert play.now.status is Status.MOVING
        play.then(observed("main", asked_after=asked_after))
    assert (play.now.status, play.now.cluster, play.now.verified, play.now.doubts) == (
        Status.SETTLED,
        "main",
        True,
        0,
    )
    assert len(play.changes) == 1


def test_a_notice_with_a_target_from_a_hearer_of_this_version_moves_the_channel_at_once():
    play = on_main().then(notice("main", to="aws", believed_version=1))
    assert play.story[-1] == ("moved", "main", "aws")
    assert not play.now.verified


@pytest.mark.parametrize(("to", "believed_version"), [("aws", 0), ("aws", 2), ("group", 1), ("main", 1), (None, 1)])
def test_a_notice_that_cannot_decide_marks_the_channel_as_moving(to: str | None, believed_version: int):
    play = on_main().then(notice("main", to=to, believed_version=believed_version))
    assert (play.now.status, play.now.cluster, len(play.changes)) == (Status.MOVING, "main", 1)


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(on_main().then(notice("event", to="aws", believed_version=1)), id="heard elsewhere"),
        pytest.param(Play(tracked(), notice("main", to="aws")), id="cluster unknown"),
        pytest.param(on_main().then(untracked(), notice("main", to="aws", believed_version=2)), id="untracked"),
        pytest.param(on_main().then(pinned("main"), notice("main", to="aws", believed_version=1)), id="pinned"),
        pytest.param(Play(tracked(kind="group"), notice("group", to="aws", believed_version=1)), id="group"),
    ],
)
def test_a_notice_that_says_nothing_new_changes_nothing(play: Play):
    assert play.changes == [] or play.changes[-1].cluster != "aws"
    assert play.now.status is not Status.MOVING
    assert play.now.cluster != "aws"


def test_late_and_repeated_notices_cost_nothing():
    play = on_main().then(notice("main", believed_version=1))
    once = play.now
    assert play.then(notice("main", believed_version=1)).now.differs_only_in_seq(once)
    play.then(observed("aws", asked_after=5), observed("aws", asked_after=6))
    settled = play.now
    assert play.then(*[notice("main", believed_version=1)] * 3).now.differs_only_in_seq(settled)


def test_a_doubt_asks_for_a_lookup_and_makes_those_under_way_stale():
    play = on_main().then(doubted())
    assert (play.now.verified, play.now.cluster, len(play.changes)) == (False, "main", 1)
    assert not play.then(observed("main", asked_after=3)).now.verified
    assert play.then(observed("main", asked_after=4)).now.verified


def test_a_second_doubt_does_not_make_the_answer_to_the_first_stale():
    play = on_main().then(doubted(), doubted(), observed("main", asked_after=4))
    assert play.now.verified


def test_a_pin_wins_over_all_evidence_until_it_is_taken_back():
    play = on_main().then(pinned("event"))
    assert play.story[-1] == ("moved", "main", "event")
    play.then(observed("aws", asked_after=4), notice("event", to="aws", believed_version=2), doubted())
    assert (play.now.cluster, play.now.version, play.now.needs_lookup) == ("event", 2, False)
    play.then(unpinned())
    assert play.now.needs_lookup
    assert play.then(observed("main", asked_after=7)).now.cluster == "event", "asked before the pin was taken back"
    assert play.then(observed("main", asked_after=8)).story[-1] == ("moved", "event", "main")


def test_a_pin_to_where_the_channel_is_publishes_nothing():
    assert len(on_main().then(pinned("main")).changes) == 1


def test_untracking_keeps_the_row_and_tracking_again_goes_on_with_the_next_version():
    play = on_main().then(untracked())
    assert play.story[-1] == ("untracked", "main", "main")
    assert (play.now.status, play.now.version) == (Status.UNTRACKED, 2)
    assert play.then(observed("aws", asked_after=4)).now.version == 2
    play.then(tracked())
    assert (play.now.status, play.now.cluster, play.now.version) == (Status.UNKNOWN, None, 2)
    assert not play.then(observed("aws", asked_after=4)).changes[2:], "asked before it was tracked again"
    play.then(observed("aws", asked_after=6))
    assert (play.story[-1], play.now.version) == (("first-seen", None, "aws"), 3)


def test_a_channel_stays_tracked_while_any_service_wants_it():
    play = on_main().then(tracked("other", "partner"), untracked("demo"))
    assert play.now.tracked
    assert not play.then(untracked("other")).now.tracked
    assert play.story[-1][0] == "untracked"


def test_untracking_by_a_service_that_never_asked_changes_nothing():
    play = on_main()
    before = play.now
    assert play.then(untracked("stranger")).now.differs_only_in_seq(before)


def test_labels_are_the_union_of_what_services_say_and_their_change_is_published():
    play = Play(tracked("demo", "staff"), observed("main", asked_after=1), tracked("other", "partner", "staff"))
    assert play.changes[-1].what is ChangeKind.LABELLED
    assert play.changes[-1].labels == ("partner", "staff")
    before = play.now
    assert play.then(tracked("other", "staff", "partner")).now.differs_only_in_seq(before)
    play.then(tracked("other"))
    assert play.changes[-1].labels == ("staff",)
    assert play.now.known_after < before.seq, "labels are no belief: lookups under way stay valid"


def test_labels_of_a_channel_not_found_yet_come_with_its_first_change():
    play = Play(tracked("demo", "staff"), tracked("other", "partner", account="bot"), observed("main", asked_after=2))
    assert [(change.what.value, change.labels, change.account) for change in play.changes] == [
        ("first-seen", ("partner", "staff"), "bot")
    ]


def test_a_group_channel_is_settled_at_once_and_never_looked_up():
    play = Play(tracked(kind="group"))
    assert play.story == [("first-seen", None, GROUP_CLUSTER)]
    assert (play.now.verified, play.now.needs_lookup) == (True, False)
    play.then(observed("main", asked_after=1), notice("group", believed_version=1), doubted())
    assert (play.now.cluster, play.now.version) == (GROUP_CLUSTER, 1)


def test_a_pinned_group_channel_returns_to_its_cluster():
    play = Play(tracked(kind="group"), pinned("aws"), unpinned())
    assert [story[2] for story in play.story] == ["group", "aws", "group"]
    assert not play.now.needs_lookup


def test_too_many_services_are_refused():
    play = Play(*[tracked(f"service-{number}") for number in range(SERVICES_MAX + 1)])
    assert play.refused == [f"more than {SERVICES_MAX} services want this channel"]
    assert len(play.now.wanting) == SERVICES_MAX


def test_the_lasting_identity_is_kept_from_any_event():
    assert on_main().then(observed("main", asked_after=3, room_id="22484632")).now.room_id == "22484632"


def test_a_clock_wrong_by_an_hour_changes_nothing():
    def play(skew: timedelta) -> Play:
        at = NOW + skew
        return Play(
            tracked(),
            observed("main", asked_after=1, asked_at=at),
            observed("main", asked_after=2, asked_at=at),
            notice("main", believed_version=1),
            observed("aws", asked_after=3, asked_at=at),
            observed("aws", asked_after=4, asked_at=at),
        )

    ahead, behind = play(timedelta(hours=1)), play(timedelta(hours=-1))
    assert ahead.now._replace(evidence=()) == behind.now._replace(evidence=())
    assert ahead.story == behind.story


def test_a_channel_that_moves_to_and_fro_is_flapping_until_it_rests():
    play = on_main()
    for asked_after, cluster in enumerate(("aws", "event", "aws2", "main2"), start=3):
        play.then(observed(cluster, asked_after=asked_after))
    assert is_flapping(play.now, play.now_ms)
    assert not is_flapping(play.now, play.now_ms + 60 * MINUTE)
    assert penalty_at(play.now, play.now_ms) > FLAPPING_ABOVE


def test_the_penalty_is_bounded():
    play = on_main()
    for number in range(100):
        play.then(observed(f"c{number}", asked_after=3 + number))
    assert play.now.penalty == PENALTY_MAX


def test_the_deciding_events_are_told_as_evidence():
    first, second = notice("main", believed_version=1), observed("aws", asked_after=4)
    play = on_main().then(first, second)
    assert play.changes[-1].evidence == (first.id, second.id)


def test_a_poller_publishes_only_what_would_alter_the_state():
    state = on_main().now
    assert not would_alter(state, observed("main", asked_after=3), T0)
    assert would_alter(state, observed("aws", asked_after=3), T0)
    assert not would_alter(None, observed("aws", asked_after=0), T0)


def test_ids_are_not_looked_at_so_the_same_id_with_other_data_is_another_record():
    one = observed("main", asked_after=1)
    other = one.model_copy(update={"data": one.data.model_copy(update={"cluster": Cluster("aws")})})
    play = Play(tracked(), one, other)
    assert play.now.seq == 3
    assert play.now.channel == Channel("forsen")
