"""Handovers as playbooks: `>>` an event goes in, `<<` exactly these commands come out."""

import pytest

from serverchange.events import DoubtReason
from serverchange.tracker.handover import ABSENT_STATE, SIDES_MAX, HandoverLimits, Phase, next_deadline, step
from serverchange.tracker.handover_words import (
    Alarm,
    CancelJoin,
    Cause,
    Doubt,
    HeardOnOldOnly,
    Join,
    JoinConfirmed,
    JoinRefused,
    JoinSent,
    LinkLeaving,
    LinkLost,
    LookupAgreed,
    NotHere,
    Outcome,
    Part,
    Record,
    Tick,
    Unwanted,
    Wanted,
)

LIMITS = HandoverLimits(overlap_s=20, confirm_timeout_s=10, tries_max=3, pause_s=60)


def none():
    return frozenset()


def links(*numbers):
    return frozenset(numbers)


class Playbook:
    """One channel's dialogue with its carrier. Commands are compared as soon as the next event comes, and by `end`."""

    def __init__(self, state=ABSENT_STATE):
        self.state, self.pending, self.expected, self.history = state, [], [], []

    def __rshift__(self, event):
        self._compare()
        self.state, commands = step(self.state, event, LIMITS)
        self.pending = [command for command in commands if not isinstance(command, Record)]
        self.records = [command for command in commands if isinstance(command, Record)]
        self.history.append(event)
        return self

    def __lshift__(self, command):
        self.expected.append(command)
        return self

    def _compare(self):
        assert self.pending == self.expected, f"after {self.history[-1:]}"
        self.pending, self.expected = [], []

    def end(self, phase):
        self._compare()
        assert self.state.phase is phase
        return self


def served(cluster="main", link=1):
    return (
        Playbook()
        >> Wanted(cluster, (1, 1), 0)
        << Join(1, cluster, none())
        >> JoinSent(1, link, 1)
        >> JoinConfirmed(link, 2)
    ).end(Phase.SERVED)


def moving(sent=True):
    book = served() >> Wanted("aws", (1, 2), 10) << Join(2, "aws", none())
    return (book >> JoinSent(2, 2, 11)) if sent else book


def overlapping():
    return (moving() >> JoinConfirmed(2, 12)).end(Phase.OVERLAP)


def test_a_first_join_is_served_once_confirmed():
    book = served()
    assert book.records == [Record(Cause.FIRST_JOIN, Outcome.DONE, None, "main", 0, 1, 2, 2, 1)]
    assert next_deadline(book.state, LIMITS) is None


def test_joined_because_sent_is_not_served():
    book = Playbook() >> Wanted("main", (1, 1), 0) << Join(1, "main", none()) >> JoinSent(1, 1, 1)
    book.end(Phase.JOINING)


def test_a_move_joins_first_overlaps_and_parts_last():
    book = overlapping() >> Tick(31.9)
    book.end(Phase.OVERLAP)
    assert next_deadline(book.state, LIMITS) == 32
    book = book >> Tick(32) << Part(1)
    book.end(Phase.SERVED)
    assert book.records == [Record(Cause.MOVED, Outcome.DONE, "main", "aws", 10, 11, 12, 32, 1)]


def the_record(book):
    (record,) = book.records
    return record


def test_a_move_has_an_overlap_and_no_gap_and_a_first_join_neither():
    record = the_record(overlapping() >> Tick(32) << Part(1))
    assert (record.overlap_s, record.gap_s) == (20, None)
    record = the_record(served())
    assert (record.overlap_s, record.gap_s) == (None, None)


def test_an_overlap_ends_with_the_old_link_and_goes_on_into_a_newer_handover():
    record = the_record(overlapping() >> LinkLost(1, 15))
    assert (record.outcome, record.overlap_s) == (Outcome.OLD_LOST, 3)
    record = the_record(overlapping() >> Wanted("event", (1, 3), 15) << Join(3, "event", none()))
    assert (record.outcome, record.overlap_s) == (Outcome.SUPERSEDED, None)


