"""`GET /changes`: every change as it happens, as Server-Sent Events that resume without loss.

Only changes, `ready` and `reset` carry an id; heartbeats carry none, so they can never move a reader's place. `ready`
and `reset` carry the place from which the stream goes on, so that a reader cut off before its first change loses
nothing either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from kafka.errors import KafkaError
from pydantic_core import to_json

from serverchange.adapters import metrics
from serverchange.client.change_log import why_lost
from serverchange.events import ChannelField, ClusterField, LabelField, Rejected
from serverchange.state_api.catch_up import CatchUp
from serverchange.state_api.change_feed import ChangeFeed
from serverchange.state_api.change_ring import BehindRingError, ChangeCursor, ChangeFilter, ChangeRing, change_frame
from serverchange.state_api.freshness import FreshnessBoard
from serverchange.state_api.parts import parts_of
from serverchange.state_api.problems import ApiProblem, problems, unavailable, unprocessable
from serverchange.views import ChangePosition, format_change_id, parse_change_id

router = APIRouter(tags=["changes"])

EVENT_STREAM: Final = "text/event-stream"
HEARTBEAT_S: Final = 15.0
"""Below the 30 to 60 s after which proxies close a silent connection."""

HEARTBEAT: Final = b": heartbeat\n\n"
PORTION: Final = 200
"""Changes written at once: a slow reader costs 200 kB at most."""

FILTER_VALUES_MAX: Final = 100
SNAPSHOT: Final = "/channels"
ENDS_TIMEOUT_S: Final = 3.0
RING_TIMEOUT_S: Final = 3.0
RETRY_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class _Reset:
    """A resume that cannot be without loss: the reader must load the snapshot."""

    reason: str


_STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "A stream of Server-Sent Events.", "content": {EVENT_STREAM: {"schema": {"type": "string"}}}}
}


@router.get(
    "/changes",
    response_class=StreamingResponse,
    responses=_STREAMED | problems(422, 429, 503),
    summary="Every change as it happens",
)
async def get_changes(
    request: Request,
    channel: Annotated[list[ChannelField], Query(max_length=FILTER_VALUES_MAX)] = [],  # noqa: B006  (FastAPI copies)
    label: Annotated[list[LabelField], Query(max_length=FILTER_VALUES_MAX)] = [],  # noqa: B006
    cluster: Annotated[list[ClusterField], Query(max_length=FILTER_VALUES_MAX)] = [],  # noqa: B006
    since: Annotated[str | None, Query(description="As Last-Event-ID, for clients that cannot set a header.")] = None,
    last_event_id: Annotated[str | None, Header(description="The newest id that a stream gave.")] = None,
) -> StreamingResponse:
    """Stream `change` events, whose data is the CloudEvent as on `cluster-changes`.

    First comes `ready` (the stream goes on from its id) or `reset` (too old, another topic, or past the end: load the
    snapshot that its data names, then apply what follows by (generation, version)).
    """
    parts = parts_of(request)
    wanted = ChangeFilter(frozenset(channel), frozenset(label), frozenset(cluster))
    given = last_event_id or since
    position = _position(given) if given else None
    ring = await _started_ring(parts.feed)
    verdict = None if position is None else await _judge(position, ring, parts.board)
    stream = _Stream(parts.feed, request.app.state.catch_up, wanted)
    slots: StreamSlots = request.app.state.stream_slots
    slots.take()
    frames = slots.held(stream.frames(ring, None if isinstance(verdict, _Reset) else position, verdict))
    return StreamingResponse(
        frames, media_type=EVENT_STREAM, headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


class StreamSlots:
    """How many streams are open, and how many may be."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0

    def take(self) -> None:
        """Count one more.

        Raises:
            ApiProblem: 429: all are taken.
        """
        if self._open >= self._limit:
            raise ApiProblem(
                HTTPStatus.TOO_MANY_REQUESTS, f"all {self._limit} streams are taken; try again", {"retry-after": "10"}
            )
        self._open += 1
        metrics.API_STREAMS.set(self._open)

    async def held(self, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield `frames`, and count one less when they end, however they end."""
        try:
            async for frame in frames:
                yield frame
        finally:
            self._open -= 1
            metrics.API_STREAMS.set(self._open)


async def _started_ring(feed: ChangeFeed) -> ChangeRing:
    """Return the ring; a process that has just started is given a moment, so that those who come back find it."""
    deadline_s = time.monotonic() + RING_TIMEOUT_S
    while feed.ring is None and not feed.closed and (left_s := deadline_s - time.monotonic()) > 0:
        await feed.wait(left_s)
    if feed.ring is None:
        raise unavailable("the changes were not read from Kafka yet; try again")
    return feed.ring


def _position(text: str) -> ChangePosition:
    try:
        return parse_change_id(text)
    except Rejected as error:
        raise unprocessable(f"Last-Event-ID: {error}") from error


async def _judge(position: ChangePosition, ring: ChangeRing, board: FreshnessBoard) -> _Reset | None:
    """Return why a reader cannot go on from `position`, or None.

    Raises:
        ApiProblem: 503: only Kafka could tell, and it does not answer.
    """
    newest = ring.position.offsets
    same = position.topic == ring.topic and len(position.offsets) == len(newest)
    if same and any(mine > read for mine, read in zip(position.offsets, newest, strict=True)):
        # Another API may have been ahead of this one: only an answer from now on can call it past the end.
        ends = await board.ends_asked_after(time.monotonic(), ENDS_TIMEOUT_S)
    else:
        ends = board.last_ends or await board.ends_asked_after(float("-inf"), ENDS_TIMEOUT_S)
    if ends is None:
        raise unavailable("Kafka does not answer, and only it could tell what came after that id; try again")
    reason = why_lost(
        position,
        ring.topic,
        [max(read, ends.changes.get(partition, 0)) for partition, read in enumerate(newest)],
        [ends.resumable.get(partition, 0) for partition in range(len(newest))],
    )
    return None if reason is None else _Reset(reason)


class _Stream:
    """One client's stream."""

    def __init__(self, feed: ChangeFeed, catch_up: CatchUp, wanted: ChangeFilter) -> None:
        self._feed = feed
        self._catch_up = catch_up
        self._wanted = wanted
        self._place = ChangePosition("", ())
        self._sent_at_s = 0.0

    async def frames(
        self, ring: ChangeRing, since: ChangePosition | None, reset: _Reset | None
    ) -> AsyncIterator[bytes]:
        """Yield frames until the feed closes or the client goes away."""
        self._place = since or ring.position
        yield self._sent(_control("ready", self._place) if reset is None else _control("reset", self._place, reset))
        while not self._feed.closed:
            if self._feed.ring is not None and self._feed.ring is not ring:
                ring = self._feed.ring
                self._place = ring.position
                yield self._sent(_control("reset", self._place, _Reset("the topic was made anew")))
            try:
                cursor = ChangeCursor.resume(ring, self._place)
            except BehindRingError:
                frames = self._from_kafka(ring)
            else:
                frames = self._from_ring(cursor)
            async for frame in frames:
                yield self._sent(frame)

    async def _from_ring(self, cursor: ChangeCursor) -> AsyncIterator[bytes]:
        """Yield what is in memory and what comes, until the ring is no longer the feed's or has moved on."""
        while not self._feed.closed and self._feed.ring is cursor.ring:
            try:
                frames = cursor.take(self._wanted, PORTION)
            except BehindRingError:
                break
            left_s = self._sent_at_s + HEARTBEAT_S - time.monotonic()
            if frames:
                yield b"".join(frames)
            elif left_s <= 0:
                yield HEARTBEAT
            elif cursor.at_newest:
                await self._feed.wait(left_s)
            else:
                await asyncio.sleep(0)  # a filter that lets little pass must not keep others waiting
        self._place = cursor.position

    async def _from_kafka(self, ring: ChangeRing) -> AsyncIterator[bytes]:
        """Yield what lies between the stream's place and the ring's newest change."""
        until = ring.position
        offsets = list(self._place.offsets)
        try:
            async for portion in self._catch_up.read(self._place, until):
                frames = []
                for change in portion:
                    offsets[change.partition] = change.offset + 1
                    if self._wanted.matches(change):
                        frames.append(change_frame(format_change_id(ring.topic, offsets), change.value))
                self._place = ChangePosition(ring.topic, tuple(offsets))
                yield b"".join(frames) or HEARTBEAT
        except KafkaError:
            await asyncio.sleep(RETRY_MS / 1000)
            yield HEARTBEAT
        else:
            passed = [max(mine, end) for mine, end in zip(offsets, until.offsets, strict=True)]
            self._place = ChangePosition(ring.topic, tuple(passed))

    def _sent(self, frame: bytes) -> bytes:
        self._sent_at_s = time.monotonic()
        return frame


def _control(event: str, place: ChangePosition, reset: _Reset | None = None) -> bytes:
    """Return a `ready` or `reset` event, with the place from which the stream goes on."""
    data: dict[str, Any] = {"snapshot": SNAPSHOT}
    if reset is not None:
        data["reason"] = reset.reason
    change_id = format_change_id(place.topic, place.offsets)
    return b"retry: %d\nid: %s\nevent: %s\ndata: %s\n\n" % (RETRY_MS, change_id.encode(), event.encode(), to_json(data))
