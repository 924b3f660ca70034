"""Every event that crosses a process boundary, as CloudEvents 1.0 JSON objects in structured mode.

`parse_channel_event` is the one decoder of `channel-events`; `parse_change` that of `cluster-changes`. Both turn
bytes into a typed event or raise `Rejected` with a reason that an operator can act on: whatever the decoder lets
through, PostgreSQL can hold and the fold can fold.

Sources: CloudEvents 1.0.2 (JSON format; Kafka protocol binding, structured content mode); RFC 9562 for UUIDs.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NewType, TypeAlias

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

CONTENT_TYPE: Final = "application/cloudevents+json; charset=UTF-8"
"""Value of the Kafka header `content-type`; without it a receiver must assume the binary content mode."""

KAFKA_HEADERS: Final[tuple[tuple[str, bytes], ...]] = (("content-type", CONTENT_TYPE.encode()),)
"""The headers that every record written by serverchange carries."""

EVENT_BYTES_MAX: Final = 65_536
"""A larger record is refused: the largest honest event (a server list) has under 8 KiB."""

CHANNEL_PATTERN: Final = r"^[a-z0-9_]{1,25}$"
CLUSTER_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,31}$"

Channel = NewType("Channel", str)
"""A channel's login: lower-case ASCII, no `#`, 1 to 25 characters (the platform's own limit)."""

Cluster = NewType("Cluster", str)
"""A cluster's name: an open string, syntax only (`main`, `event`, `aws`, `group` in 2016)."""

GROUP_CLUSTER: Final = Cluster("group")
"""Group chat and whispers; never part of the migration (platform forum, thread 4877)."""

ChannelField: TypeAlias = Annotated[Channel, StringConstraints(pattern=CHANNEL_PATTERN)]
ClusterField: TypeAlias = Annotated[Cluster, StringConstraints(pattern=CLUSTER_PATTERN)]
ServiceField: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
LabelField: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.:-]{0,30}$")]
AccountField: TypeAlias = Annotated[str, StringConstraints(pattern=CHANNEL_PATTERN)]
RoomIdField: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$")]
ServerField: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,300}$")]
EventIdField: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,100}$")]
SeqField: TypeAlias = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


_SANE_YEARS: Final = (datetime(2010, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))
"""No honest clock shows other moments; arithmetic on them would overflow in PostgreSQL or Python."""

Moment: TypeAlias = Annotated[AwareDatetime, Field(strict=False, ge=_SANE_YEARS[0], lt=_SANE_YEARS[1])]


class EventType(StrEnum):
    """The CloudEvents `type` of each event."""

    TRACKED = "tv.serverchange.channel.tracked.v1"
    UNTRACKED = "tv.serverchange.channel.untracked.v1"
    PINNED = "tv.serverchange.channel.pinned.v1"
    UNPINNED = "tv.serverchange.channel.unpinned.v1"
    OBSERVED = "tv.serverchange.cluster.observed.v1"
    SERVER_CHANGE = "tv.serverchange.server-change.received.v1"
    DOUBTED = "tv.serverchange.channel.doubted.v1"
    CHANGED = "tv.serverchange.cluster.changed.v1"
    SERVERS = "tv.serverchange.cluster.servers.v1"
    DEAD_LETTER = "tv.serverchange.dead-letter.v1"
    LIVE = "tv.serverchange.channel.live.v1"
    SHARD_HOLDING = "tv.serverchange.shard.holding.v1"
    CHAT_LINE = "tv.serverchange.chat.line.v1"
    HANDOVER = "tv.serverchange.handover.ended.v1"


class ChannelKind(StrEnum):
    """`chat` rooms migrate; `group` rooms never do and are never looked up."""

    CHAT = "chat"
    GROUP = "group"


class LookupSource(StrEnum):
    """The platform API that an observation came from."""

    SERVERS = "servers"
    CHAT_PROPERTIES = "chat_properties"
    INQUIRE = "inquire"


class NoticeReason(StrEnum):
    """What made a hearer write a notice: pushed to those joined, or the answer to a JOIN."""

    MOVED = "moved"
    JOIN_REFUSED = "join-refused"


class DoubtReason(StrEnum):
    """Why somebody asks for a lookup without knowing better."""

    SILENT = "silent"
    SERVERS_DEAD = "servers-dead"
    UNCONFIRMED = "unconfirmed"
    HEARD_ON_OLD = "heard-on-old"


