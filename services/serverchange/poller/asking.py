"""Asks the platform, as the schedule decides and the shared budget allows, and publishes what would alter belief.

A lookup that failed changes nothing: its channel goes back to the schedule. When the platform says 429, all pollers
pause by its Retry-After; when it does not answer at all, this one pauses a little longer each time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, cast

import uuid_utils

from serverchange.adapters.kafka.publisher import EventPublisher, PublishError
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.platform_api import ClusterAnswer, NoInformation, PlatformApi, Reason
from serverchange.adapters.postgres.freshness import Fresh
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import Settings
from serverchange.adapters.tracing import SpanName, record_span
from serverchange.events import Channel, ChannelLive, ClusterServers, LiveData, ServersData
from serverchange.poller.bell import Bell
from serverchange.poller.cluster_servers import ClusterServersBoard
from serverchange.poller.findings import Finding, Meaning, Question, judge_answer
from serverchange.poller.following import Following
from serverchange.poller.freshness_writer import FreshnessWriter
from serverchange.poller.live_board import LiveBoard
from serverchange.poller.permission import Permission
from serverchange.poller.platform_clock import PlatformClock
from serverchange.poller.share import Share, may_be_asked
from serverchange.poller.traces import Traces
from serverchange.topics import CHANNEL_EVENTS, CHANNEL_LIVE, CLUSTERS
from serverchange.tracker.lookup_schedule import Lookup, LookupSchedule, Request, StreamsScan, Wait

_log = get_logger("poller")

SOURCE: Final = "serverchange/poller"

WAIT_S: Final = (0.02, 5.0)
"""Bounds of one sleep while nothing is worth a request: news ends it early."""

ECHO_TIMEOUT_S: Final = 5.0
"""How long a published observation may take to come back before its channel is scheduled again all the same."""

THROTTLED_PAUSE_S: Final = 5.0
"""After a 429 without Retry-After."""

OUTAGE_AFTER: Final = 8
"""Requests in a row without an answer that count as an outage of the platform."""

OUTAGE_PAUSE_S: Final = (1.0, 30.0)
"""First and longest pause in an outage; each is about twice the one before."""

LOG_INTERVAL_S: Final = 1.0

PUBLICATIONS_MAX: Final = 1_000
"""Answers being published at once; beyond it they keep their slots, and asking stops until Kafka takes more."""

_OUTAGE_REASONS: Final = frozenset({Reason.UNREACHABLE, Reason.TOO_SLOW, Reason.SERVER_ERROR})


@dataclass(frozen=True, slots=True)
class Parts:
    """What the asking works on; one of each in a process."""

    share: Share
    schedule: LookupSchedule
    clock: PlatformClock
    board: LiveBoard
    freshness: FreshnessWriter
    following: Following
    api: PlatformApi
    publisher: EventPublisher
    permission: Permission
    traces: Traces


class _Slot:
    """The right to have one request under way; given back once, as soon as it is answered."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots: asyncio.Semaphore | None = slots

    def release(self) -> None:
        if self._slots is not None:
            self._slots.release()
            self._slots = None


