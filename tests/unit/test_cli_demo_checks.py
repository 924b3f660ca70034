"""The demo's judge: a good run passes, and each planted fault fails exactly the check that is made for it."""

from collections import Counter
from dataclasses import replace

import pytest

from serverchange.cli.demo.checks import Spread, Window, check, judge, match_changes, stays_by_room, window_of
from serverchange.cli.demo.facts import (
    Belief,
    Decided,
    Facts,
    Move,
    Published,
    SentLine,
    Stay,
    Stream,
)
from serverchange.cli.demo.options import DemoOptions
from serverchange.cli.demo.report import explain, to_json
from serverchange.cli.demo.timeline import Timeline, believed_timelines
from serverchange.events import ChangeKind, Channel, ChannelKind, Cluster

FORSEN, XQC = Channel("forsen"), Channel("xqc")
MAIN, AWS = Cluster("main"), Cluster("aws")

MOVED_S, CHANGED_S, CONFIRMED_S, PARTED_S = 10.0, 10.5, 11.0, 16.0


def sent(number: int, at_s: float, cluster: Cluster, *, reached: bool, channel: Channel = FORSEN) -> SentLine:
    return SentLine(channel, number, at_s, cluster, reached)


def published(version: int, cluster: Cluster, at_s: float, *, channel: Channel = FORSEN) -> Published:
    what = ChangeKind.FIRST_SEEN if version == 1 else ChangeKind.MOVED
    return Published(channel, what, None if version == 1 else MAIN, cluster, 1, version, at_s)


def good_run() -> Facts:
    """Forsen moves from main to aws at 10 s; noticed at 10.5, confirmed at 11; two lines fall between."""
    settled = {FORSEN: Belief(AWS, "settled"), XQC: Belief(MAIN, "settled")}
    return Facts(
        tracked={FORSEN: ChannelKind.CHAT, XQC: ChannelKind.CHAT},
        home={FORSEN: MAIN, XQC: MAIN},
        truth={FORSEN: AWS, XQC: MAIN},
        moves=[Move(FORSEN, MAIN, AWS, MOVED_S)],
        lines=[
            sent(1, 9.0, MAIN, reached=True),
            sent(2, 10.2, AWS, reached=False),
            sent(3, 10.7, AWS, reached=False),
            sent(4, 12.0, AWS, reached=True),
        ],
        stays=[
            Stay(FORSEN, MAIN, 1.0, PARTED_S),
            Stay(FORSEN, AWS, CONFIRMED_S),
            Stay(XQC, MAIN, 1.0),
        ],
        streams=[Stream(FORSEN, 8.0, 20.0)],
        changes=[published(1, MAIN, 0.5), published(2, AWS, CHANGED_S), published(1, MAIN, 0.5, channel=XQC)],
        decided=[Decided(FORSEN, 1, MAIN), Decided(FORSEN, 2, AWS), Decided(XQC, 1, MAIN)],
        folded=settled,
        rows=settled,
        answers=settled,
        received=Counter({(FORSEN, 1): 1, (FORSEN, 4): 1}),
        chat_records=2,
        joined=frozenset({(FORSEN, AWS), (XQC, MAIN)}),
        mismatch_channel_seconds=0.5,
        lookups=20,
        started_s=0.0,
        ended_s=20.0,
        time_scale=60.0,
        elapsed_s=25.0,
    )


def failed(facts: Facts) -> list[str]:
    return [one.name for one in check(judge(facts)) if not one.passed]


def test_a_good_run_passes_every_check() -> None:
    assert failed(good_run()) == []


def test_a_good_run_is_measured() -> None:
    findings = judge(good_run())

    assert (findings.channels, findings.moves, findings.changes) == (2, 1, 3)
    assert (findings.chat_sent, findings.chat_received) == (4, 2)
    assert (findings.lost_undetected, findings.lost_in_handover, findings.lost_otherwise) == (1, 1, ())
    assert findings.detection_ms == Spread(500.0, 500.0)
    assert findings.handover_ms == Spread(500.0, 500.0)


WRONG = Belief(MAIN, "settled")
MOVING = Belief(AWS, "moving")


@pytest.mark.parametrize("source", ["rows", "answers", "folded"])
@pytest.mark.parametrize("belief", [WRONG, MOVING, None])
def test_a_channel_that_anyone_has_wrong_at_rest_is_a_mismatch(source: str, belief: Belief | None) -> None:
    run = good_run()
    beliefs = {**run.rows, FORSEN: belief} if belief else {XQC: run.rows[XQC]}

    assert failed(replace(run, **{source: beliefs})) == ["state mismatches at rest"]


