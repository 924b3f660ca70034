"""What the state API answers and takes: the shapes that other people's programs rely on.

Every answer about channels carries how fresh it is: `as_of`, the last moment the tables were seen at the log's end,
and `behind_records`, how many records of `channel-events` were not folded yet when that was last asked (null while
Kafka is away). Errors are problem details (RFC 9457).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from serverchange.events import (
    AccountField,
    ChangeKind,
    Channel,
    ChannelField,
    ChannelKind,
    ClusterField,
    HandoverCause,
    HandoverOutcome,
    LabelField,
    Rejected,
    ServerField,
    parse_channel,
)

POSITION_HEADER: Final = "Serverchange-Position"
"""On the answer of a write: where in `channel-events` it stands, `partition@offset` joined by commas. On a read: be at
least as new as that."""

AS_OF_HEADER: Final = "Serverchange-As-Of"
BEHIND_HEADER: Final = "Serverchange-Behind-Records"
"""Freshness of answers that have no room for it: the platform's own shapes, NDJSON, 304."""

POSITION_PARTS_MAX: Final = 10_000
"""As many partitions as the settings allow."""

_POSITION_PART: Final = re.compile(r"(\d{1,5})@(\d{1,18})", re.ASCII)


def format_position(position: Mapping[int, int]) -> str:
    """Return a vector of (partition, offset) as the header's text, in partition order."""
    return ",".join(f"{partition}@{offset}" for partition, offset in sorted(position.items()))


def parse_position(text: str) -> dict[int, int]:
    """Return the header's text as {partition: offset}.

    Raises:
        Rejected: it is not `partition@offset` joined by commas, or names a partition twice.
    """
    parts = text.split(",")
    position: dict[int, int] = {}
    for part in parts[: POSITION_PARTS_MAX + 1]:
        match = _POSITION_PART.fullmatch(part.strip())
        if match is None or int(match[1]) in position or len(parts) > POSITION_PARTS_MAX:
            raise Rejected(f"{text[:60]!r} is not a position: expected partition@offset,…, e.g. 3@1042,7@88")
        position[int(match[1])] = int(match[2])
    return position


_CHANGE_ID: Final = re.compile(r"(?P<topic>[0-9a-f]{8})-(?P<offsets>[0-9a-f]{1,15}(\.[0-9a-f]{1,15})*)", re.ASCII)

CHANGE_ID_CHARACTERS_MAX: Final = 65_536
"""An id of 4,000 partitions with offsets of 15 digits; longer is refused before it is looked at."""


@dataclass(frozen=True, slots=True)
class ChangePosition:
    """A place in `cluster-changes`: `offsets[p]` is the next offset of partition p.

    As text, `1f2e3d4c-1a.0.7f3`, it is 8 hex digits of the topic's id and the offsets in hex, in partition order. A
    reader that goes on from the newest place it saw gets what came after, whatever partitions its changes came from;
    a single offset could not say that.
    """

    topic: str
    offsets: tuple[int, ...]


def short_topic_id(topic_id: str) -> str:
    """Return 8 hex digits that tell a re-created topic from the one before; Kafka gives ids as UUIDs."""
    digits = re.sub(r"[^0-9a-f]", "", topic_id.lower())
    return digits[:8].rjust(8, "0")


def format_change_id(topic: str, offsets: Iterable[int]) -> str:
    """Return the id of a place."""
    return topic + "-" + ".".join([format(offset, "x") for offset in offsets])


def parse_change_id(text: str) -> ChangePosition:
    """Return the place that an id names.

    Raises:
        Rejected: it is none of our ids.
    """
    match = _CHANGE_ID.fullmatch(text) if len(text) <= CHANGE_ID_CHARACTERS_MAX else None
    if match is None:
        raise Rejected(f"{text[:40]!r} is not an event id: send back the newest id that a stream gave, unchanged")
    return ChangePosition(match["topic"], tuple(int(offset, 16) for offset in match["offsets"].split(".")))


def _as_channel(value: object) -> Channel:
    if not isinstance(value, str):
        raise ValueError("a channel is a string")  # noqa: TRY004  (pydantic turns it into a validation error)
    try:
        return parse_channel(value)
    except Rejected as error:
        raise ValueError(str(error)) from error


NameField = Annotated[
    Channel,
    BeforeValidator(_as_channel, json_schema_input_type=str),
    Field(description="A channel as people type it: `#Forsen` is `forsen`.", examples=["forsen"]),
]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChannelStatus(StrEnum):
    """How much is known of where a channel is."""

    UNKNOWN = "unknown"
    SETTLED = "settled"
    MOVING = "moving"
    UNTRACKED = "untracked"


class Freshness(_View):
    """How fresh an answer is."""

    as_of: datetime | None = Field(description="Last moment the tables were seen at the log's end; null: never yet.")
    behind_records: int | None = Field(description="Records not folded when last asked; null while Kafka is away.")


