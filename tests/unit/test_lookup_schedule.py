import itertools
from collections import Counter
from collections.abc import Collection

import pytest

from serverchange.tracker.lookup_schedule import (
    Lookup,
    LookupSchedule,
    Request,
    ScheduleSettings,
    StreamsScan,
    Wait,
)

T0 = 1_000_000.0
MINUTE = 60.0
HOUR = 3_600.0
SETTINGS = ScheduleSettings()


def schedule_of(*channels: str, verified: bool = True, verified_at_s: float = T0) -> LookupSchedule:
    schedule = LookupSchedule(SETTINGS, now_s=T0)
    for channel in channels:
        schedule.track(
            channel,
            labels=frozenset(),
            cluster="main",
            verified=verified,
            urgent=False,
            now_s=T0,
            verified_at_s=verified_at_s,
        )
    return schedule


def drive(
    schedule: LookupSchedule,
    steps: int,
    *,
    start_s: float = T0,
    every_s: float = 1.0,
    live: Collection[str] = (),
    moved: Collection[str] = (),
) -> list[Request]:
    """Answer truthfully, one request each ``every_s``; return what was asked."""
    asked: list[Request] = []
    for step in range(steps):
        now_s = start_s + step * every_s
        request = schedule.next_request(now_s)
        match request:
            case Lookup(channel):
                cluster = "aws" if channel in moved else "main"
                known = schedule.believed(channel)
                schedule.answered(channel, cluster=cluster, changed=cluster != known, now_s=now_s)
                asked.append(request)
            case StreamsScan(channels):
                schedule.scanned(channels, set(channels).intersection(live), now_s)
                asked.append(request)
            case Wait(until_s):
                assert until_s > now_s
    return asked


def lookups(requests: list[Request]) -> list[str]:
    return [request.channel for request in requests if isinstance(request, Lookup)]


def names(count: int) -> list[str]:
    return [f"c{number:04d}" for number in range(count)]


def test_an_empty_schedule_waits() -> None:
    assert isinstance(schedule_of().next_request(T0), Wait)


def test_an_urgent_channel_is_asked_first() -> None:
    schedule = schedule_of("a", "b", "c")
    schedule.update("b", cluster="main", verified=False, urgent=True, moved=False, now_s=T0 + 1)
    assert schedule.next_request(T0 + 1) == Lookup("b")


def test_a_channel_under_way_is_not_asked_twice() -> None:
    schedule = schedule_of("a")
    schedule.update("a", cluster="main", verified=False, urgent=True, moved=False, now_s=T0)
    assert schedule.next_request(T0) == Lookup("a")
    schedule.update("a", cluster="main", verified=False, urgent=True, moved=False, now_s=T0)
    assert schedule.next_request(T0) != Lookup("a")


def test_an_important_lookup_that_failed_comes_back_when_the_platform_said() -> None:
    schedule = schedule_of("a", verified=False)
    request = schedule.next_request(T0)
    assert request == Lookup("a")
    schedule.failed(request, T0 + 1, retry_after_s=10.0)
    early = [schedule.next_request(T0 + 1 + step) for step in range(10)]
    assert Lookup("a") not in early
    assert Lookup("a") in [schedule.next_request(T0 + 11 + step) for step in range(3)]


def test_a_lookup_that_nobody_answers_is_taken_for_failed() -> None:
    schedule = schedule_of("a", verified=False)
    assert schedule.next_request(T0) == Lookup("a")
    later_s = T0 + SETTINGS.forget_in_flight_after_s + MINUTE
    asked = [schedule.next_request(later_s + step) for step in range(10)]
    assert Lookup("a") in asked


def test_a_failed_scan_is_first_in_line_again() -> None:
    schedule = schedule_of(*names(300))
    request = schedule.next_request(T0 + 10)
    assert isinstance(request, StreamsScan)
    schedule.failed(request, T0 + 11)
    following = [schedule.next_request(T0 + 20 + step) for step in range(4)]
    again = {channel for scan in following if isinstance(scan, StreamsScan) for channel in scan.channels}
    assert set(request.channels) <= again


def test_whoever_newly_went_live_is_asked_at_once() -> None:
    schedule = schedule_of(*"abcdef", verified_at_s=T0 - HOUR)
    schedule.scanned(tuple("abcdef"), {"e"}, T0 + 5)
    assert schedule.next_request(T0 + 5) == Lookup("e")


def test_whoever_still_streams_is_not_new() -> None:
    schedule = schedule_of(*"abcdef", verified_at_s=T0 - HOUR)
    schedule.scanned(tuple("abcdef"), {"e"}, T0 + 5)
    schedule.next_request(T0 + 5)
    schedule.answered("e", cluster="main", changed=False, now_s=T0 + 5)
    schedule.scanned(tuple("abcdef"), {"e"}, T0 + 8)
    assert schedule.next_request(T0 + 8) != Lookup("e")


