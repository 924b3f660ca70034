"""Builds the AsyncAPI 3.0 document: topics as channels, events as messages, what each process does as operations.

Source: AsyncAPI specification 3.0.0 and its Kafka bindings 0.5.0. `tests/peers/asyncapi` has the project's own parser
judge the result.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from serverchange.cli.event_catalogue import (
    KEY_SCHEMAS,
    TOPIC_EVENTS,
    USES,
    EventModel,
    Use,
    example_record,
    short_type,
)
from serverchange.events import ALL_EVENTS, CONTENT_TYPE
from serverchange.topics import ALL_TOPICS, Topic

KAFKA_BINDING: Final = "0.5.0"
_REF: Final = "#/components/schemas/{model}"


def asyncapi_document() -> dict[str, Any]:
    """Return the document, ready for JSON; the same at every call."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:serverchange",
        "info": {
            "title": "serverchange",
            "version": "1.0.0",
            "description": (
                "Which chat cluster every channel lives on: facts go in on channel-events, decisions come out on "
                "cluster-changes. Every record is one CloudEvents 1.0 object in structured mode."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/cloudevents+json",
        "servers": {
            "kafka": {
                "host": "127.0.0.1:9092",
                "protocol": "kafka",
                "description": "As SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS says. Read committed records only.",
            }
        },
        "channels": {topic.name: _channel(topic) for topic in ALL_TOPICS},
        "operations": {_operation_name(use): _operation(use) for use in USES},
        "components": {
            "messages": {short_type(event): _message(event) for event in ALL_EVENTS},
            "schemas": _schemas(),
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    binding: dict[str, Any] = {"topic": topic.name, "topicConfiguration": _topic_configuration(topic)}
    if topic.partitions is not None:
        binding["partitions"] = topic.partitions
    return {
        "address": topic.name,
        "title": topic.name,
        "description": f"{topic.purpose} The key is: {topic.key}. A fleet's prefix goes before the name.",
        "messages": {
            short_type(event): {"$ref": f"#/components/messages/{short_type(event)}"}
            for event in TOPIC_EVENTS[topic.name]
        },
        "bindings": {"kafka": {**binding, "bindingVersion": KAFKA_BINDING}},
    }


def _topic_configuration(topic: Topic) -> dict[str, Any]:
    """Return the settings that the binding can name, numbers as numbers; docs/events.md has them all."""
    config = dict(topic.config)
    named: dict[str, Any] = {"cleanup.policy": config["cleanup.policy"].split(",")}
    for name in ("retention.ms", "retention.bytes"):
        if name in config:
            named[name] = int(config[name])
    return named


def _operation_name(use: Use) -> str:
    verb = "writes" if use.action == "send" else "reads"
    return f"{use.process}.{verb}.{use.topic.name}"


def _operation(use: Use) -> dict[str, Any]:
    channel = f"#/channels/{use.topic.name}"
    verb = "writes" if use.action == "send" else "reads"
    return {
        "action": use.action,
        "channel": {"$ref": channel},
        "summary": f"{use.process} {verb} {use.topic.name}",
        "messages": [{"$ref": f"{channel}/messages/{short_type(event)}"} for event in use.events],
    }


def _message(event: EventModel) -> dict[str, Any]:
    topic = next(topic for topic in ALL_TOPICS if event in TOPIC_EVENTS[topic.name])
    return {
        "name": str(event.model_fields["type"].default),
        "title": short_type(event),
        "summary": (event.__doc__ or "").split("\n", maxsplit=1)[0],
        "contentType": "application/cloudevents+json",
        "headers": {
            "type": "object",
            "required": ["content-type"],
            "properties": {"content-type": {"type": "string", "const": CONTENT_TYPE}},
        },
        "payload": {"$ref": _REF.format(model=event.__name__)},
        "bindings": {"kafka": {"key": KEY_SCHEMAS[topic.key], "bindingVersion": KAFKA_BINDING}},
        "examples": [{"name": short_type(event), "payload": example_record(event)}],
    }


def _schemas() -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(event, "validation") for event in ALL_EVENTS], by_alias=True, ref_template=_REF
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for event in ALL_EVENTS:
        require_envelope(schemas[event.__name__])
    return schemas


def require_envelope(schema: dict[str, Any]) -> None:
    """Say that `specversion` and `type` are always there: they have defaults for writers, not for readers."""
    schema["required"] = ["specversion", "type", *schema.get("required", [])]