class ChangeKind(StrEnum):
    """What a published change says of a channel."""

    FIRST_SEEN = "first-seen"
    MOVED = "moved"
    LABELLED = "labelled"
    UNTRACKED = "untracked"


class HandoverCause(StrEnum):
    """Why a handover began; a label of metrics."""

    FIRST_JOIN = "first-join"
    MOVED = "moved"
    RECONNECT = "reconnect"
    SPLIT = "split"
    """The link carries too much or lags behind: some of its channels go elsewhere."""
    GHOST = "ghost"
    """Joined by all appearances, yet silent."""
    LINK_LOST = "link-lost"
    ACCOUNT = "account"
    """Another account is to join the channel."""


class HandoverOutcome(StrEnum):
    """How a handover ended; a label of metrics."""

    DONE = "done"
    """The new side is confirmed and the old side parted, after the overlap."""
    OLD_LOST = "old-lost"
    """The new side is confirmed; the old side's link ended by itself."""
    SUPERSEDED = "superseded"
    """A newer decision came before the end."""
    UNWANTED = "unwanted"
    """Nobody wants the channel any more, or another process has it."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="never")


class _Event(BaseModel):
    """The CloudEvents attributes that all our events share."""

    model_config = ConfigDict(frozen=True, extra="ignore", revalidate_instances="never")

    specversion: Literal["1.0"] = "1.0"
    id: EventIdField
    source: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,200}$")]
    time: Moment = Field(description="For people: no rule reads it, since clocks differ.")
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{55}$")] | None = None

    def to_record(self) -> bytes:
        """Return the JSON bytes for a Kafka record's value; the key is the subject."""
        return self.model_dump_json(exclude_none=True).encode()


class _ChannelEvent(_Event):
    subject: ChannelField = Field(description="The channel's login; equal to the Kafka key.")
    room_id: RoomIdField | None = Field(
        default=None, alias="roomid", description="The channel's lasting identity; logins get renamed."
    )

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        revalidate_instances="never",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class TrackedData(_Data):
    """A service wants this channel; sent again it replaces that service's labels and touches nothing else."""

    service: ServiceField = Field(description="Who wants it.")
    labels: tuple[LabelField, ...] = Field(
        default=(), max_length=16, description="What the service calls it, e.g. staff or partner."
    )
    kind: ChannelKind = Field(default=ChannelKind.CHAT, description="Group rooms never move and are never looked up.")
    account: AccountField | None = Field(default=None, description="The login that joins it, if one is asked for.")


class UntrackedData(_Data):
    """A service no longer wants this channel; it stays tracked while any other does."""

    service: ServiceField = Field(description="Who wanted it.")


class PinnedData(_Data):
    """An operator's word: wins over all evidence until unpinned."""

    cluster: ClusterField = Field(description="Where the operator says it is.")


class UnpinnedData(_Data):
    """The operator takes the word back; a lookup decides."""


class ObservedData(_Data):
    """A lookup's answer. `asked_after` orders it against other records; the two times are for people."""

    cluster: ClusterField = Field(description="Where the platform says it is.")
    asked_after: SeqField = Field(description="The channel's seq that the asker had folded when the request left.")
    asked_at: Moment = Field(description="When the request left, by the asker's clock.")
    answered_at: Moment = Field(description="asked_at plus the monotonic time elapsed.")
    via: LookupSource = Field(description="Which of the platform's APIs answered.")


class ServerChangeData(_Data):
    """A hearer's notice: the channel is not (any more) on the cluster where this was heard."""

    heard_on: ClusterField = Field(description="The cluster of the link that heard it.")
    target: ClusterField | None = Field(
        default=None, description="Where the server says it went, if it says so and the cluster is known."
    )
    believed_version: SeqField = Field(description="The version by which the hearer had joined.")
    reason: NoticeReason = Field(description="Pushed to those joined, or the answer to a JOIN.")


class DoubtedData(_Data):
    """Changes no cluster, asks for a lookup."""

    reason: DoubtReason = Field(
        description="No chat while live; no server answers; a JOIN unconfirmed; a line heard on the old side only."
    )


