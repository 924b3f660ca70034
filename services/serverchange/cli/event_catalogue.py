"""The event catalogue: which event stands on which topic, who writes and reads it, and one example of each.

The one table behind `docs/events.md`, the AsyncAPI document and the schemas' examples; their test holds it against
`ALL_EVENTS` and `ALL_TOPICS`, so a new event or topic cannot be forgotten here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from serverchange.events import (
    ALL_EVENTS,
    CHANNEL_PATTERN,
    CLUSTER_PATTERN,
    ChannelDoubted,
    ChannelLive,
    ChannelPinned,
    ChannelTracked,
    ChannelUnpinned,
    ChannelUntracked,
    ChatLine,
    ClusterChanged,
    ClusterObserved,
    ClusterServers,
    DeadLetter,
    HandoverEnded,
    ServerChangeReceived,
    ShardHolding,
)
from serverchange.topics import (
    ALL_TOPICS,
    CHANNEL_EVENTS,
    CHANNEL_LIVE,
    CHAT_LINES,
    CLUSTER_CHANGES,
    CLUSTERS,
    DEAD_LETTERS,
    HANDOVERS,
    SHARD_HOLDINGS,
    Topic,
)

EVENT_PREFIX: Final = "tv.serverchange."

EventModel = type[BaseModel]

TOPIC_EVENTS: Final[dict[str, tuple[EventModel, ...]]] = {
    CHANNEL_EVENTS.name: (
        ChannelTracked,
        ChannelUntracked,
        ChannelPinned,
        ChannelUnpinned,
        ClusterObserved,
        ServerChangeReceived,
        ChannelDoubted,
    ),
    CLUSTER_CHANGES.name: (ClusterChanged,),
    CLUSTERS.name: (ClusterServers,),
    CHANNEL_LIVE.name: (ChannelLive,),
    SHARD_HOLDINGS.name: (ShardHolding,),
    CHAT_LINES.name: (ChatLine,),
    HANDOVERS.name: (HandoverEnded,),
    DEAD_LETTERS.name: (DeadLetter,),
}

KEY_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "channel": {"type": "string", "pattern": CHANNEL_PATTERN},
    "cluster": {"type": "string", "pattern": CLUSTER_PATTERN},
    "partition": {"type": "string", "pattern": r"^[0-9]{1,6}$"},
    "as received": {"type": "string", "description": "The bytes of the record that could not be an event."},
}


@dataclass(frozen=True, slots=True)
class Use:
    """What one process does with one topic, and with which of its events."""

    process: str
    action: str
    topic: Topic
    events: tuple[EventModel, ...]


def _reads(process: str, *topics: Topic) -> tuple[Use, ...]:
    return tuple(Use(process, "receive", topic, TOPIC_EVENTS[topic.name]) for topic in topics)


_HEARD: Final = (ServerChangeReceived, ChannelDoubted)
_WANTED: Final = (ChannelTracked, ChannelUntracked, ChannelPinned, ChannelUnpinned)

USES: Final[tuple[Use, ...]] = (
    *_reads("poller", CHANNEL_EVENTS, CHANNEL_LIVE),
    Use("poller", "send", CHANNEL_EVENTS, (ClusterObserved,)),
    Use("poller", "send", CLUSTERS, (ClusterServers,)),
    Use("poller", "send", CHANNEL_LIVE, (ChannelLive,)),
    *_reads("irc-listener", CLUSTER_CHANGES, CLUSTERS),
    Use("irc-listener", "send", CHANNEL_EVENTS, _HEARD),
    *_reads("materializer", CHANNEL_EVENTS),
    Use("materializer", "send", CLUSTER_CHANGES, (ClusterChanged,)),
    Use("materializer", "send", DEAD_LETTERS, (DeadLetter,)),
    *_reads("reconnector", CLUSTER_CHANGES, CLUSTERS, CHANNEL_LIVE, SHARD_HOLDINGS),
    Use("reconnector", "send", CHANNEL_EVENTS, _HEARD),
    Use("reconnector", "send", SHARD_HOLDINGS, (ShardHolding,)),
    Use("reconnector", "send", CHAT_LINES, (ChatLine,)),
    Use("reconnector", "send", HANDOVERS, (HandoverEnded,)),
    *_reads("state-api", CLUSTER_CHANGES, HANDOVERS),
    Use("state-api", "send", CHANNEL_EVENTS, _WANTED),
    Use("command-line", "send", CHANNEL_EVENTS, _WANTED),
    *_reads("command-line", HANDOVERS),
    *_reads("subscriber", CLUSTER_CHANGES, CLUSTERS, CHAT_LINES, DEAD_LETTERS),
)
"""`subscriber` is anyone's own program: the SDK reads the same topics."""

