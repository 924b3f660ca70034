"""Whatever happens, the schedule asks only for what is tracked, keeps to the platform's limit and loses nobody."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from serverchange.tracker.lookup_schedule import Lookup, LookupSchedule, ScheduleSettings, StreamsScan
from serverchange.tracker.scan_lanes import ScanLanes

NAMES = tuple(f"c{number}" for number in range(12))
CLUSTERS = ("main", "aws", "event")
SMALL = ScheduleSettings(names_per_scan=5)

channel = st.sampled_from(NAMES)
cluster = st.sampled_from(CLUSTERS)
step = st.one_of(
    st.tuples(st.just("track"), channel, cluster, st.booleans()),
    st.tuples(st.just("untrack"), channel, cluster, st.booleans()),
    st.tuples(st.just("update"), channel, cluster, st.booleans()),
    st.tuples(st.just("ask"), st.sampled_from(("answer", "fail", "lose")), cluster, st.booleans()),
    st.tuples(st.just("live"), channel, cluster, st.booleans()),
)


def take(schedule: LookupSchedule, action: Sequence[object], tracked: set[str], now_s: float) -> None:
    kind, what, where, flag = action
    assert isinstance(what, str)
    assert isinstance(where, str)
    assert isinstance(flag, bool)
    match kind:
        case "track":
            tracked.add(what)
            schedule.track(what, labels=frozenset(), cluster=where, verified=flag, urgent=not flag, now_s=now_s)
        case "untrack":
            tracked.discard(what)
            schedule.untrack(what)
        case "update":
            schedule.update(what, cluster=where, verified=flag, urgent=not flag, moved=True, now_s=now_s)
        case "live":
            (schedule.heard_live if flag else schedule.heard_offline)(what, now_s)
        case _:
            ask(schedule, what, where, tracked, now_s)


def ask(schedule: LookupSchedule, fate: str, where: str, tracked: set[str], now_s: float) -> None:
    request = schedule.next_request(now_s)
    match request:
        case Lookup(name):
            assert name in tracked
            if fate == "answer":
                schedule.answered(name, cluster=where, changed=where != schedule.believed(name), now_s=now_s)
            elif fate == "fail":
                schedule.failed(request, now_s, retry_after_s=1.0)
        case StreamsScan(names):
            assert set(names) <= tracked
            assert len(set(names)) == len(names) <= SMALL.names_per_scan
            if fate == "answer":
                schedule.scanned(names, set(names[::3]), now_s)
            elif fate == "fail":
                schedule.failed(request, now_s)
        case _:
            pass


@settings(max_examples=80, deadline=None)
@given(st.lists(step, max_size=120))
def test_only_tracked_channels_are_asked_and_none_is_lost(actions: list[Sequence[object]]) -> None:
    schedule = LookupSchedule(SMALL, now_s=0.0)
    tracked: set[str] = set()
    now_s = 0.0
    for action in actions:
        now_s += 0.5
        take(schedule, action, tracked, now_s)
    assert len(schedule) == len(tracked)
    looked: set[str] = set()
    scanned: set[str] = set()
    for _ in range(1_500):
        now_s += 2.0
        match schedule.next_request(now_s):
            case Lookup(name):
                looked.add(name)
                schedule.answered(name, cluster="aws", changed=schedule.believed(name) != "aws", now_s=now_s)
            case StreamsScan(names):
                scanned.update(names)
                schedule.scanned(names, (), now_s)
            case _:
                pass
    assert looked == scanned == tracked


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(1e-12, 1.0), st.booleans()), max_size=60))
def test_lanes_hold_every_row_exactly_once(changes: list[tuple[int, float, bool]]) -> None:
    lanes = ScanLanes()
    for row in range(10):
        lanes.add(row, 1e-6, 0.0)
    for number, (row, weight, fails) in enumerate(changes):
        lanes.weigh(row, weight)
        if fails:
            lanes.to_front(row)
        order = lanes.order(10.0 + number, 1.0)
        if order:
            lanes.take(order[0][1], 3, 10.0 + number, 1.0)
    later_s = 1_000.0
    rows = [row for _, lane in lanes.order(later_s, 1.0) for row in lanes.take(lane, 100, later_s, 1.0)]
    assert sorted(rows) == list(range(10))