def test_a_change_that_was_decided_and_never_published_is_missing() -> None:
    run = good_run()
    assert "changes missing" in failed(replace(run, decided=[*run.decided, Decided(FORSEN, 3, MAIN)]))


def test_a_change_published_with_another_cluster_is_missing() -> None:
    run = good_run()
    assert "changes missing" in failed(replace(run, decided=[*run.decided[:2], Decided(XQC, 1, AWS)]))


def test_a_repeated_change_is_out_of_order() -> None:
    run = good_run()
    assert failed(replace(run, changes=[*run.changes, run.changes[2]])) == ["changes out of order"]


def test_an_old_version_after_a_newer_one_is_out_of_order() -> None:
    run = good_run()
    swapped = [run.changes[1], run.changes[0], run.changes[2]]
    assert failed(replace(run, changes=swapped)) == ["changes out of order"]


def test_a_line_read_twice_is_a_duplicate() -> None:
    run = good_run()
    assert failed(replace(run, received=Counter({(FORSEN, 1): 2, (FORSEN, 4): 1}))) == ["duplicate lines"]


def test_a_line_that_reached_our_link_and_no_reader_is_lost_otherwise() -> None:
    run = good_run()
    assert failed(replace(run, received=Counter({(FORSEN, 1): 1}))) == ["lines lost otherwise"]


def test_a_line_read_that_nobody_sent_is_unaccounted_for() -> None:
    run = good_run()
    assert failed(replace(run, received=Counter({**run.received, (FORSEN, 99): 1}))) == ["lines unaccounted for"]


def test_a_budget_violation_fails() -> None:
    assert failed(replace(good_run(), violations={"join": 1})) == ["budget violations"]


def test_a_channel_joined_on_the_wrong_side_only_is_unjoined() -> None:
    joined = frozenset({(FORSEN, MAIN), (XQC, MAIN)})
    assert failed(replace(good_run(), joined=joined)) == ["unjoined channels"]


def test_a_dead_letter_fails() -> None:
    assert failed(replace(good_run(), dead_letters=1)) == ["dead letters"]


def test_a_run_in_which_nothing_happened_proves_nothing() -> None:
    empty = replace(good_run(), moves=[], changes=[], decided=[], lines=[], received=Counter())
    assert failed(empty) == ["moves seen", "changes seen", "chat lines seen"]


BELIEVED = believed_timelines(good_run())


@pytest.mark.parametrize(
    ("at_s", "stays", "window"),
    [
        (10.4, [], Window.UNDETECTED),
        (10.6, [], Window.IN_HANDOVER),
        (600.0, [], Window.IN_HANDOVER),
        (12.0, [Stay(FORSEN, AWS, 11.0)], Window.OTHERWISE),
        (12.0, [Stay(FORSEN, AWS, 11.0, 11.5)], Window.OTHERWISE),
        (12.0, [Stay(FORSEN, AWS, 5.0, 10.0)], Window.IN_HANDOVER),
        (12.0, [Stay(FORSEN, AWS, 5.0, 10.6)], Window.IN_HANDOVER),
        (16.0, [Stay(FORSEN, AWS, 5.0, 15.0)], Window.OTHERWISE),
        (12.0, [Stay(FORSEN, MAIN, 5.0)], Window.IN_HANDOVER),
        (10.6, [Stay(FORSEN, AWS, 11.0)], Window.IN_HANDOVER),
    ],
    ids=[
        "before the change event",
        "after it, before the confirmation",
        "never confirmed at all",
        "while confirmed on the new side",
        "after leaving the new side again",
        "a stay that ended before the change counts for nothing",
        "an old side of before, parted before the change could be read, counts for nothing",
        "a room that we were in already and left long after the change",
        "the old side counts for nothing",
        "a later confirmation does not reach back",
    ],
)
def test_a_lost_line_falls_into_one_window(at_s: float, stays: list[Stay], window: Window) -> None:
    line = sent(2, at_s, AWS, reached=False)
    assert window_of(line, BELIEVED, stays_by_room(stays)) is window


def test_a_line_before_the_channel_was_first_seen_is_lost_undetected() -> None:
    line = sent(1, 0.1, MAIN, reached=False)
    assert window_of(line, BELIEVED, {}) is Window.UNDETECTED


def test_a_move_that_was_overtaken_is_not_taken_for_noticed_by_a_later_change() -> None:
    moves = [Move(FORSEN, MAIN, AWS, 1.0), Move(FORSEN, AWS, MAIN, 2.0), Move(FORSEN, MAIN, AWS, 50.0)]

    detected_ms, needless = match_changes(moves, [published(2, AWS, 50.2)])

    assert detected_ms == pytest.approx([200.0])
    assert needless == 0