_MOMENT: Final = "2016-02-13T18:04:05.250Z"
_EXAMPLE_DATA: Final[dict[EventModel, tuple[str, str, dict[str, Any]]]] = {
    ChannelTracked: ("forsen", "state-api", {"service": "alerts", "labels": ["partner"], "account": "alerts_bot"}),
    ChannelUntracked: ("forsen", "state-api", {"service": "alerts"}),
    ChannelPinned: ("forsen", "command-line", {"cluster": "main"}),
    ChannelUnpinned: ("forsen", "command-line", {}),
    ClusterObserved: (
        "forsen",
        "poller",
        {
            "cluster": "aws",
            "asked_after": 7,
            "asked_at": "2016-02-13T18:04:05.190Z",
            "answered_at": _MOMENT,
            "via": "servers",
        },
    ),
    ServerChangeReceived: (
        "forsen",
        "irc-listener",
        {"heard_on": "main", "target": "aws", "believed_version": 1, "reason": "moved"},
    ),
    ChannelDoubted: ("forsen", "reconnector", {"reason": "heard-on-old"}),
    ClusterChanged: (
        "forsen",
        "materializer",
        {
            "what": "moved",
            "previous": "main",
            "cluster": "aws",
            "generation": 1,
            "version": 2,
            "since": _MOMENT,
            "kind": "chat",
            "labels": ["partner"],
            "account": "alerts_bot",
            "evidence": ["01952cf1-7b8f-7c11-9a66-35d1c3f1a0c5"],
        },
    ),
    ClusterServers: (
        "aws",
        "poller",
        {"servers": ["irc.chat.twitch.tv:6667"], "websocket_servers": ["irc-ws.chat.twitch.tv:80"]},
    ),
    DeadLetter: (
        "forsen",
        "materializer",
        {
            "reason": "null value: channel-events has no tombstones",
            "topic": "channel-events",
            "topic_id": "2f1c6b1e-9d0b-4c55-8f3a-0e9ad7e4c1b2",
            "partition": 5,
            "offset": 1021,
            "key_base64": "Zm9yc2Vu",
            "value_base64": None,
        },
    ),
    ChannelLive: ("forsen", "poller", {"live": True, "since": _MOMENT}),
    ShardHolding: (
        "5",
        "reconnector",
        {"action": "confirmed", "process": "shard-2", "generation": 3, "channels": ["forsen"]},
    ),
    ChatLine: (
        "forsen",
        "reconnector",
        {
            "line": "@id=b34ccfc7-4977-403a-8a94-33c6bac34fb8 :nina!nina@nina.tmi.twitch.tv PRIVMSG #forsen :hello",
            "cluster": "aws",
            "shard": "shard-2",
            "received_at": _MOMENT,
        },
    ),
    HandoverEnded: (
        "forsen",
        "reconnector",
        {
            "cause": "moved",
            "outcome": "done",
            "source": "main",
            "target": "aws",
            "shard": "shard-2",
            "tries": 1,
            "sent_s": 0.012,
            "confirmed_s": 0.214,
            "ended_s": 20.231,
        },
    ),
}


def example(event: EventModel) -> BaseModel:
    """Return one valid event of this type, the same at every call."""
    subject, process, data = _EXAMPLE_DATA[event]
    number = ALL_EVENTS.index(event)
    return event.model_validate(
        {
            "id": f"01952cf1-7b8f-7c11-9a66-35d1c3f1a0{number:02x}",
            "source": f"serverchange/{process}",
            "type": event.model_fields["type"].default,
            "time": _MOMENT,
            "subject": subject,
            "data": data,
        }
    )


def example_record(event: EventModel) -> dict[str, Any]:
    """Return the example as the JSON object that stands in Kafka."""
    record: dict[str, Any] = example(event).model_dump(mode="json", by_alias=True, exclude_none=True)
    return record