def test_a_lost_link_leaves_a_gap_until_the_next_is_confirmed():
    book = served() >> LinkLost(1, 10) << Join(2, "main", none()) >> JoinSent(2, 2, 12) >> JoinConfirmed(2, 14)
    record = the_record(book)
    assert (record.cause, record.gap_s, record.overlap_s) == (Cause.LINK_LOST, 4, None)


def test_an_old_link_that_ends_before_the_new_one_is_confirmed_leaves_a_gap_from_then_on():
    record = the_record(moving() >> LinkLost(1, 15) >> JoinConfirmed(2, 18))
    assert (record.begun_at, record.gap_s, record.overlap_s) == (10, 3, None)


def test_a_gap_goes_on_when_a_newer_decision_comes_meanwhile():
    book = moving() >> LinkLost(1, 15) >> Wanted("event", (1, 3), 16)
    book = book << Part(2) << Join(3, "event", none()) >> JoinSent(3, 3, 17) >> JoinConfirmed(3, 19)
    record = the_record(book)
    assert (record.begun_at, record.gap_s, record.overlap_s) == (16, 4, None)


def test_while_the_new_side_is_not_confirmed_the_old_one_stays():
    (moving() >> Tick(20)).end(Phase.MOVING)
    book = moving(sent=False)
    assert next_deadline(book.state, LIMITS) is None, "a queued JOIN has no timeout: its bytes have not left"
    (book >> Tick(10_000)).end(Phase.MOVING)


def test_the_timeout_starts_when_the_bytes_left():
    """twitch-js 227: at 150 JOINs and 20 in 10 s the last waits 70 s for its turn, and timed out in the queue."""
    book = served() >> Wanted("aws", (1, 2), 10) << Join(2, "aws", none()) >> JoinSent(2, 2, 500)
    assert next_deadline(book.state, LIMITS) == 510
    (book >> Tick(509.9)).end(Phase.MOVING)
    waiting = Playbook() >> Wanted("main", (1, 1), 0) << Join(1, "main", none()) >> Tick(70)
    assert next_deadline(waiting.end(Phase.SEEKING).state, LIMITS) is None


def test_an_unconfirmed_join_is_tried_on_other_links_and_then_alarms():
    """all-chat 279: a ghost join."""
    book = (
        moving()
        >> Tick(21)
        << Join(3, "aws", links(2))
        >> JoinSent(3, 3, 22)
        >> Tick(32)
        << Join(4, "aws", links(2, 3))
        >> JoinSent(4, 4, 33)
        >> Tick(43)
        << Alarm(3, refused=False)
        << Doubt(DoubtReason.UNCONFIRMED)
    ).end(Phase.MOVING)
    assert next_deadline(book.state, LIMITS) == 103
    book = book >> Tick(103) << Join(5, "aws", none())
    book.end(Phase.MOVING)


def test_pauses_grow_with_each_round_in_vain():
    assert [LIMITS.pause_after(rounds) for rounds in (0, 1, 2, 5, 6, 1_000_000)] == [60, 120, 240, 1920, 3600, 3600]


def test_a_second_refusal_waits_twice_as_long():
    book = moving() >> JoinRefused(2, 12) << Alarm(1, refused=True) >> Tick(72) << Join(3, "aws", none())
    book = book >> JoinSent(3, 3, 73) >> JoinRefused(3, 74) << Alarm(1, refused=True)
    book.end(Phase.MOVING)
    assert next_deadline(book.state, LIMITS) == 74 + 120


def test_a_silent_link_that_answers_late_is_taken_and_the_others_are_undone():
    book = (
        moving() >> Tick(21) << Join(3, "aws", links(2)) >> JoinSent(3, 3, 22) >> JoinConfirmed(2, 23) << Part(3)
    ).end(Phase.OVERLAP)
    (book >> JoinConfirmed(3, 24) << Part(3)).end(Phase.OVERLAP)


def test_a_late_answer_cancels_a_wish_that_has_not_been_sent():
    book = moving() >> Tick(21) << Join(3, "aws", links(2)) >> JoinConfirmed(2, 23) << CancelJoin(3)
    (book >> JoinSent(3, 3, 24) << Part(3)).end(Phase.OVERLAP)