class ChangedData(_Data):
    """A decision of the fold. Order for subscribers is (generation, version), whatever the arrival."""

    what: ChangeKind = Field(description="What changed.")
    previous: ClusterField | None = Field(default=None, description="Where it was before.")
    cluster: ClusterField | None = Field(default=None, description="Where the channel is (for `untracked`: was).")
    generation: Annotated[int, Field(ge=1, lt=2**31)] = Field(
        description="Raised when a rebuild by other rules changed any channel."
    )
    version: Annotated[int, Field(ge=1, lt=2**53)] = Field(description="Counts this channel's changes from 1 on.")
    since: Moment = Field(description="Append time of the record that decided.")
    kind: ChannelKind = Field(default=ChannelKind.CHAT, description="Group rooms never move.")
    labels: tuple[LabelField, ...] = Field(default=(), description="All that any service gave, sorted.")
    account: AccountField | None = Field(default=None, description="The login that joins it, if one is asked for.")
    evidence: tuple[EventIdField, ...] = Field(default=(), max_length=8, description="Ids of the deciding events.")


class ServersData(_Data):
    """Which servers a cluster has; servers belong to the cluster, not to the channel."""

    servers: tuple[ServerField, ...] = Field(max_length=64, description="IRC over TCP, `host[:port]` as told.")
    websocket_servers: tuple[ServerField, ...] = Field(
        default=(), max_length=64, description="IRC over WebSocket, `host[:port]` as told."
    )


class DeadLetterData(_Data):
    """A record that could not be an event: its bytes (base64), why, and where it stands in the log."""

    reason: str = Field(description="Why it could not be an event.")
    topic: str
    topic_id: str = Field(description="A topic made anew has another.")
    partition: int
    offset: int
    key_base64: str | None = Field(default=None, description="Left out for a null key.")
    value_base64: str | None = Field(default=None, description="Left out for a null value.")
    sqlstate: str | None = Field(default=None, description="Where PostgreSQL refused it, which is a bug of ours.")


class LiveData(_Data):
    """Whether a channel streams now; a hint for priorities and ghosts, never folded."""

    live: bool = Field(description="Whether it streams.")
    since: Moment = Field(description="When a scan of the streams first saw it so.")


class HoldingAction(StrEnum):
    """The steps by which a partition's channels pass from one shard to another."""

    TAKING = "taking"
    CONFIRMED = "confirmed"
    RELEASED = "released"


class ShardHoldingData(_Data):
    """One step of handing a partition over; `generation` counts the takings of that partition's holder."""

    action: HoldingAction = Field(description="The new holder takes and confirms, the old one releases.")
    process: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,200}$")] = Field(description="Who says so.")
    generation: SeqField = Field(description="Counts the takings of this partition.")
    channels: tuple[ChannelField, ...] = Field(
        default=(), max_length=500, description="Those joined by the new holder and confirmed by the server."
    )


class ChatLineData(_Data):
    """One line of chat as the server sent it, byte for byte (UTF-8 where it is, else base64)."""

    line: str | None = Field(default=None, description="The line without CRLF, where it is UTF-8.")
    line_base64: str | None = Field(default=None, description="The line's bytes, where it is not.")
    cluster: ClusterField = Field(description="The cluster of the link that received it.")
    shard: str = Field(description="The process that received it.")
    received_at: Moment = Field(description="When, by that process's clock.")


Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class HandoverData(_Data):
    """How a channel passed from one link to another: for people, nothing decides by it. First joins are not told."""

    cause: HandoverCause = Field(description="Why it began.")
    outcome: HandoverOutcome = Field(description="How it ended.")
    source: ClusterField | None = Field(default=None, description="Where the channel was read before, if anywhere.")
    target: ClusterField = Field(description="Where it was to be read.")
    shard: str = Field(description="The process that did it.")
    tries: SeqField = Field(description="JOINs that were sent.")
    sent_s: Seconds | None = Field(
        default=None, description="Seconds from the beginning until the last JOIN left; left out: none did."
    )
    confirmed_s: Seconds | None = Field(
        default=None, description="Seconds until the new side was confirmed; left out: it never was."
    )
    ended_s: Seconds = Field(description="Seconds until the last old side was gone, which is the event's `time`.")


class ChannelTracked(_ChannelEvent):
    """`channel.tracked`, written by the API and the CLI."""

    type: Literal[EventType.TRACKED] = EventType.TRACKED
    data: TrackedData


class ChannelUntracked(_ChannelEvent):
    """`channel.untracked`, written by the API and the CLI."""

    type: Literal[EventType.UNTRACKED] = EventType.UNTRACKED
    data: UntrackedData


class ChannelPinned(_ChannelEvent):
    """`channel.pinned`, written by the API and the CLI."""

    type: Literal[EventType.PINNED] = EventType.PINNED
    data: PinnedData


class ChannelUnpinned(_ChannelEvent):
    """`channel.unpinned`, written by the API and the CLI."""

    type: Literal[EventType.UNPINNED] = EventType.UNPINNED
    data: UnpinnedData