def test_repeated_questions_about_an_unverified_channel_are_spaced() -> None:
    schedule = schedule_of("a", *names(500), verified_at_s=T0 - HOUR)
    schedule.update("a", cluster="main", verified=False, urgent=True, moved=False, now_s=T0)
    asked_s: list[float] = []
    for step in range(200):
        now_s = T0 + step
        request = schedule.next_request(now_s)
        if request == Lookup("a"):
            asked_s.append(now_s - T0)
            schedule.answered("a", cluster="aws", changed=True, now_s=now_s)
            schedule.update("a", cluster="main", verified=False, urgent=False, moved=False, now_s=now_s)
        elif isinstance(request, StreamsScan):
            schedule.scanned(request.channels, (), now_s)
        elif isinstance(request, Lookup):
            schedule.answered(request.channel, cluster="main", changed=False, now_s=now_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked_s)]
    assert [round(gap / spacing, 1) for gap, spacing in zip(gaps, SETTINGS.repeat_after_s, strict=False)] == [1.0] * 3


def test_a_verified_channel_is_not_asked_again_for_its_old_doubt() -> None:
    schedule = schedule_of("a", *names(300))
    schedule.update("a", cluster="main", verified=False, urgent=False, moved=False, now_s=T0)
    schedule.update("a", cluster="main", verified=True, urgent=False, moved=False, now_s=T0 + 1)
    assert "a" not in lookups(drive(schedule, 12, start_s=T0 + 2))


def test_the_neighbours_of_a_moved_channel_are_asked_next_outwards_until_two_misses() -> None:
    schedule = schedule_of(*names(400), verified_at_s=T0 - HOUR)
    drive(schedule, 3)
    batch = set(names(400)[100:120])
    schedule.update("c0110", cluster="main", verified=False, urgent=True, moved=False, now_s=T0 + 4)
    asked = lookups(drive(schedule, 120, start_s=T0 + 4, moved=batch))
    first = asked[: asked.index("c0110") + 45]
    assert batch <= set(first)
    beyond = {name for name in first if name not in batch and "c0090" < name < "c0130"}
    assert 2 <= len(beyond) <= 12


def test_a_channel_passed_over_between_moved_ones_is_asked_again() -> None:
    schedule = schedule_of(*names(400), verified_at_s=T0 - HOUR)
    drive(schedule, 3)
    late = "c0112"
    batch = set(names(400)[100:120]) - {late}
    schedule.update("c0110", cluster="main", verified=False, urgent=True, moved=False, now_s=T0 + 4)
    drive(schedule, 100, start_s=T0 + 4, moved=batch)
    assert late in lookups(drive(schedule, 300, start_s=T0 + 104, moved=batch | {late}))
    assert schedule.believed(late) == "aws"


def test_a_cohort_that_moves_is_asked_more_than_one_that_rests() -> None:
    schedule = schedule_of()
    for label in ("partner", "staff"):
        for number in range(300):
            schedule.track(
                f"{label}{(number * 7919) % 1000:03d}x{number}",
                labels=frozenset({label}),
                cluster="main",
                verified=True,
                urgent=False,
                now_s=T0,
            )
    moved = [f"partner{(number * 7919) % 1000:03d}x{number}" for number in range(0, 300, 15)]
    for step, channel in enumerate(moved[:10]):
        schedule.update(channel, cluster="aws", verified=True, urgent=False, moved=True, now_s=T0 + step)
    asked = Counter(name[:5] for name in lookups(drive(schedule, 150, start_s=T0 + HOUR)))
    assert asked["partn"] > 3 * asked["staff"]


def test_every_channel_is_looked_up_and_scanned_in_time() -> None:
    schedule = schedule_of(*names(50))
    asked = drive(schedule, 4_000)
    scanned = {channel for request in asked if isinstance(request, StreamsScan) for channel in request.channels}
    assert set(lookups(asked)) == scanned == set(names(50))


def test_a_scan_asks_no_more_names_than_the_platform_takes_and_none_twice() -> None:
    schedule = schedule_of(*names(1_000))
    for request in drive(schedule, 200, every_s=0.1):
        if isinstance(request, StreamsScan):
            assert len(set(request.channels)) == len(request.channels) <= SETTINGS.names_per_scan


def test_a_start_with_many_unverified_channels_still_scans_and_asks_them_all() -> None:
    schedule = schedule_of(*names(2_000), verified=False)
    assert len(set(lookups(drive(schedule, 4_000, every_s=0.05)))) == 2_000


def test_an_untracked_channel_is_never_asked_and_its_place_is_given_away() -> None:
    schedule = schedule_of(*names(20), verified=False)
    schedule.untrack("c0003")
    schedule.track("new", labels=frozenset(), cluster=None, verified=False, urgent=False, now_s=T0)
    asked = drive(schedule, 300)
    assert "c0003" not in lookups(asked)
    assert "new" in lookups(asked)
    assert "c0003" not in schedule
    assert len(schedule) == 20


def test_an_answer_that_contradicts_a_change_just_made_is_a_doubt_and_not_a_move_back() -> None:
    schedule = schedule_of("a", *names(50))
    schedule.answered("a", cluster="aws", changed=True, now_s=T0 + 1)
    schedule.answered("a", cluster="main", changed=True, now_s=T0 + 6)
    assert schedule.believed("a") == "aws"