def test_the_link_that_answers_in_time_undoes_the_silent_one():
    book = moving() >> Tick(21) << Join(3, "aws", links(2)) >> JoinSent(3, 3, 22) >> JoinConfirmed(3, 23) << Part(2)
    book.end(Phase.OVERLAP)


def test_an_echo_of_a_link_nobody_asked_is_undone():
    (served() >> JoinConfirmed(99, 5) << Part(99)).end(Phase.SERVED)


def test_a_confirmation_counts_for_the_link_that_it_names():
    """Lucky 1395, BCUK-Bot-4 569: a stale "already joined" of a dead link made the new session join nothing."""
    book = (
        Playbook()
        >> Wanted("main", (1, 1), 0)
        << Join(1, "main", none())
        >> JoinSent(1, 1, 1)
        >> LinkLost(1, 2)
        << Join(2, "main", none())
        >> JoinSent(2, 2, 3)
        >> JoinConfirmed(1, 4)
        << Part(1)
    )
    book.end(Phase.JOINING)


def test_a_refusal_waits_and_keeps_the_old_side():
    book = (moving() >> JoinRefused(2, 12) << Alarm(1, refused=True)).end(Phase.MOVING)
    assert next_deadline(book.state, LIMITS) == 72
    (book >> Tick(72) << Join(3, "aws", none())).end(Phase.MOVING)


def test_a_change_as_an_answer_waits_for_the_next_decision():
    book = (moving() >> NotHere(2, 12) << Part(2)).end(Phase.MOVING)
    (book >> Wanted("event", (1, 3), 13) << Join(3, "event", none())).end(Phase.MOVING)


@pytest.mark.parametrize("cause", [Cause.RECONNECT, Cause.SPLIT])
def test_a_link_to_be_left_is_a_handover_on_the_same_cluster(cause):
    book = (
        served()
        >> LinkLeaving(1, cause, 10)
        << Join(2, "main", links(1))
        >> JoinSent(2, 2, 11)
        >> JoinConfirmed(2, 12)
        >> Tick(32)
        << Part(1)
    ).end(Phase.SERVED)
    assert [(record.cause, record.outcome) for record in book.records] == [(cause, Outcome.DONE)]


def test_a_ghost_is_doubted_and_joined_elsewhere():
    book = served() >> LinkLeaving(1, Cause.GHOST, 10) << Join(2, "main", links(1)) << Doubt(DoubtReason.SILENT)
    book.end(Phase.MOVING)


def test_an_old_link_that_ends_by_itself_ends_the_handover():
    book = (
        served()
        >> LinkLeaving(1, Cause.RECONNECT, 10)
        << Join(2, "main", links(1))
        >> JoinSent(2, 2, 11)
        >> JoinConfirmed(2, 12)
        >> LinkLost(1, 14)
    ).end(Phase.SERVED)
    assert [record.outcome for record in book.records] == [Outcome.OLD_LOST]


def test_three_reconnects_in_a_row_end_on_one_link():
    book = (
        served()
        >> LinkLeaving(1, Cause.RECONNECT, 10)
        << Join(2, "main", links(1))
        >> JoinSent(2, 2, 11)
        >> LinkLeaving(2, Cause.RECONNECT, 12)
        << Join(3, "main", links(1, 2))
        >> LinkLost(1, 13)
        >> JoinSent(3, 3, 14)
        >> LinkLeaving(3, Cause.RECONNECT, 14.5)
        << Join(4, "main", links(1, 2, 3))
        >> LinkLost(2, 15)
        >> LinkLost(3, 15)
        >> JoinSent(4, 4, 16)
        >> JoinConfirmed(4, 17)
    )
    book.end(Phase.SERVED)


def test_a_reconnect_on_the_new_side_keeps_the_older_one_too():
    book = (
        overlapping()
        >> LinkLeaving(2, Cause.RECONNECT, 15)
        << Join(3, "aws", links(2))
        >> JoinSent(3, 3, 16)
        >> JoinConfirmed(3, 17)
        >> Tick(37)
        << Part(1)
        << Part(2)
    )
    book.end(Phase.SERVED)


