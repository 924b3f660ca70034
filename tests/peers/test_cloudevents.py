"""The official CloudEvents SDK reads every event as we write it to Kafka, and we read what it writes."""

from __future__ import annotations

import json

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from serverchange.cli.event_catalogue import TOPIC_EVENTS, EventModel, example, example_record, short_type
from serverchange.events import ALL_EVENTS, KAFKA_HEADERS, ChannelTracked, parse_channel_event
from serverchange.topics import CHANNEL_EVENTS


def message_of(event: EventModel) -> KafkaMessage:
    written = example(event)
    value: bytes = written.to_record()  # type: ignore[attr-defined]  # every event can be written
    return KafkaMessage(headers=dict(KAFKA_HEADERS), key=example_record(event)["subject"].encode(), value=value)


@pytest.mark.parametrize("event", ALL_EVENTS, ids=short_type)
def test_the_sdk_reads_what_we_write(event: EventModel) -> None:
    record = example_record(event)
    read = from_kafka_event(message_of(event))
    assert isinstance(read, CloudEvent)
    assert read.get_specversion() == "1.0"
    assert (read.get_id(), read.get_source(), read.get_type()) == (record["id"], record["source"], record["type"])
    assert read.get_subject() == record["subject"]
    assert read.get_data() == record["data"]
    assert read.get_time() == example(event).time  # type: ignore[attr-defined]


@pytest.mark.parametrize("event", TOPIC_EVENTS[CHANNEL_EVENTS.name], ids=short_type)
def test_we_read_what_the_sdk_writes(event: EventModel) -> None:
    record = example_record(event)
    attributes = {name: value for name, value in record.items() if name not in {"data", "time"}}
    theirs = CloudEvent(attributes=attributes, data=record["data"])
    message = to_structured_event(theirs)
    read = parse_channel_event(record["subject"].encode(), message.value)
    assert read.data == example(event).data  # type: ignore[attr-defined]
    assert read.id == record["id"]


def test_the_lasting_identity_is_an_extension_that_the_sdk_knows() -> None:
    tracked = example(ChannelTracked).model_copy(update={"room_id": "22484632"})
    read = from_kafka_event(KafkaMessage(headers=dict(KAFKA_HEADERS), key=b"forsen", value=tracked.to_record()))  # type: ignore[attr-defined]
    assert read.get_extension("roomid") == "22484632"
    assert json.loads(tracked.to_record())["roomid"] == "22484632"  # type: ignore[attr-defined]