def short_type(event: EventModel) -> str:
    """Return the event's type without the prefix that all share, e.g. `cluster.changed.v1`."""
    return str(event.model_fields["type"].default).removeprefix(EVENT_PREFIX)


def topic_of(event: EventModel) -> Topic:
    """Return the topic that the event stands on."""
    return next(topic for topic in ALL_TOPICS if event in TOPIC_EVENTS[topic.name])


def writers_of(event: EventModel) -> tuple[str, ...]:
    """Return the processes that write the event."""
    return tuple(use.process for use in USES if use.action == "send" and event in use.events)


def data_model(event: EventModel) -> type[BaseModel]:
    """Return the model of the event's `data`."""
    model = event.model_fields["data"].annotation
    assert isinstance(model, type)  # noqa: S101  (a model without data is a bug of the contracts)
    assert issubclass(model, BaseModel)  # noqa: S101
    return model


def events_page() -> str:
    """Return the page `docs/events.md`."""
    parts = [
        "# Events\n",
        "<!-- Made by `make docs`; edit the descriptions in schemas/serverchange/. -->\n",
        "Every record is one CloudEvents 1.0 JSON object in structured mode, with the Kafka header `content-type: "
        "application/cloudevents+json; charset=UTF-8`. The Kafka key is the event's `subject`. Attributes that an "
        "event does not have are left out. A reader must ignore attributes that it does not know; members of `data` "
        "are added only together with a new version of the type.\n",
        "Schemas for any language: [`schemas/generated/`](../schemas/generated/) (JSON Schema for each event, "
        "AsyncAPI 3 for the topics).\n",
        "## Attributes of every event\n",
        "| attribute | meaning |",
        "|---|---|",
        "| `specversion` | `1.0` |",
        "| `id` | Unique with `source`; a UUIDv7, except where a rebuild must give the same: a UUIDv5. |",
        "| `source` | The process that wrote it. |",
        "| `type` | As below, behind `tv.serverchange.`; its last part is the version. |",
        "| `subject` | The Kafka key: the channel's login (lower case, no `#`), the cluster or the partition. |",
        "| `time` | When the writer's clock says it happened. For people: no rule reads it, since clocks differ. |",
        "| `roomid` | The channel's lasting identity, where the writer knew it; logins get renamed. |",
        "| `traceparent` | W3C trace context, where tracing is on. |",
    ]
    for topic in ALL_TOPICS:
        parts.extend(_topic_lines(topic))
    return "\n".join(parts) + "\n"


def _topic_lines(topic: Topic) -> Iterator[str]:
    yield f"\n## Topic `{topic.name}`\n"
    yield f"{topic.purpose}\n"
    readers = sorted({use.process for use in USES if use.topic is topic and use.action == "receive"})
    config = ", ".join(f"`{name}={value}`" for name, value in topic.config)
    yield f"Key: {topic.key}. Settings: {config}. Read by: {', '.join(readers) or 'nobody'}."
    for event in TOPIC_EVENTS[topic.name]:
        yield from _event_lines(event)


def _event_lines(event: EventModel) -> Iterator[str]:
    data = data_model(event)
    yield f"\n### `{short_type(event)}`\n"
    yield f"{inspect.getdoc(data)} Written by: {', '.join(writers_of(event))}.\n"
    schema = data.model_json_schema()
    if schema.get("properties"):
        yield "| `data` | type | meaning |"
        yield "|---|---|---|"
    for name, field in schema.get("properties", {}).items():
        optional = "" if name in schema.get("required", []) else " (optional)"
        yield f"| `{name}` | {_type_of(field, schema)}{optional} | {field.get('description', '').replace('|', '/')} |"
    yield f"\n```json\n{json.dumps(example_record(event), indent=2)}\n```"


def _type_of(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a field's type in words that fit a table."""
    if "$ref" in field:
        return _type_of(schema["$defs"][field["$ref"].rsplit("/", 1)[-1]], schema)
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type_of(choice, schema) for choice in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type_of(field.get('items', {}), schema)}"
    if "pattern" in field:
        return f"`{field['pattern']}`"
    if field.get("format") == "date-time":
        return "RFC 3339 time"
    return str(field.get("type", "any"))
