"""The generated contracts say what the models say, name every event and topic, and judge records as the models do."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from serverchange.cli.event_catalogue import (
    TOPIC_EVENTS,
    USES,
    EventModel,
    example,
    example_record,
    short_type,
    topic_of,
    writers_of,
)
from serverchange.cli.schemas import event_schema, generated, write_schemas
from serverchange.events import ALL_EVENTS, parse_channel_event
from serverchange.topics import ALL_TOPICS, CHANNEL_EVENTS

FOLDER = Path(__file__).parents[2] / "schemas" / "generated"

every_event = pytest.mark.parametrize("event", ALL_EVENTS, ids=short_type)


def validator(event: EventModel) -> Draft202012Validator:
    schema = json.loads((FOLDER / f"{short_type(event)}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", sorted(generated()))
def test_a_generated_contract_is_fresh(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == generated()[name], "run: make schemas"


def test_nothing_else_lies_beside_the_contracts() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(generated())


def test_what_is_no_longer_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / "channel.forgotten.v1.schema.json").write_text("{}")
    assert {path.name for path in write_schemas(tmp_path)} == {path.name for path in tmp_path.iterdir()}


def test_the_catalogue_names_every_event_and_topic_once() -> None:
    named = [event for events in TOPIC_EVENTS.values() for event in events]
    assert sorted(named, key=ALL_EVENTS.index) == list(ALL_EVENTS)
    assert list(TOPIC_EVENTS) == [topic.name for topic in ALL_TOPICS]


@every_event
def test_every_event_has_a_writer_and_a_reader(event: EventModel) -> None:
    assert writers_of(event)
    assert any(use.action == "receive" and use.topic is topic_of(event) for use in USES)


def test_a_process_writes_no_event_to_another_topic_than_its_own() -> None:
    assert all(topic_of(event) is use.topic for use in USES for event in use.events)


@every_event
def test_the_record_of_an_event_fits_its_schema(event: EventModel) -> None:
    record = example_record(event)
    validator(event).validate(record)
    assert event.model_validate_json(json.dumps(record)) == example(event)
    assert event_schema(event)["examples"] == [record]


@pytest.mark.parametrize("event", TOPIC_EVENTS[CHANNEL_EVENTS.name], ids=short_type)
def test_the_decoder_of_the_log_takes_the_example(event: EventModel) -> None:
    record = example_record(event)
    assert parse_channel_event(record["subject"].encode(), json.dumps(record).encode()) == example(event)


@every_event
@pytest.mark.parametrize(
    "change", [{"specversion": None}, {"type": "tv.serverchange.other.v1"}, {"id": ""}, {"data": []}]
)
def test_a_schema_refuses_what_the_model_refuses(event: EventModel, change: dict[str, Any]) -> None:
    record = {name: value for name, value in {**example_record(event), **change}.items() if value is not None}
    assert not validator(event).is_valid(record)


def test_the_asyncapi_document_refers_to_what_it_defines() -> None:
    document = json.loads((FOLDER / "asyncapi.json").read_text("utf-8"))
    references = set(_references(document))
    assert references
    for reference in references:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    return [found for value in node for found in _references(value)] if isinstance(node, list) else []
