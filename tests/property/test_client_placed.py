"""The quick parser of the SDK accepts and refuses exactly what the general one does."""

from __future__ import annotations

import gc
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverchange.client.change_log import ChannelTable
from serverchange.client.placed import Placed, PlacedParser
from serverchange.events import (
    CHANNEL_PATTERN,
    CLUSTER_PATTERN,
    ChangedData,
    ChangeKind,
    ChannelKind,
    ClusterChanged,
    Rejected,
    change_id,
    parse_change,
)

channels = st.from_regex(CHANNEL_PATTERN.replace("$", r"\Z"), fullmatch=True)
clusters = st.from_regex(CLUSTER_PATTERN.replace("$", r"\Z"), fullmatch=True)
moments = st.datetimes(datetime(2010, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
labels = st.lists(st.from_regex(r"[a-z0-9][a-z0-9_.:-]{0,30}", fullmatch=True), max_size=4)
words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)

events = st.builds(
    ClusterChanged,
    id=words,
    source=words,
    time=moments,
    subject=channels,
    roomid=st.none() | st.from_regex(r"[0-9]{1,20}", fullmatch=True),
    data=st.builds(
        ChangedData,
        what=st.sampled_from(ChangeKind),
        previous=st.none() | clusters,
        cluster=st.none() | clusters,
        generation=st.integers(1, 2**31 - 1),
        version=st.integers(1, 2**53 - 1),
        since=moments,
        kind=st.sampled_from(ChannelKind),
        labels=labels.map(tuple),
        account=st.none() | channels,
        evidence=st.lists(words, max_size=8).map(tuple),
    ),
)


def general(key: bytes, value: bytes) -> tuple[str, Placed] | None:
    try:
        event = parse_change(key, value)
    except Rejected:
        return None
    data = event.data
    return event.subject, Placed(
        data.cluster, data.previous, data.generation, data.version, data.since, data.what, data.kind, data.labels
    )


def quick(key: bytes, value: bytes) -> tuple[str, Placed] | None:
    try:
        return PlacedParser().parse(key, value)
    except Rejected:
        return None


@given(events)
def test_both_parsers_read_an_event_alike(event: ClusterChanged) -> None:
    key, value = event.subject.encode(), event.to_record()

    assert quick(key, value) == general(key, value)
    assert quick(b"another", value) == general(b"another", value)


@given(events, st.data())
def test_both_parsers_judge_a_damaged_event_alike(event: ClusterChanged, data: Any) -> None:
    value = event.to_record()
    place = data.draw(st.integers(0, len(value) - 1))
    damaged = value[:place] + data.draw(st.binary(max_size=2)) + value[place + data.draw(st.integers(0, 3)) :]

    assert quick(event.subject.encode(), damaged) == general(event.subject.encode(), damaged)


@pytest.mark.parametrize("since", ["2016-02-31T00:00:00Z", "2016-02-01T25:00:00Z", "2009-02-01T00:00:00Z"])
def test_a_moment_that_never_was_is_refused_by_both(since: str) -> None:
    event = ClusterChanged(
        id="x",
        source="x",
        time=datetime(2016, 2, 1, tzinfo=UTC),
        subject="forsen",
        data=ChangedData(what=ChangeKind.MOVED, generation=1, version=1, since=datetime(2016, 2, 1, tzinfo=UTC)),
    )
    value = event.to_record().replace(b'"since":"2016-02-01T00:00:00Z"', f'"since":"{since}"'.encode())

    assert quick(b"forsen", value) is None
    assert general(b"forsen", value) is None


@pytest.mark.parametrize("array", ['["a""b"]', '["a",]', '[,"a"]', '["a" "b"]', '["a",,"b"]', '["A"]', "[1]", '["a"'])
@pytest.mark.parametrize("member", ["labels", "evidence"])
def test_an_array_that_is_none_is_judged_alike(member: str, array: str) -> None:
    event = _Record(1)
    value = event.value.replace(
        b'"labels":["partner"]' if member == "labels" else b'"evidence":[]', f'"{member}":{array}'.encode()
    )

    assert quick(event.key, value) == general(event.key, value)


class _Record:
    def __init__(self, number: int) -> None:
        channel = f"channel_{number}"
        event = ClusterChanged(
            id=change_id(channel, 1, 2),  # type: ignore[arg-type]
            source="materializer/host-1",
            time=datetime(2016, 2, 1, tzinfo=UTC),
            subject=channel,
            data=ChangedData(
                what=ChangeKind.MOVED,
                previous="main",
                cluster="aws",
                generation=1,
                version=number,
                since=datetime(2016, 2, 1, tzinfo=UTC),
                labels=("partner",),
            ),
        )
        self.key, self.value = channel.encode(), event.to_record()


def test_a_channel_costs_the_map_at_most_300_bytes_beside_its_name() -> None:
    count = 30_000
    table = ChannelTable()
    gc.collect()
    tracemalloc.start()
    try:
        table.load(map(_Record, range(1, count + 1)))  # type: ignore[arg-type]
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    names = sum(len(name) + 49 for name in table.channels)

    assert len(table.channels) == count
    assert (used - names) / count <= 300