def test_a_lost_link_is_joined_again():
    book = served() >> LinkLost(1, 10) << Join(2, "main", none())
    book.end(Phase.SEEKING)
    assert book.state.wanted == "main"


def test_a_lost_new_side_leaves_the_old_one_serving():
    (overlapping() >> LinkLost(2, 15) << Join(3, "aws", none())).end(Phase.MOVING)


def test_a_new_link_that_fails_three_times_leaves_the_old_side_alone():
    """pyTwitchAPI 310 and 319."""
    book = moving()
    for number in range(3):
        book = (
            book >> LinkLost(2 + number, 12) << Join(3 + number, "aws", none()) >> JoinSent(3 + number, 3 + number, 13)
        )
    book.end(Phase.MOVING)
    assert [side.link for side in book.state.sides] == [1]


def test_a_line_on_the_old_side_alone_is_doubted_until_a_lookup_agrees():
    book = (
        overlapping() >> HeardOnOldOnly(15) << Doubt(DoubtReason.HEARD_ON_OLD) >> HeardOnOldOnly(16) >> Tick(1000)
    ).end(Phase.DOUBTED)
    book = book >> LookupAgreed(1001) >> Tick(1001) << Part(1)
    book.end(Phase.SERVED)


def test_a_lookup_that_contradicts_turns_the_sides_around():
    book = overlapping() >> HeardOnOldOnly(15) << Doubt(DoubtReason.HEARD_ON_OLD) >> Wanted("main", (1, 3), 16)
    book = book >> Tick(16) << Part(2)
    book.end(Phase.SERVED)
    assert [side.cluster for side in book.state.sides] == ["main"]


def test_a_line_on_the_old_link_alone_on_one_cluster_shows_a_ghost():
    book = (
        served()
        >> LinkLeaving(1, Cause.SPLIT, 10)
        << Join(2, "main", links(1))
        >> JoinSent(2, 2, 11)
        >> JoinConfirmed(2, 12)
        >> HeardOnOldOnly(15)
        << Part(2)
        << Join(3, "main", links(1, 2))
    )
    book.end(Phase.MOVING)


def test_a_move_back_before_the_join_left_needs_no_join():
    book = moving(sent=False) >> Wanted("main", (1, 3), 12) << CancelJoin(2)
    book.end(Phase.SERVED)


def test_a_move_back_after_the_join_left_undoes_it():
    (moving() >> Wanted("main", (1, 3), 12) << Part(2)).end(Phase.SERVED)


def test_an_old_decision_changes_nothing():
    (overlapping() >> Wanted("main", (1, 1), 15) >> Wanted("main", (1, 2), 15)).end(Phase.OVERLAP)


def test_the_same_cluster_again_changes_nothing():
    (served() >> Wanted("main", (2, 1), 15)).end(Phase.SERVED)


@pytest.mark.parametrize("make", [served, moving, overlapping])
def test_an_unwanted_channel_is_parted_everywhere(make):
    book = make()
    held = sorted(book.state.links)
    state, commands = step(book.state, Unwanted(20), LIMITS)
    assert sorted(command.link for command in commands if isinstance(command, Part)) == held
    assert state.phase is Phase.ABSENT


def test_a_channel_given_away_and_got_back_is_joined_again():
    book = (served() >> Unwanted(10) << Part(1) >> Wanted("main", (1, 1), 20) << Join(2, "main", none())).end(
        Phase.SEEKING
    )
    assert book.state.tickets == 2


def test_a_flapping_channel_holds_a_bounded_number_of_links():
    state, link = served().state, 1
    for version in range(2, 12):
        link += 1
        state, _ = step(state, Wanted(f"cluster{version}", (1, version), link), LIMITS)
        state, _ = step(state, JoinSent(state.tickets, link, link), LIMITS)
        state, commands = step(state, JoinConfirmed(link, link), LIMITS)
        assert len(state.sides) <= SIDES_MAX
        assert state.sides[-1].link == link
        assert Part(link) not in commands