class ChannelView(_View):
    """What is known of one channel."""

    channel: ChannelField
    status: ChannelStatus = Field(description="`moving`: it left `cluster`, and a lookup has not yet said for where.")
    cluster: ClusterField | None = Field(description="Where it is; while moving or untracked, where it last was.")
    previous: ClusterField | None = Field(description="The cluster it last left.")
    verified: bool = Field(description="A lookup asked after the last change agreed.")
    verified_at: datetime | None = Field(description="When a lookup last agreed with this version.")
    since: datetime | None = Field(description="When the log learned of the present cluster.")
    version: int = Field(description="Published changes of this channel so far; never restarts.")
    kind: ChannelKind
    labels: tuple[LabelField, ...]
    services: tuple[str, ...] = Field(description="Who wants it tracked.")
    pinned: ClusterField | None = Field(description="An operator's word; wins over all evidence.")
    room_id: str | None
    flapping: bool = Field(description="It moved so often of late that one should be slow to follow.")
    evidence: tuple[str, ...] = Field(description="Ids of the events behind the present belief.")


_FRESH_EXAMPLE: Final[JsonDict] = {"as_of": "2016-02-14T12:03:41.912Z", "behind_records": 0}
_CHANNEL_EXAMPLE: Final[JsonDict] = {
    "channel": "forsen",
    "status": "settled",
    "cluster": "aws",
    "previous": "main",
    "verified": True,
    "verified_at": "2016-02-14T12:01:07.020Z",
    "since": "2016-02-14T11:58:20.114Z",
    "version": 4,
    "kind": "chat",
    "labels": ["partner"],
    "services": ["my-bot"],
    "pinned": None,
    "room_id": "22484632",
    "flapping": False,
    "evidence": ["0152e0c1-8694-739b-aea5-966c26f8ad90"],
}


class ChannelAnswer(ChannelView, Freshness):
    """`GET /channels/{name}`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_CHANNEL_EXAMPLE, **_FRESH_EXAMPLE}]})


class ChannelAtAnswer(Freshness):
    """`GET /channels/{name}?at=`: what the published changes said at that moment of the log."""

    channel: ChannelField
    at: datetime
    status: ChannelStatus = Field(description="`moving` is no published change and is never answered here.")
    cluster: ClusterField | None
    previous: ClusterField | None
    since: datetime | None
    version: int
    final: bool = Field(description="The tables have passed `at`: no later answer will differ.")


class LookupRequest(_Request):
    """`POST /channels:lookup`."""

    channels: list[NameField] = Field(min_length=1)


class LookupAnswer(Freshness):
    """Those asked for that are known, in no particular order, and the names that nobody ever tracked."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"channels": [_CHANNEL_EXAMPLE], "unknown": ["nobody"], **_FRESH_EXAMPLE}]}
    )

    channels: tuple[ChannelView, ...]
    unknown: tuple[ChannelField, ...]


class ChannelsPage(Freshness):
    """`GET /channels`, in order of name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"channels": [_CHANNEL_EXAMPLE], "cursor": "forsen", **_FRESH_EXAMPLE}]}
    )

    channels: tuple[ChannelView, ...]
    cursor: str | None = Field(description="Ask for the next page with `?cursor=`; null: this was the last.")


class DecidingRecord(_View):
    """Where in `channel-events` the record stands that decided a change, and what it said where that was asked for."""

    partition: int
    offset: int
    event: dict[str, object] | None = Field(default=None, description="The event, with `?evidence=true`.")


class HistoryEntry(_View):
    """One published change."""

    generation: int
    version: int
    what: ChangeKind
    previous: ClusterField | None
    cluster: ClusterField | None
    since: datetime
    labels: tuple[LabelField, ...]
    evidence: tuple[str, ...] = Field(description="Ids of the deciding events.")
    decided_by: DecidingRecord


class HistoryPage(Freshness):
    """`GET /channels/{name}/history`, newest first."""

    channel: ChannelField
    status: ChannelStatus
    version: int
    since: datetime | None
    verified_at: datetime | None
    changes: tuple[HistoryEntry, ...]
    cursor: str | None = Field(description="Ask for older ones with `?cursor=`; null: these were the oldest.")


class ClusterView(_View):
    """One cluster's servers, as the platform last named them."""

    cluster: ClusterField
    servers: tuple[ServerField, ...]
    websocket_servers: tuple[ServerField, ...]
    time: datetime = Field(description="When a poller saw this list.")


class ClustersAnswer(Freshness):
    """`GET /clusters`."""

    clusters: tuple[ClusterView, ...]


class ClusterCount(_View):
    """How many channels live on one cluster."""

    cluster: ClusterField
    channels: int = Field(description="Tracked channels whose cluster this is; the moving ones among them.")
    moving: int
    unverified: int
    flapping: int


class OverviewSample(_View):
    """The channels of each cluster at one moment."""

    at: datetime
    channels: dict[str, int]


