"""The parts of the lookup schedule by themselves: habits, hazard, lanes, questions."""

import pytest

from serverchange.tracker.habits import Habits
from serverchange.tracker.move_hazard import MoveHazard
from serverchange.tracker.questions import READY, Questions
from serverchange.tracker.scan_lanes import ScanLanes

DAY = 86_400.0
HOUR = 3_600.0


def habits_of(rows: int, starts: dict[int, list[float]], *, until_day: int) -> Habits:
    """Rows whose streams start at the given hours of every day and last an hour."""
    habits = Habits(day_s=DAY, now_s=0.0)
    for _ in range(rows):
        habits.add(0.0)
    for day in range(until_day):
        for hour in range(24):
            now_s = day * DAY + hour * HOUR
            habits.tick(now_s)
            for row, hours in starts.items():
                if hour in hours:
                    habits.went_live(row, now_s)
                    habits.went_offline(row, now_s + HOUR)
    return habits


def test_a_channel_that_streams_every_evening_is_expected_in_the_evening() -> None:
    habits = habits_of(2, {0: [20], 1: [8]}, until_day=10)
    evening_s = 10 * DAY + 20 * HOUR
    habits.tick(evening_s)
    at_its_hour, _ = habits.starts_per_s(0, evening_s)
    at_another, _ = habits.starts_per_s(1, evening_s)
    assert at_its_hour > 5 * at_another


def test_what_comes_in_the_hours_ahead_is_seen_before_what_is_likely_now() -> None:
    habits = habits_of(2, {0: [20], 1: [8]}, until_day=10)
    afternoon_s = 10 * DAY + 16 * HOUR
    habits.tick(afternoon_s)
    now_per_s, soon_per_s = habits.starts_per_s(0, afternoon_s)
    assert soon_per_s > 2 * now_per_s


def test_somebody_who_never_streamed_is_expected_less_the_longer_he_is_known() -> None:
    habits = habits_of(2, {0: [20]}, until_day=10)
    assert habits.starts_per_s(1, 10 * DAY)[0] < 0.3 * habits.starts_per_s(1, 0.5 * DAY)[0]


def test_a_row_given_to_another_channel_knows_nothing_of_the_one_before() -> None:
    habits = habits_of(2, {0: [20]}, until_day=10)
    now_s = 10 * DAY + 20 * HOUR
    habits.reset(0, now_s)
    habits.add(now_s)
    assert habits.starts_per_s(0, now_s + HOUR) == habits.starts_per_s(2, now_s + HOUR)


def test_counts_fade_and_never_overflow() -> None:
    habits = habits_of(1, {0: [0, 6, 12, 18]}, until_day=200)
    assert 0.0 < habits.starts_per_s(0, 200 * DAY)[0] < 100 / DAY


def test_a_cohort_in_which_channels_are_found_moved_is_likely_to_move_and_forgotten_in_hours() -> None:
    hazard = MoveHazard(now_s=0.0)
    partners = hazard.cohort((frozenset({"partner"}), "main"))
    staff = hazard.cohort((frozenset({"staff"}), "main"))
    hazard.members[partners] = hazard.members[staff] = 100
    rest = hazard.per_s[partners]
    for second in range(10):
        hazard.examined(partners, HOUR, moved=True, sampled=False, now_s=float(second))
    hazard.tick(60.0)
    assert hazard.per_s[partners] == pytest.approx(10 / (100 * 2_400), rel=0.05)
    assert rest < hazard.per_s[staff] < 0.1 * hazard.per_s[partners]
    hazard.tick(24 * HOUR)
    assert hazard.per_s[partners] < 2 * rest


def test_lookups_that_find_nothing_lower_what_a_few_finds_raised() -> None:
    hazard = MoveHazard(now_s=0.0)
    cohort = hazard.cohort((frozenset(), "main"))
    hazard.members[cohort] = 100_000
    hazard.examined(cohort, HOUR, moved=True, sampled=True, now_s=0.0)
    raised = hazard.per_s[cohort]
    for _ in range(100):
        hazard.examined(cohort, HOUR, moved=False, sampled=True, now_s=1.0)
    hazard.tick(5.0)
    assert hazard.per_s[cohort] < 0.2 * raised


def test_the_heaviest_lane_that_waited_longest_is_first() -> None:
    lanes = ScanLanes()
    for row, weight in enumerate((1e-6, 1e-3, 1e-6)):
        lanes.add(row, weight, 0.0)
    (_, first), (_, second) = lanes.order(100.0, 5.0)
    assert lanes.take(first, 10, 100.0, 5.0) == [1]
    assert lanes.take(second, 10, 100.0, 5.0) == [0, 2]


def test_a_row_just_scanned_is_not_taken_again() -> None:
    lanes = ScanLanes()
    lanes.add(0, 1e-3, 0.0)
    assert lanes.take(lanes.order(10.0, 5.0)[0][1], 1, 10.0, 5.0) == [0]
    assert lanes.order(12.0, 5.0) == []


def test_too_many_questions_drop_the_worse_half_and_raise_the_bar() -> None:
    questions = Questions()
    for row in range(READY):
        assert questions.put(row, float(row), "offline", 0.0) == []
    dropped = questions.put(READY, float(READY), "offline", 0.0)
    assert len(questions) == READY // 2
    assert max(question.worth for question in dropped) < questions.bar <= questions.best
    questions.lower_bar(1.0)
    assert questions.bar < READY // 2 + 1


def test_what_a_scan_can_save_ends_with_the_stream_and_with_the_break() -> None:
    lanes = ScanLanes()
    lanes.add(0, 1e-6, 0.0)
    lanes.add(1, 1e-6, 0.0)
    lanes.weigh(1, 1e-6, live=True)
    short = {lane: worth for worth, lane in lanes.order(100.0, 5.0)}
    long = {lane: worth for worth, lane in lanes.order(100.0 * HOUR, 5.0)}
    offline, live = sorted(short)
    assert short[offline] == short[live]
    assert long[live] < 10 * short[live]
    assert short[offline] * 1_000 < long[offline] < short[offline] * HOUR**2