class ClusterObserved(_ChannelEvent):
    """`cluster.observed`, written by pollers."""

    type: Literal[EventType.OBSERVED] = EventType.OBSERVED
    data: ObservedData


class ServerChangeReceived(_ChannelEvent):
    """`server-change.received`, written by the IRC listener and the shards."""

    type: Literal[EventType.SERVER_CHANGE] = EventType.SERVER_CHANGE
    data: ServerChangeData


class ChannelDoubted(_ChannelEvent):
    """`channel.doubted`, written by the IRC listener and the shards."""

    type: Literal[EventType.DOUBTED] = EventType.DOUBTED
    data: DoubtedData


class ClusterChanged(_ChannelEvent):
    """`cluster.changed`, written by the materializer to `cluster-changes`."""

    type: Literal[EventType.CHANGED] = EventType.CHANGED
    data: ChangedData

    @property
    def order(self) -> tuple[int, int]:
        """The (generation, version) by which subscribers order the changes of one channel."""
        return self.data.generation, self.data.version


class ClusterServers(_Event):
    """`cluster.servers`, written by pollers to `clusters`; the subject is the cluster."""

    type: Literal[EventType.SERVERS] = EventType.SERVERS
    subject: ClusterField
    data: ServersData


class DeadLetter(_Event):
    """A dead letter, written by the materializer to `dead-letters`."""

    type: Literal[EventType.DEAD_LETTER] = EventType.DEAD_LETTER
    subject: str
    data: DeadLetterData


class ChannelLive(_ChannelEvent):
    """`channel.live`, written by pollers to `channel-live`."""

    type: Literal[EventType.LIVE] = EventType.LIVE
    data: LiveData


class ShardHolding(_Event):
    """One step of a partition's handover, on `shard-holdings`; the subject is the partition's number."""

    type: Literal[EventType.SHARD_HOLDING] = EventType.SHARD_HOLDING
    subject: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}$")]
    data: ShardHoldingData


class ChatLine(_ChannelEvent):
    """One received chat line, on `chat-lines`."""

    type: Literal[EventType.CHAT_LINE] = EventType.CHAT_LINE
    data: ChatLineData


class HandoverEnded(_ChannelEvent):
    """`handover.ended`, written by the shards to `handovers`."""

    type: Literal[EventType.HANDOVER] = EventType.HANDOVER
    data: HandoverData


ChannelEvent: TypeAlias = Annotated[
    ChannelTracked
    | ChannelUntracked
    | ChannelPinned
    | ChannelUnpinned
    | ClusterObserved
    | ServerChangeReceived
    | ChannelDoubted,
    Field(discriminator="type"),
]
"""What may stand on `channel-events`."""

CHANNEL_EVENTS: Final[TypeAdapter[ChannelEvent]] = TypeAdapter(ChannelEvent)

ALL_EVENTS: Final[tuple[type[_Event], ...]] = (
    ChannelTracked,
    ChannelUntracked,
    ChannelPinned,
    ChannelUnpinned,
    ClusterObserved,
    ServerChangeReceived,
    ChannelDoubted,
    ClusterChanged,
    ClusterServers,
    DeadLetter,
    ChannelLive,
    ShardHolding,
    ChatLine,
    HandoverEnded,
)

CHANGE_NAMESPACE: Final = uuid.UUID("5f4ff7b2-0d2b-5f0c-9d5e-4a7c5a1d8e61")
"""Namespace of the UUIDv5 ids, so that a rebuild gives the same ids."""


def change_id(channel: Channel, generation: int, version: int) -> str:
    """Return the id of the change that gave `channel` this version: the same in any rebuild."""
    return str(uuid.uuid5(CHANGE_NAMESPACE, f"{channel}/{generation}/{version}"))


def dead_letter_id(topic_id: str, partition: int, offset: int) -> str:
    """Return the id of the dead letter of that record: the same however often it is made."""
    return str(uuid.uuid5(CHANGE_NAMESPACE, f"{topic_id}/{partition}/{offset}"))


class Rejected(Exception):  # noqa: N818  (the field says "rejected"; it is an answer, not a fault of ours)
    """A record is not an event. The message is the dead letter's reason; never retry."""


class _DuplicateMemberError(ValueError):
    """A JSON object names a member twice: readers would disagree on its value (RFC 8259, section 4)."""


_EXTENSION_NAME: Final = re.compile(r"[a-z0-9]{1,20}")
_MEMBER_END: Final = re.compile(rb'"\s*:')
_ALIASES: Final = {"room_id": "roomid"}


