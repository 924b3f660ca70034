from collections import Counter

from serverchange.tracker.lookup_schedule import (
    Lookup,
    LookupSchedule,
    ScheduleSettings,
    StreamsScan,
    Wait,
)

T0 = 1_000_000.0


def schedule_of(*channels: str, verified: bool = True, urgent: bool = False) -> LookupSchedule:
    schedule = LookupSchedule(ScheduleSettings(), now_s=T0)
    for channel in channels:
        schedule.track(
            channel, labels=frozenset(), cluster="main", verified=verified, urgent=urgent, now_s=T0, verified_at_s=T0
        )
    return schedule


def test_an_urgent_channel_is_asked_first() -> None:
    schedule = schedule_of("a", "b", "c")
    schedule.update("b", cluster="main", verified=False, urgent=True, moved=False, now_s=T0 + 1)
    assert schedule.next_request(T0 + 1) == Lookup("b")


def test_an_empty_schedule_waits() -> None:
    assert isinstance(schedule_of().next_request(T0), Wait)


def test_a_failed_lookup_comes_back() -> None:
    schedule = schedule_of("a", verified=False)
    request = schedule.next_request(T0)
    assert request == Lookup("a")
    schedule.failed(request, T0 + 1, retry_after_s=10.0)
    asked = [schedule.next_request(T0 + 11 + step) for step in range(5)]
    assert Lookup("a") in asked


def test_whoever_newly_went_live_is_asked_at_once() -> None:
    schedule = schedule_of(*"abcdef")
    schedule.scanned(tuple("abcdef"), {"e"}, T0 + 5)
    assert schedule.next_request(T0 + 5) == Lookup("e")


def test_every_channel_is_looked_up_and_scanned_in_time() -> None:
    schedule = schedule_of(*(f"c{number}" for number in range(50)))
    looked: Counter[str] = Counter()
    scanned: Counter[str] = Counter()
    for step in range(2_000):
        now_s = T0 + step
        match schedule.next_request(now_s):
            case Lookup(channel):
                looked[channel] += 1
                schedule.answered(channel, cluster="main", changed=False, now_s=now_s)
            case StreamsScan(channels):
                scanned.update(channels)
                schedule.scanned(channels, (), now_s)
            case Wait():
                pass
    assert len(looked) == len(scanned) == 50
