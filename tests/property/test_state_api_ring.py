"""The ring and its cursors: whatever the interleaving of partitions, a resume brings exactly what came after."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverchange.events import ChangedData, ChangeKind, Channel, ClusterChanged, Rejected
from serverchange.state_api.change_ring import BehindRingError, ChangeCursor, ChangeFilter, ChangeRing, ReceivedChange
from serverchange.views import ChangePosition, format_change_id, format_position, parse_change_id, parse_position

PARTITIONS = 3
EVERYTHING = ChangeFilter()
MOMENT = datetime(2016, 2, 1, tzinfo=UTC)

orders = st.lists(st.integers(0, PARTITIONS - 1), max_size=40)


def change(partition: int, offset: int) -> ReceivedChange:
    event = ClusterChanged(
        id="x",
        source="x",
        time=MOMENT,
        subject=Channel(f"p{partition}"),
        data=ChangedData(what=ChangeKind.MOVED, generation=1, version=offset + 1, since=MOMENT),
    )
    return ReceivedChange(partition, offset, event, b'{"at":"%d@%d"}' % (partition, offset))


def filled(order: Sequence[int], capacity: int = 100) -> ChangeRing:
    """A ring that read one record a partition named in `order`, in that order."""
    ring = ChangeRing(ChangePosition("0000abcd", (0,) * PARTITIONS), capacity=capacity)
    counts = [0] * PARTITIONS
    for partition in order:
        ring.append(change(partition, counts[partition]))
        counts[partition] += 1
    return ring


def read(frames: Sequence[bytes]) -> list[tuple[str, tuple[int, int]]]:
    """Return the (id, place) of each frame."""
    found = []
    for frame in frames:
        match = re.fullmatch(rb'id: (\S+)\nevent: change\ndata: \{"at":"(\d+)@(\d+)"\}\n\n', frame)
        assert match is not None
        found.append((match[1].decode(), (int(match[2]), int(match[3]))))
    return found


def take_all(cursor: ChangeCursor, portion: int = 7) -> list[tuple[str, tuple[int, int]]]:
    found: list[tuple[str, tuple[int, int]]] = []
    while not cursor.at_newest:
        found.extend(read(cursor.take(EVERYTHING, portion)))
    return found


@given(orders, st.lists(st.integers(0, 40), min_size=PARTITIONS, max_size=PARTITIONS))
def test_a_resume_from_any_vector_brings_what_came_after_and_no_more(order: list[int], since: list[int]) -> None:
    counts = [order.count(partition) for partition in range(PARTITIONS)]
    offsets = tuple(min(mine, count) for mine, count in zip(since, counts, strict=True))

    cursor = ChangeCursor.resume(filled(order), ChangePosition("0000abcd", offsets))

    wanted = {(p, o) for p in range(PARTITIONS) for o in range(offsets[p], counts[p])}
    places = [place for _, place in take_all(cursor)]
    assert len(places) == len(wanted)
    assert set(places) == wanted


@given(orders, st.data())
def test_an_id_claims_all_that_was_sent_and_nothing_else(order: list[int], data: st.DataObject) -> None:
    counts = [order.count(partition) for partition in range(PARTITIONS)]
    offsets = tuple(data.draw(st.integers(0, count)) for count in counts)
    had = {(p, o) for p in range(PARTITIONS) for o in range(offsets[p])}

    for change_id, place in take_all(ChangeCursor.resume(filled(order), ChangePosition("0000abcd", offsets))):
        had.add(place)
        position = parse_change_id(change_id)
        assert {(p, o) for p in range(PARTITIONS) for o in range(position.offsets[p])} == had


@given(orders, st.integers(1, 8))
def test_a_slow_cursor_is_told_and_its_place_is_what_it_has(order: list[int], capacity: int) -> None:
    ring = ChangeRing(ChangePosition("0000abcd", (0,) * PARTITIONS), capacity=capacity)
    cursor = ChangeCursor.at_end(ring)
    counts = [0] * PARTITIONS
    for partition in order:
        ring.append(change(partition, counts[partition]))
        counts[partition] += 1

    if len(order) > capacity:
        with pytest.raises(BehindRingError):
            cursor.take(EVERYTHING, 10)
        assert cursor.position.offsets == (0,) * PARTITIONS
    else:
        assert len(take_all(cursor)) == len(order)
        assert cursor.position == ring.position


def test_commit_markers_are_passed_without_a_record() -> None:
    ring = filled([0, 0, 1])
    ring.pass_markers([3, 2, 1])  # a marker behind each partition's last record

    cursor = ChangeCursor.resume(ring, ChangePosition("0000abcd", (3, 2, 1)))
    assert take_all(cursor) == []
    ring.append(change(0, 3))

    ((change_id, place),) = take_all(cursor)
    assert place == (0, 3)
    assert parse_change_id(change_id).offsets == (4, 2, 1)


def test_a_filter_lets_pass_what_leads_to_or_from_a_cluster() -> None:
    event = change(0, 0).event
    moved = event.model_copy(update={"data": event.data.model_copy(update={"previous": "main", "cluster": "aws"})})
    received = ReceivedChange(0, 0, moved, b"{}")

    assert ChangeFilter(clusters=frozenset({"main"})).matches(received)
    assert ChangeFilter(clusters=frozenset({"aws"})).matches(received)
    assert not ChangeFilter(clusters=frozenset({"event"})).matches(received)
    assert not ChangeFilter(labels=frozenset({"staff"})).matches(received)
    assert not ChangeFilter(channels=frozenset({"another"})).matches(received)


@given(st.from_regex(r"[0-9a-f]{8}", fullmatch=True), st.lists(st.integers(0, 2**59), min_size=1, max_size=60))
def test_an_id_says_what_it_was_made_of(topic: str, offsets: list[int]) -> None:
    assert parse_change_id(format_change_id(topic, offsets)) == ChangePosition(topic, tuple(offsets))


@given(st.dictionaries(st.integers(0, 9_999), st.integers(0, 10**18 - 1), min_size=1, max_size=60))
def test_a_position_says_what_it_was_made_of(position: dict[int, int]) -> None:
    assert parse_position(format_position(position)) == position


@given(st.text(max_size=60))
def test_other_texts_are_refused_or_say_the_same_again(text: str) -> None:
    for parse, form in ((parse_position, format_position), (parse_change_id, lambda at: at)):
        try:
            parsed = parse(text)
        except Rejected:
            continue
        assert form(parsed)  # type: ignore[operator]