def _strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _DuplicateMemberError("an object names a member twice")
    return names


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _members_seen(event: _Event) -> int:
    data: BaseModel = event.data  # type: ignore[attr-defined]  # every concrete event has data
    return len(event.__pydantic_fields_set__) + len(data.__pydantic_fields_set__)


def _members_counted(value: bytes) -> int:
    """How many members `value` can have at most; without white space, as our writers write, at half the price."""
    if len(value.split(None, 1)) == 1:
        return value.count(b'":')
    return len(_MEMBER_END.findall(value))


def _examine(value: bytes, event: _Event) -> None:
    """Refuse what pydantic's parser lets pass: duplicate members, NaN, extension attributes of no CloudEvents type.

    The slow, complete check runs only where a count shows members beside those of the model; a string that holds
    `":` only ever raises that count, so an event which passes the quick comparison has no member twice.
    """
    if _members_counted(value) == _members_seen(event):
        return
    try:
        tree = json.loads(value, object_pairs_hook=_strict_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"not strict JSON: {error}") from error
    known = {_ALIASES.get(name, name) for name in type(event).model_fields}
    for name, content in tree.items():
        if name in known:
            continue
        if not _EXTENSION_NAME.fullmatch(name):
            raise Rejected(f"attribute {name[:40]!r} is no CloudEvents name (lower-case letters and digits)")
        if isinstance(content, int) and not isinstance(content, bool) and not -(2**31) <= content < 2**31:
            raise Rejected(f"extension attribute {name!r} exceeds 32 bits")
        if not isinstance(content, str | bool | int):
            raise Rejected(f"extension attribute {name!r} is neither string, boolean nor integer")


def describe_error(error: ValidationError) -> str:
    """Return one line for an operator: field and fault, never the offending value (it may hold anything)."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("tv.serverchange.")) or "event"
    return f"{place}: {first['msg'][:200]}"


def _decode_subject_key(key: bytes | None, value: bytes | None) -> tuple[str, bytes]:
    if value is None:
        raise Rejected("null value: channel-events has no tombstones")
    if key is None:
        raise Rejected("null key: the key must be the channel")
    if len(value) > EVENT_BYTES_MAX:
        raise Rejected(f"{len(value)} bytes exceed the limit of {EVENT_BYTES_MAX}")
    try:
        return key.decode("ascii"), value
    except UnicodeDecodeError as error:
        raise Rejected("the key is not ASCII") from error


def parse_channel_event(key: bytes | None, value: bytes | None) -> ChannelEvent:
    """Return the event in a record of `channel-events`.

    Each record is parsed by itself: joining many into one JSON array was measured slower (117,000 against 174,000
    a second with pydantic 2.14), and one value may hold `{..},{..}` and shift the rest.

    Raises:
        Rejected: with the reason for the dead letter; see the bad inputs in `tests/unit/test_events.py`.
    """
    subject, body = _decode_subject_key(key, value)
    try:
        event = CHANNEL_EVENTS.validate_json(body)
    except ValidationError as error:
        raise Rejected(describe_error(error)) from error
    if event.subject != subject:
        raise Rejected("subject differs from the key")
    _examine(body, event)
    return event


def parse_change(key: bytes | None, value: bytes | None) -> ClusterChanged:
    """Return the change in a record of `cluster-changes`.

    Raises:
        Rejected: the record is not a change; a subscriber counts and skips it.
    """
    subject, body = _decode_subject_key(key, value)
    try:
        change = ClusterChanged.model_validate_json(body)
    except ValidationError as error:
        raise Rejected(describe_error(error)) from error
    if change.subject != subject:
        raise Rejected("subject differs from the key")
    return change


def parse_channel(text: str) -> Channel:
    """Return `text` as a channel, with one leading `#` and ASCII capitals allowed as people type them.

    Raises:
        Rejected: not a login. Letters outside ASCII are refused, never folded (`İ` and the Kelvin sign would
            fold into ASCII letters and name another channel).
    """
    name = text.removeprefix("#")
    if not re.fullmatch(r"[A-Za-z0-9_]{1,25}", name, re.ASCII):
        raise Rejected(
            f"{text[:40]!r} is not a channel: expected 1 to 25 letters, digits or underscores (ASCII), e.g. forsen"
        )
    return Channel(name.lower())


def labels_union(labels: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return all labels that any service gave, sorted, each once."""
    return tuple(sorted({label for given in labels for label in given}))
