"""The decoder of channel-events: what is no event is refused with a reason, and what passes PostgreSQL can hold."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from serverchange.events import (
    ALL_EVENTS,
    EVENT_BYTES_MAX,
    ChangedData,
    ChangeKind,
    Channel,
    ClusterChanged,
    ClusterObserved,
    Rejected,
    change_id,
    dead_letter_id,
    labels_union,
    parse_change,
    parse_channel,
    parse_channel_event,
)

NOW = "2026-05-01T12:00:00.5Z"


def envelope(**changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": "0190b5a0-0000-7000-8000-000000000000",
        "source": "serverchange/poller",
        "type": "tv.serverchange.cluster.observed.v1",
        "subject": "forsen",
        "time": NOW,
        "data": {"cluster": "aws", "asked_after": 3, "asked_at": NOW, "answered_at": NOW, "via": "servers"},
    }
    data = changes.pop("data", {})
    event.update(changes)
    if isinstance(data, dict):
        event["data"] = {**event["data"], **data}
    else:
        event["data"] = data
    return {name: value for name, value in event.items() if value is not ...}


def encoded(**changes: Any) -> bytes:
    return json.dumps(envelope(**changes)).encode()


def reason(value: bytes | None, key: bytes | None = b"forsen") -> str:
    with pytest.raises(Rejected) as refused:
        parse_channel_event(key, value)
    return str(refused.value)


def test_a_sound_event_is_parsed_to_its_type():
    event = parse_channel_event(b"forsen", encoded())
    assert isinstance(event, ClusterObserved)
    assert event.data.asked_after == 3
    assert event.time == datetime(2026, 5, 1, 12, 0, 0, 500_000, UTC)


def test_what_we_write_we_can_read():
    event = parse_channel_event(b"forsen", encoded(roomid="22484632"))
    assert parse_channel_event(b"forsen", event.to_record()) == event
    assert json.loads(event.to_record())["roomid"] == "22484632"


def test_extension_attributes_of_cloudevents_pass():
    assert parse_channel_event(b"forsen", encoded(partitionkey="a", sampledrate=3, flag=True)).id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Bad-Name": "x"}, "no CloudEvents name"),
        ({"toolarge": 2**31}, "32 bits"),
        ({"nested": {"a": 1}}, "neither string, boolean nor integer"),
        ({"subject": "xqc"}, "subject differs from the key"),
        ({"id": ...}, "id"),
        ({"id": ""}, "id"),
        ({"id": "a b"}, "id"),
        ({"id": "x" * 101}, "id"),
        ({"specversion": "0.3"}, "specversion"),
        ({"type": "tv.serverchange.cluster.observed.v2"}, "type"),
        ({"type": "tv.serverchange.cluster.changed.v1"}, "type"),
        ({"type": ...}, "event"),
        ({"time": "9999-12-31T23:59:59Z"}, "time"),
        ({"time": "0001-01-01T00:00:00Z"}, "time"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-05-01T12:00:00"}, "time"),  # RFC 3339 wants the offset: whose noon is it?
        ({"data": None}, "data"),
        ({"data": []}, "data"),
        ({"data": {"cluster": ""}}, "cluster"),
        ({"data": {"cluster": "main "}}, "cluster"),
        ({"data": {"cluster": {"name": "main"}}}, "cluster"),
        ({"data": {"cluster": "x" * 300}}, "cluster"),
        ({"data": {"cluster": "ma\u0000in"}}, "cluster"),
        ({"data": {"asked_after": -1}}, "asked_after"),
        ({"data": {"asked_after": 2**53}}, "asked_after"),
        ({"data": {"asked_after": "3"}}, "asked_after"),
        ({"data": {"asked_after": 3.0}}, "asked_after"),
        ({"data": {"asked_after": True}}, "asked_after"),
        ({"data": {"asked_after": int("9" * 400)}}, "asked_after"),
        ({"data": {"via": "guess"}}, "via"),
        ({"data": {"surprise": 1}}, "surprise"),
        ({"source": "a\u0000b"}, "source"),
        ({"roomid": "12a"}, "room"),
    ],
)
def test_an_event_that_is_wrong_in_one_place_names_the_place(changes: dict[str, Any], expected: str):
    assert expected in reason(encoded(**changes))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"3",
        b'"text"',
        b"[]",
        b"{}",
        b"not JSON",
        b"<html></html>",
        b"\xff\xfe",
        encoded()[:-1],
        encoded() + encoded(),
        encoded() + b"," + encoded(),
        b"[" * 1000 + b"]" * 1000,
        encoded().replace(b'"aws"', b"NaN"),
        encoded().replace(b'"aws"', b'"\\ud800"'),
        encoded().replace(b'"id"', b'"id": "other", "id"'),
        encoded().replace(b'"cluster"', b'"cluster": "main", "cluster"'),
        encoded(extension="x").replace(b'"x"', b"[" * 1000 + b"]" * 1000),
        encoded(extension="x").replace(b'"x"', b"NaN"),
        encoded(extension="x" * EVENT_BYTES_MAX),
    ],
)
def test_what_is_no_sound_json_object_is_refused(value: bytes):
    assert reason(value)


def test_a_reason_never_repeats_the_offending_value():
    assert "SECRET" not in reason(encoded(data={"cluster": "SECRET TOKEN"}))


def test_null_keys_and_null_values_are_refused():
    assert reason(encoded(), key=None) == "null key: the key must be the channel"
    assert reason(None) == "null value: channel-events has no tombstones"
    assert "not ASCII" in reason(encoded(), key="försen".encode())


@pytest.mark.parametrize(
    "name",
    [
        "#a\r\nQUIT",
        "#a\nPRIVMSG #b :hi",
        "#a\0b",
        "#a,#b",
        "#a b",
        "",
        "#",
        "##a",
        "a" * 26,
        "a" * 10_000,
        "форсен",
        "ｆｏｒｓｅｎ",
        "İlker",
        "\u212aappa",
        "../../etc/passwd",
        "%2e%2e%2f",
        "'; DROP TABLE channel_state;--",
    ],
)
def test_names_that_are_no_channel_are_refused_everywhere(name: str):
    with pytest.raises(Rejected):
        parse_channel(name)
    with pytest.raises(Rejected):
        parse_channel_event(name.encode(), encoded(subject=name))


def test_a_channel_as_people_type_it_becomes_a_login():
    assert parse_channel("#Forsen") == "forsen"


def test_a_change_is_read_back_with_its_order():
    change = ClusterChanged(
        id=change_id(Channel("forsen"), 2, 7),
        source="serverchange/materializer",
        time=datetime.now(UTC),
        subject=Channel("forsen"),
        data=ChangedData(what=ChangeKind.MOVED, generation=2, version=7, since=datetime.now(UTC)),
    )
    assert parse_change(b"forsen", change.to_record()).order == (2, 7)
    with pytest.raises(Rejected):
        parse_change(b"xqc", change.to_record())
    with pytest.raises(Rejected):
        parse_change(b"forsen", encoded())


def test_ids_that_a_rebuild_must_give_again_come_from_what_they_name():
    assert change_id(Channel("forsen"), 1, 2) == change_id(Channel("forsen"), 1, 2)
    assert change_id(Channel("forsen"), 1, 2) != change_id(Channel("forsen"), 2, 1)
    assert uuid.UUID(dead_letter_id("topic", 0, 1)).version == 5


def test_labels_are_united_sorted_and_each_once():
    assert labels_union([("staff", "b"), (), ("a", "staff")]) == ("a", "b", "staff")


def test_every_event_ignores_attributes_it_does_not_know_and_refuses_data_it_does_not_know():
    for model in ALL_EVENTS:
        assert model.model_config["extra"] == "ignore"
        assert model.model_fields["data"].annotation.model_config["extra"] == "forbid"