class VerificationAges(_View):
    """How long ago lookups last agreed with what is believed of the tracked channels; group rooms need none.

    Where a channel streams on another cluster than believed cannot be known while it does; this bounds it.
    """

    within_10_minutes: int
    within_an_hour: int = Field(description="Over ten minutes ago, within an hour.")
    within_a_day: int = Field(description="Over an hour ago, within a day.")
    older: int
    never: int = Field(description="Not since the last change.")
    oldest: datetime | None = Field(description="The longest ago of all that were; null: none was.")


class BudgetView(_View):
    """What an account has used of one of its budgets within the platform's window, by the ledger."""

    account: str
    kind: str = Field(description="`join` or `login`.", examples=["join"])
    window_s: float = Field(description="Seconds of the window.")
    used: int
    leased: int = Field(description="In a process's hand: it may be spent this very moment.")
    waiting: int = Field(description="What shards told of late that waits for it.")


class HandoverView(_View):
    """One handover that ended, as its shard reported it."""

    channel: ChannelField
    at: datetime = Field(description="When it ended.")
    cause: HandoverCause
    outcome: HandoverOutcome
    source: ClusterField | None
    target: ClusterField
    shard: str
    confirmed_s: float | None = Field(description="Seconds until the new side was confirmed; null: it never was.")
    ended_s: float = Field(description="Seconds until the last old side was gone.")


class RecentChange(_View):
    """One of the newest published changes."""

    channel: ChannelField
    what: ChangeKind
    previous: ClusterField | None
    cluster: ClusterField | None
    version: int
    since: datetime
    published_after_ms: int | None = Field(
        description="From the append of the deciding record until this was published, by two clocks; null: not known."
    )


class ShardView(_View):
    """What one shard last told of itself."""

    process: str
    account: str
    wanted: int = Field(description="Channels to be read.")
    confirmed: int = Field(description="Of these, read on at least one link.")
    links: int
    joins_waiting: int = Field(description="JOINs that wait for a link or for budget.")
    moves_held: int = Field(description="Moves decided and held back by the brake.")
    fresh: bool = Field(description="It told so of late; else it is stopped, paused or cut off.")


class OverviewAnswer(Freshness):
    """`GET /overview`: the whole fleet in a page; counted every few seconds, not for each request."""

    counted_at: datetime | None = Field(description="When the counts were made; null: not yet.")
    clusters: tuple[ClusterCount, ...]
    unknown: int = Field(description="Tracked channels of which nobody knows yet where they are.")
    untracked: int
    shards: tuple[ShardView, ...]
    held: str | None = Field(description="Why, and by whom, moves are held; null: they are not.")
    verified: VerificationAges | None = Field(description="Counted every half minute; null: not yet.")
    budgets: tuple[BudgetView, ...]
    handovers: tuple[HandoverView, ...] = Field(description="Newest first.")
    handovers_last_minute: int
    handover_confirmed_median_s: float | None = Field(
        description="Of the last minute: seconds until the new side was confirmed; null: there was none."
    )
    moves_last_minute: int
    samples: tuple[OverviewSample, ...] = Field(description="Oldest first; older ones stand further apart.")
    recent: tuple[RecentChange, ...] = Field(description="Newest first.")


class TrackRequest(_Request):
    """`POST /channels`: the token's service wants these; said again, it replaces that service's labels."""

    channels: list[NameField] = Field(min_length=1)
    labels: tuple[LabelField, ...] = Field(default=(), max_length=16)
    kind: ChannelKind = ChannelKind.CHAT
    account: AccountField | None = Field(default=None, description="The login that joins them, if one is asked for.")


class UntrackRequest(_Request):
    """`DELETE /channels`: the token's service no longer wants these."""

    channels: list[NameField] = Field(min_length=1)


class PinRequest(_Request):
    """`PUT /channels/{name}/pin`: an operator's word on where the channel is."""

    cluster: ClusterField


class WriteAnswer(_View):
    """A write is in the log; a read that demands `position` sees it."""

    accepted: int = Field(description="Events appended, one a channel.")
    position: Annotated[str, StringConstraints(pattern=r"^\d+@\d+(,\d+@\d+)*$")]


class LookupPlan(_View):
    """When and why a poller asks for a channel next; what is null is not known, or lookups tell nothing of it."""

    channel: ChannelField
    poller: str = Field(description="The `process.name` of the poller that holds the channel's partition.")
    reason: str = Field(description="The strongest reason, in words.")
    score: float | None = Field(
        default=None, description="Seconds of exposure that one lookup now is expected to save: the largest source."
    )
    sources: dict[str, float] = Field(
        default={}, description="What each source of evidence says by itself, in the same seconds."
    )
    parts: dict[str, float] = Field(default={}, description="What the sources are computed from, by name.")
    next_lookup_in_s: float | None = Field(default=None, description="Seconds until it is expected to be asked.")
    next_lookup_at: datetime | None = None


class Problem(_View):
    """Problem details (RFC 9457); `type` is `about:blank`, so `title` is the status's own phrase."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What was wrong, where, and what to do.")
    instance: str | None = None