def test_the_suggested_rate_falls_to_a_trickle_and_rises_when_channels_move() -> None:
    schedule = schedule_of("a", "b")
    assert schedule.suggested_rate_per_s(T0 + HOUR, 20.0) == 20.0
    assert schedule.suggested_rate_per_s(T0 + 24 * HOUR, 20.0) == pytest.approx(5.0)
    assert schedule.suggested_rate_per_s(T0 + 1_000 * HOUR, 20.0) == pytest.approx(0.4)
    schedule.answered("a", cluster="aws", changed=True, now_s=T0 + 1_000 * HOUR)
    assert schedule.suggested_rate_per_s(T0 + 1_000 * HOUR, 20.0) == 20.0


def test_an_explanation_says_why_and_when() -> None:
    schedule = schedule_of("a", *names(50), verified_at_s=T0 - HOUR)
    drive(schedule, 20)
    resting = schedule.explain("a", T0 + 30)
    assert resting.reason == "may go live elsewhere"
    assert resting.next_lookup_s >= T0 + 30
    assert 0.0 < resting.parts["chance of having moved"] < 1.0
    schedule.update("a", cluster="main", verified=False, urgent=False, moved=False, now_s=T0 + 30)
    doubted = schedule.explain("a", T0 + 30)
    assert doubted.reason == "not verified yet"
    assert doubted.next_lookup_s == T0 + 30 + SETTINGS.repeat_after_s[0]


def test_the_score_is_the_most_that_one_source_says() -> None:
    schedule = schedule_of("a", *names(50), verified_at_s=T0 - HOUR)
    drive(schedule, 20)
    resting = schedule.explain("a", T0 + 30)
    assert resting.sources == {"moves in its cohort, and it may go live": pytest.approx(resting.score)}
    schedule.update("a", cluster="main", verified=False, urgent=True, moved=False, now_s=T0 + 30)
    alarmed = schedule.explain("a", T0 + 30)
    assert alarmed.score == alarmed.sources["a notice or a doubt that stands"] > resting.score
    suspected = alarmed.sources["neighbours that moved, or a notice, and it may go live"]
    assert suspected > alarmed.sources["moves in its cohort, and it may go live"] == pytest.approx(resting.score)
    assert alarmed.sources["no lookup has agreed yet"] > 0.0


def test_an_unknown_channel_cannot_be_explained() -> None:
    with pytest.raises(KeyError):
        schedule_of().explain("nobody", T0)


def test_unknown_channels_in_answers_and_updates_are_ignored() -> None:
    schedule = schedule_of("a")
    schedule.answered("nobody", cluster="aws", changed=True, now_s=T0)
    schedule.scanned(("nobody",), {"nobody"}, T0)
    schedule.failed(Lookup("nobody"), T0)
    schedule.update("nobody", cluster="aws", verified=True, urgent=True, moved=True, now_s=T0)
    schedule.untrack("nobody")
    assert len(schedule) == 1


def test_a_notice_that_the_api_contradicts_is_followed_up_for_longer_than_the_api_lags() -> None:
    schedule = schedule_of("a", *names(300), verified_at_s=T0 - MINUTE)
    schedule.update("a", cluster="main", verified=False, urgent=True, moved=False, now_s=T0)
    asked = [name for name in lookups(drive(schedule, 400)) if name == "a"]
    assert len(asked) >= 4


def test_a_notice_during_a_lookup_that_turns_out_stale_is_asked_as_soon_as_that_one_is_back() -> None:
    schedule = schedule_of(*names(30))
    drive(schedule, 30)
    for step in range(400):
        now_s = T0 + HOUR + step
        request = schedule.next_request(now_s)
        if isinstance(request, Lookup):
            break
    assert isinstance(request, Lookup)
    schedule.update(request.channel, cluster="main", verified=False, urgent=True, moved=False, now_s=now_s)
    void = schedule.next_request(now_s)  # its question is void while the lookup is under way
    assert void != request
    schedule.failed(request, now_s + 0.5, retry_after_s=0.0)
    assert schedule.next_request(now_s + 0.5) == request


def test_of_two_notices_the_older_is_asked_first() -> None:
    schedule = schedule_of("first_tracked", "second_tracked")
    drive(schedule, 2)
    for delay_s, channel in ((0.0, "second_tracked"), (1.0, "first_tracked")):
        now_s = T0 + HOUR + delay_s
        schedule.update(channel, cluster="main", verified=False, urgent=True, moved=False, now_s=now_s)
    assert [schedule.next_request(T0 + HOUR + 2.0) for _ in range(2)] == [
        Lookup("second_tracked"),
        Lookup("first_tracked"),
    ]


def test_whoever_went_live_and_was_not_asked_for_want_of_requests_is_found_again() -> None:
    schedule = schedule_of(*names(1_000), verified_at_s=T0 - HOUR)
    for channel in names(1_000)[:600]:
        schedule.heard_live(channel, T0)
    asked = lookups(drive(schedule, 1_500, start_s=T0 + 1, live=names(1_000)[:600]))
    assert set(names(1_000)[:600]) <= set(asked)