def test_a_flip_back_by_a_lagging_answer_is_two_needless_changes() -> None:
    moves = [Move(FORSEN, MAIN, AWS, 1.0)]
    changes = [published(2, AWS, 1.5), published(3, MAIN, 1.7), published(4, AWS, 1.9)]

    assert match_changes(moves, changes) == ([500.0], 2)


def test_a_channel_joined_in_advance_is_handed_over_in_no_time() -> None:
    run = good_run()
    ahead = replace(run, stays=[*run.stays, Stay(FORSEN, AWS, 2.0)])
    assert judge(ahead).handover_ms == Spread(0.0, 0.0)


def test_a_handover_waits_for_the_room_that_was_just_left_to_be_joined_again() -> None:
    run = good_run()
    again = replace(run, stays=[Stay(FORSEN, AWS, 2.0, 10.6), *run.stays])
    assert judge(again).handover_ms == Spread(500.0, 500.0)


def test_a_handover_that_the_next_move_overtook_is_not_measured() -> None:
    run = good_run()
    overtaken = replace(run, changes=[*run.changes, published(3, MAIN, 10.9)], stays=[Stay(FORSEN, AWS, CONFIRMED_S)])
    assert judge(overtaken).handover_ms == Spread(None, None)


def test_percentiles_are_by_nearest_rank() -> None:
    assert Spread.of(float(value) for value in range(1, 101)) == Spread(50.0, 99.0)
    assert Spread.of([]) == Spread(None, None)


def test_exposure_is_the_streamed_time_on_another_cluster_than_the_believed() -> None:
    assert judge(good_run()).exposure_ours_minutes == 0.5


def test_a_round_robin_poller_is_exposed_until_its_next_turn() -> None:
    """20 lookups in 20 s for two channels: forsen is asked at 0, 2, … 10, the very instant of the move."""
    run = good_run()
    assert judge(run).exposure_round_robin_minutes == 0.0
    later = replace(run, moves=[Move(FORSEN, MAIN, AWS, 10.5)])
    assert judge(later).exposure_round_robin_minutes == 1.5


def test_a_round_robin_poller_too_goes_back_only_after_three_answers() -> None:
    """Asked for every two seconds: away from main at 2 s, seen there again at 12, 14 and 16."""
    run = good_run()
    back = replace(run, moves=[Move(FORSEN, MAIN, AWS, 1.0), Move(FORSEN, AWS, MAIN, 11.0)])
    assert judge(back).exposure_round_robin_minutes == 5.0


def test_exposure_counts_neither_offline_time_nor_time_outside_the_script() -> None:
    run = good_run()
    assert judge(replace(run, streams=[Stream(FORSEN, 30.0)])).exposure_ours_minutes == 0.0
    assert judge(replace(run, streams=[])).exposure_ours_minutes == 0.0


def test_a_timeline_holds_each_step_until_the_next() -> None:
    timeline = Timeline.of([(2.0, AWS), (1.0, MAIN)])
    assert [timeline.at(at_s) for at_s in (0.5, 1.0, 1.9, 2.0)] == [None, MAIN, MAIN, AWS]
    assert (timeline.since(1.5), timeline.until(1.5)) == (1.0, 2.0)


ASKED_FOR = {
    *("channels", "moves", "changes", "state_mismatches", "mismatch_channel_seconds", "changes_missing"),
    *("changes_out_of_order", "chat_sent", "chat_received", "duplicates", "lost_undetected", "lost_in_handover"),
    *("lost_otherwise", "handover_ms", "detection_ms", "budget_violations", "unjoined_channels", "dead_letters"),
    *("elapsed_s", "ok", "exposure_minutes"),
}


def test_the_json_report_has_every_documented_key() -> None:
    findings = judge(good_run())
    report = to_json(findings, check(findings), DemoOptions())
    assert set(report) >= ASKED_FOR
    assert report["ok"] is True
    assert report["failed"] == []
    assert set(report["handover_ms"]) == {"p50", "p99"}


def test_a_failed_run_names_the_channel_and_who_says_what() -> None:
    run = good_run()
    wrong = replace(run, answers={**run.answers, FORSEN: Belief(None, "moving")})
    (sentence,) = explain(judge(wrong))
    assert sentence == ("forsen: truth aws, PostgreSQL aws (settled), API nowhere (moving), fold aws (settled)")


def test_a_failed_run_names_lost_lines_and_rooms_and_budgets() -> None:
    run = good_run()
    wrong = replace(run, received=Counter({(FORSEN, 1): 1}), joined=frozenset({(XQC, MAIN)}), violations={"join": 2})
    assert explain(judge(wrong)) == [
        "forsen line 4, sent on aws at 12.000, is lost (it reached our link)",
        "forsen is not joined where it lives",
        "the platform counts 2 x join",
    ]
