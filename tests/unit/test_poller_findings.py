"""What an answer to a lookup means, by the rule that the materializer folds with."""

from datetime import UTC, datetime, timedelta

import pytest

from serverchange.adapters.platform_api import ClusterAnswer
from serverchange.events import Channel, ChannelKind, Cluster, LookupSource
from serverchange.poller.findings import Finding, Meaning, Question, judge_answer
from serverchange.tracker.channel_state import ChannelState, Status, Wanting, fold

NOW = datetime(2016, 2, 13, 18, 0, tzinfo=UTC)
FORSEN = Channel("forsen")


def believed(cluster: str | None = "main", **options: object) -> ChannelState:
    given: dict[str, object] = {
        "seq": 9,
        "known_after": 5,
        "version": 1,
        "status": Status.SETTLED if cluster else Status.UNKNOWN,
        "verified": cluster is not None,
        **options,
    }
    return ChannelState(FORSEN, cluster=Cluster(cluster) if cluster else None, wanting=(Wanting("test"),), **given)  # type: ignore[arg-type]


def answer(cluster: str) -> ClusterAnswer:
    return ClusterAnswer(Cluster(cluster), ("irc.example:6667",), (), LookupSource.SERVERS)


def judge(state: ChannelState | None, seen: str, *, asked_after: int = 9) -> Finding:
    question = Question(FORSEN, asked_after, NOW)
    return judge_answer(state, question, answer(seen), elapsed_s=0.25, event_id="id-1", source="test")


def test_an_answer_that_agrees_with_the_verified_is_no_event() -> None:
    assert judge(believed(), "main") == Finding(Meaning.AGREES)


def test_an_answer_that_verifies_is_an_event() -> None:
    finding = judge(believed(verified=False), "main")
    assert finding.meaning is Meaning.AGREES
    assert finding.event is not None
    assert finding.event.data.answered_at - finding.event.data.asked_at == timedelta(seconds=0.25)


def test_the_first_answer_moves_from_unknown() -> None:
    finding = judge(believed(None, version=0), "main")
    assert finding.meaning is Meaning.MOVES
    assert finding.event is not None


def test_another_cluster_is_a_move() -> None:
    finding = judge(believed(), "aws")
    assert finding.meaning is Meaning.MOVES
    assert finding.event is not None
    assert finding.event.data.asked_after == 9


def test_the_cluster_just_left_is_a_doubt() -> None:
    left = believed("aws", left_cluster=Cluster("main"), left_at_ms=round(NOW.timestamp() * 1000), verified=False)
    finding = judge(left, "main")
    assert (finding.meaning, finding.doubts) == (Meaning.DOUBTS, 1)
    assert finding.event is not None


def test_three_doubts_settle_a_channel_that_was_said_to_move() -> None:
    state = believed(status=Status.MOVING, verified=False)
    meanings = []
    for _ in range(3):
        finding = judge(state, "main", asked_after=state.seq)
        meanings.append(finding.meaning)
        assert finding.event is not None
        folded = fold(state, finding.event, round(NOW.timestamp() * 1000))
        assert folded.refused is None
        assert folded.state is not None
        state = folded.state
    assert meanings == [Meaning.DOUBTS, Meaning.DOUBTS, Meaning.AGREES]


@pytest.mark.parametrize("seen", ["main", "aws"])
def test_an_answer_asked_before_something_happened_is_stale(seen: str) -> None:
    assert judge(believed(verified=False), seen, asked_after=4).meaning is Meaning.STALE


@pytest.mark.parametrize(
    "state",
    [
        None,
        believed(status=Status.UNTRACKED, verified=False),
        believed(pinned=Cluster("main")),
        believed(kind=ChannelKind.GROUP),
    ],
)
def test_an_answer_about_a_channel_not_to_be_asked_is_pointless(state: ChannelState | None) -> None:
    assert judge(state, "aws") == Finding(Meaning.POINTLESS)


def test_what_is_published_is_what_the_fold_obeys() -> None:
    """The law of the poller: an answer is published if and only if folding it alters the state."""
    states = [
        believed(None, version=0),
        believed(),
        believed(verified=False),
        believed(status=Status.MOVING, verified=False),
        believed("aws", left_cluster=Cluster("main"), left_at_ms=round(NOW.timestamp() * 1000)),
        believed("aws", left_cluster=Cluster("main"), verified=False, doubts=2),
    ]
    for state in states:
        for seen in ("main", "aws", "event"):
            for asked_after in (4, 5, 9):
                finding = judge(state, seen, asked_after=asked_after)
                if finding.event is None:
                    continue
                after = fold(state, finding.event, round(NOW.timestamp() * 1000)).state
                assert after is not None
                assert not after.differs_only_in_seq(state)