class Asking:
    """The dispatcher and its requests under way, at most `poller.concurrency`."""

    def __init__(self, settings: Settings, readiness: Readiness, parts: Parts, bell: Bell) -> None:
        self._settings = settings
        self._readiness = readiness
        self._parts = parts
        self._bell = bell
        self._slots = asyncio.Semaphore(settings.poller.concurrency)
        self._publications = asyncio.Semaphore(PUBLICATIONS_MAX)
        self._servers = ClusterServersBoard(interval_s=settings.poller.servers_interval_s)
        self._failures: dict[Channel, int] = {}
        self._publishing: set[Channel] = set()
        self._scanning: set[Channel] = set()
        self._unanswered = 0
        self._unlogged = 0
        self._log_again_s = 0.0
        self._next_s = 0.0

    async def run(self) -> None:
        """Ask until cancelled; requests under way are cancelled with it, their channels are nobody's loss."""
        async with asyncio.TaskGroup() as requests:
            while True:
                await self._slots.acquire()
                request = await self._next_request()
                requests.create_task(self._serve(request))

    async def _next_request(self) -> Request:
        """Wait for permission, then choose: the schedule's best is the best at the moment of asking."""
        while True:
            await self._parts.following.kafka_answers.wait()
            if (pace_s := self._next_s - time.monotonic()) > 0:
                await self._sleep(pace_s)
            elif len(self._parts.schedule) == 0:
                await self._sleep(WAIT_S[1])
            else:
                await self._parts.permission.take()
                request = self._parts.schedule.next_request(self._parts.clock.now_s())
                if not isinstance(request, Wait):
                    self._pace()
                    return request
                self._parts.permission.give_back()
                await self._sleep(self._parts.clock.real_s(request.until_s - self._parts.clock.now_s()))

    async def _sleep(self, wait_s: float) -> None:
        """Sleep, within `WAIT_S`, until the time is over or the schedule was told something."""
        if await self._bell.wait(min(max(wait_s, WAIT_S[0]), WAIT_S[1])):
            self._next_s = 0.0

    def _pace(self) -> None:
        """Spread requests out where the schedule says that the whole budget is not worth spending."""
        clock, schedule = self._parts.clock, self._parts.schedule
        budget_per_s = self._settings.platform.requests_per_second * self._part_of_fleet()
        worth_per_s = schedule.suggested_rate_per_s(clock.now_s(), budget_per_s / clock.scale) * clock.scale
        if worth_per_s < budget_per_s:
            self._next_s = time.monotonic() + min(1.0 / max(worth_per_s, 1e-9), WAIT_S[1])

    def _part_of_fleet(self) -> float:
        return max(1, len(self._parts.share.partitions)) / self._settings.kafka.partitions

    async def _serve(self, request: Request) -> None:
        slot = _Slot(self._slots)
        try:
            if isinstance(request, StreamsScan):
                await self._scan(cast("tuple[Channel, ...]", request.channels), slot)
            else:
                await self._look_up(Channel(request.channel), slot)
        finally:
            slot.release()
            self._bell.ring()  # whatever came of it, the schedule was told

    async def _look_up(self, channel: Channel, slot: _Slot) -> None:
        state = self._parts.share.state(channel)
        if state is None or not may_be_asked(state):
            self._parts.schedule.untrack(channel)
            return
        if channel in self._publishing:
            self._ask_again(Lookup(channel), self._spacing_s(0))
            return
        question = Question(channel, state.seq, datetime.now(UTC))
        started_s = time.monotonic()
        answer = await self._parts.api.fetch_cluster(channel)
        elapsed_s = time.monotonic() - started_s
        if isinstance(answer, NoInformation):
            await self._note_failure(Lookup(channel), answer)
            return
        self._note_success(channel)
        finding = judge_answer(
            self._parts.share.state(channel),
            question,
            answer,
            elapsed_s=elapsed_s,
            event_id=str(uuid_utils.uuid7()),
            source=SOURCE,
        )
        finding = self._trace(question, finding, answer, elapsed_s)
        if finding.meaning is Meaning.MOVES:
            # Told before the log can tell: of the two, this one says what the schedule's own question brought.
            self._parts.schedule.answered(
                channel, cluster=answer.cluster, changed=True, now_s=self._parts.clock.now_s()
            )
        self._publishing.add(channel)
        try:
            async with self._publications:
                slot.release()
                await self._publish(finding)
                await self._publish_servers(answer)
        except PublishError as error:
            self._note_unpublished(Lookup(channel), error)
            return
        finally:
            self._publishing.discard(channel)
        self._conclude(channel, finding, question.answered_at(elapsed_s))

    def _trace(self, question: Question, finding: Finding, answer: ClusterAnswer, elapsed_s: float) -> Finding:
        """Record a lookup that somebody waits for, or that tells something new; its event carries the trace on."""
        traces, channel = self._parts.traces, question.channel
        parent = traces.parent(channel)
        if finding.event is None and parent is None:
            return finding
        traceparent = record_span(
            SpanName.LOOKUP,
            parent=parent,
            started_s=question.asked_at.timestamp(),
            ended_s=question.answered_at(elapsed_s).timestamp(),
            attributes={
                "channel": channel,
                "cluster": answer.cluster,
                "meaning": finding.meaning.name.lower(),
                "asked_after": question.asked_after,
            },
        )
        if finding.meaning in {Meaning.AGREES, Meaning.POINTLESS}:
            traces.forget(channel)
        elif parent is None:
            traces.note(channel, traceparent)  # what verifies this answer belongs to it
        if finding.event is None:
            return finding
        return replace(finding, event=finding.event.model_copy(update={"traceparent": traceparent}))

    async def _publish(self, finding: Finding) -> None:
        """Publish what would alter belief, and wait for the log to bring it back: nobody folds it twice."""
        if finding.event is None:
            return
        event = finding.event
        partition, offset = await self._parts.publisher.publish(CHANNEL_EVENTS, event.subject, event.to_record())
        _log.info(
            LogEvent.CLUSTER_OBSERVED,
            channel=event.subject,
            cluster=event.data.cluster,
            meaning=finding.meaning.name.lower(),
            partition=partition,
            offset=offset,
        )
        await self._parts.following.seen(partition, offset, ECHO_TIMEOUT_S)

    def _conclude(self, channel: Channel, finding: Finding, answered_at: datetime) -> None:
        """Tell the schedule what came of its lookup, and keep the verification."""
        match finding.meaning:
            case Meaning.MOVES:
                return  # told already
            case Meaning.AGREES:
                state = self._parts.share.state(channel)
                if state is not None and state.cluster is not None:
                    self._parts.schedule.answered(
                        channel, cluster=state.cluster, changed=False, now_s=self._parts.clock.now_s()
                    )
                    self._parts.freshness.add(Fresh(channel, state.version, answered_at))
            case Meaning.DOUBTS:
                self._ask_again(Lookup(channel), self._spacing_s(finding.doubts - 1))
            case Meaning.STALE:
                self._ask_again(Lookup(channel), 0.0)
            case Meaning.POINTLESS:
                self._parts.schedule.untrack(channel)

    async def _scan(self, names: Sequence[Channel], slot: _Slot) -> None:
        """Ask who of `names` streams. No channel is in two scans at once: their answers could arrive in any order."""
        channels = tuple(channel for channel in names if channel not in self._scanning)
        if not channels:
            return
        self._scanning.update(channels)
        try:
            live = await self._parts.api.fetch_live(channels)
            if isinstance(live, NoInformation):
                await self._note_failure(StreamsScan(channels), live)
                return
            self._note_answer()
            async with self._publications:
                slot.release()
                await self._publish_live(channels, live)
        except PublishError as error:
            self._note_unpublished(StreamsScan(channels), error)
            return
        finally:
            self._scanning.difference_update(channels)
        self._parts.schedule.scanned(channels, live, self._parts.clock.now_s())

    async def _publish_live(self, channels: Sequence[Channel], live: frozenset[Channel]) -> None:
        """Publish whose live state is another than the topic's; channels that are no longer ours are not our word."""
        ours = [channel for channel in channels if self._parts.share.state(channel) is not None]
        changes = self._parts.board.changes(ours, live)
        now = datetime.now(UTC)
        events = [
            ChannelLive(
                id=str(uuid_utils.uuid7()),
                source=SOURCE,
                time=now,
                subject=channel,
                data=LiveData(live=is_live, since=now),
            )
            for channel, is_live in changes.items()
        ]
        await self._parts.publisher.publish_all(CHANNEL_LIVE, [(event.subject, event.to_record()) for event in events])
        self._parts.board.note(changes)

    async def _publish_servers(self, answer: ClusterAnswer) -> None:
        now_s = time.monotonic()
        if not self._servers.is_due(answer, now_s):
            return
        self._servers.note(answer, now_s)
        event = ClusterServers(
            id=str(uuid_utils.uuid7()),
            source=SOURCE,
            time=datetime.now(UTC),
            subject=answer.cluster,
            data=ServersData(servers=answer.servers, websocket_servers=answer.websocket_servers),
        )
        await self._parts.publisher.publish(CLUSTERS, event.subject, event.to_record())
        _log.info(LogEvent.SERVERS_CHANGED, cluster=answer.cluster, servers=len(answer.servers))

    def _note_success(self, channel: Channel) -> None:
        self._failures.pop(channel, None)
        self._note_answer()

    def _note_answer(self) -> None:
        self._unanswered = 0
        self._readiness.found("platform")

    async def _note_failure(self, request: Request, failure: NoInformation) -> None:
        """Put the request back; pause where the platform asks for it or seems to be down."""
        self._log_failure(failure)
        wait_s = failure.retry_after_s
        if failure.reason is Reason.THROTTLED and wait_s is None:
            wait_s = THROTTLED_PAUSE_S
        if wait_s is not None:
            await self._parts.permission.pause_fleet(wait_s)
        elif failure.reason in _OUTAGE_REASONS:
            self._note_unanswered(failure)
        self._ask_again(request, wait_s if wait_s is not None else self._failed_wait_s(request))

    def _log_failure(self, failure: NoInformation) -> None:
        """Log the newest failure and how many there were, at most once in `LOG_INTERVAL_S`: outages fill no disk."""
        self._unlogged += 1
        now_s = time.monotonic()
        if now_s >= self._log_again_s:
            _log.warning(
                LogEvent.LOOKUP_FAILED, reason=failure.reason.value, detail=failure.detail, failures=self._unlogged
            )
            self._unlogged, self._log_again_s = 0, now_s + LOG_INTERVAL_S

    def _failed_wait_s(self, request: Request) -> float:
        if not isinstance(request, Lookup):
            return self._spacing_s(0)
        channel = Channel(request.channel)
        failures = self._failures.get(channel, 0)
        self._failures[channel] = failures + 1
        return self._spacing_s(failures)

    def _spacing_s(self, times: int) -> float:
        spacing_s = self._settings.poller.repeat_after_s
        return spacing_s[min(max(times, 0), len(spacing_s) - 1)]

    def _ask_again(self, request: Request, wait_s: float) -> None:
        clock = self._parts.clock
        self._parts.schedule.failed(request, clock.now_s(), retry_after_s=clock.platform_s(wait_s))

    def _note_unanswered(self, failure: NoInformation) -> None:
        self._unanswered += 1
        if self._unanswered < OUTAGE_AFTER:
            return
        times = min(self._unanswered // OUTAGE_AFTER - 1, 10)
        pause_s = min(OUTAGE_PAUSE_S[0] * 2**times, OUTAGE_PAUSE_S[1])
        jittered_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, no secret)
        self._parts.permission.pause(jittered_s)
        self._readiness.wait_for("platform", f"no answers: {failure.reason.value}")

    def _note_unpublished(self, request: Request, error: PublishError) -> None:
        self._readiness.wait_for("kafka", str(error))
        self._ask_again(request, self._spacing_s(0))
