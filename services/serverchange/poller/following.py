"""Keeps the share and the lookup schedule in step with the log: one task owns both, everything reaches it as events."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeAlias

import psycopg
from kafka.errors import KafkaError

from serverchange.adapters import metrics
from serverchange.adapters.kafka.group_follower import (
    Assigned,
    Away,
    CaughtUp,
    Checked,
    Fetched,
    FollowerEvent,
    GroupFollower,
    Membership,
    Mismatched,
    Record,
    Revoked,
)
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import Settings
from serverchange.events import Channel, ChannelDoubted, ClusterObserved, ServerChangeReceived
from serverchange.poller.bell import Bell
from serverchange.poller.live_board import LiveBoard
from serverchange.poller.loading import LoadedPartition, RefusedPartition, load_partitions
from serverchange.poller.platform_clock import PlatformClock
from serverchange.poller.share import Share, Update, may_be_asked
from serverchange.poller.traces import Traces
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.channel_state import ChannelState, Status
from serverchange.tracker.lookup_schedule import LookupSchedule

_log = get_logger("poller")

GROUP: Final = "pollers"
"""The consumer group whose members share the channels."""

RELOAD_S: Final = (0.5, 5.0)
"""Bounds of the random wait before a partition that could not be loaded is tried again."""

MISMATCH_RETRY_S: Final = 10.0
"""How often a log that does not hold our position is looked at again: an operator must act first."""

TRACKED_AT_ONCE: Final = 2_000
"""Channels handed to the schedule before other tasks get a turn: about 10 ms."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    ticket: int
    partition: LoadedPartition


_Event: TypeAlias = FollowerEvent | _Loaded


class Following:
    """The task that follows the log; it rings the bell whenever it told the schedule something."""

    def __init__(
        self,
        settings: Settings,
        readiness: Readiness,
        *,
        share: Share,
        schedule: LookupSchedule,
        clock: PlatformClock,
        board: LiveBoard,
        bell: Bell,
        traces: Traces,
    ) -> None:
        self._settings = settings
        self._readiness = readiness
        self._share = share
        self._schedule = schedule
        self._clock = clock
        self._board = board
        self._bell = bell
        self._traces = traces
        self._client_id = f"poller-{settings.process.name}"
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._tickets = count(1)
        self._loading: dict[int, int] = {}
        self._loads: dict[int, LoadedPartition] = {}
        self._moved = asyncio.Condition()
        loop = asyncio.get_running_loop()
        self.follower = GroupFollower(
            settings.kafka,
            Membership(CHANNEL_EVENTS, GROUP, self._client_id),
            deliver=lambda event: _deliver(loop, self._events, event),
        )
        self.kafka_answers = asyncio.Event()
        readiness.wait_for("kafka", "joining the group of pollers")

    async def run(self) -> None:
        """Follow the log until cancelled."""
        self.follower.start()
        async with asyncio.TaskGroup() as loads:
            while True:
                await self._handle(await self._events.get(), loads)

    async def seen(self, partition: int, offset: int, timeout_s: float) -> None:
        """Wait until the record at `offset` came back from the log, the partition is lost, or the time is over."""

        def passed() -> bool:
            position = self._share.position(partition)
            return position is None or position > offset

        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(passed)
        except TimeoutError:
            return

    async def _handle(self, event: _Event, loads: asyncio.TaskGroup) -> None:
        match event:
            case Assigned(partitions):
                self._load(partitions, loads)
                _log.info(LogEvent.PARTITIONS_ASSIGNED, partitions=sorted(partitions))
            case Revoked(partitions):
                self._forget(partitions)
            case _Loaded(ticket, loaded):
                self._take(ticket, loaded)
            case Fetched(records):
                self._fold(records)
            case CaughtUp(partition, ticket):
                await self._begin_asking(partition, ticket)
            case Mismatched(partition, _, reason):
                self._readiness.wait_for(_log_part(partition), reason)
                self._share.forget(partition)
                self._load(frozenset({partition}), loads, after_s=MISMATCH_RETRY_S)
            case Checked() | Away():
                self._note_kafka(event)
        async with self._moved:
            self._moved.notify_all()
        self._say_how_far()

    def _fold(self, records: tuple[Record, ...]) -> None:
        for record in records:
            update = self._share.fold(record)
            if update is not None:
                self._tell_schedule(update)
        self.follower.taken()

    def _note_kafka(self, event: Checked | Away) -> None:
        if isinstance(event, Checked):
            metrics.LAG.set(event.lag_records)
            self.kafka_answers.set()
            self._readiness.found("kafka")
        else:
            self.kafka_answers.clear()
            self._readiness.wait_for("kafka", event.reason)

    def _load(self, partitions: frozenset[int], loads: asyncio.TaskGroup, *, after_s: float = 0.0) -> None:
        tickets = {partition: next(self._tickets) for partition in sorted(partitions)}
        self._loading |= tickets
        loads.create_task(self._load_all(tickets, after_s))

    async def _load_all(self, tickets: dict[int, int], after_s: float) -> None:
        """Load partitions, however long it takes, and hand each to the task that owns the share.

        Those that were revoked meanwhile are passed; their tickets are no longer the ones waited for.
        """
        await asyncio.sleep(after_s)
        done: set[int] = set()
        while left := [
            part for part, ticket in tickets.items() if self._loading.get(part) == ticket and part not in done
        ]:
            try:
                async for loaded in load_partitions(self._settings, left, client_id=self._client_id):
                    if isinstance(loaded, RefusedPartition):
                        self._readiness.wait_for(_log_part(loaded.partition), loaded.reason)
                        continue
                    done.add(loaded.partition)
                    self._events.put_nowait(_Loaded(tickets[loaded.partition], loaded))
                self._readiness.found("postgres")
                if done.issuperset(left):
                    return
            except psycopg.Error as error:
                self._readiness.wait_for("postgres", f"loading: {type(error).__name__}: {error}")
            except (KafkaError, OSError) as error:
                self._readiness.wait_for("kafka", f"loading: {type(error).__name__}: {error}")
            await asyncio.sleep(random.uniform(*RELOAD_S))  # noqa: S311  (jitter, no secret)

    def _take(self, ticket: int, loaded: LoadedPartition) -> None:
        if self._loading.get(loaded.partition) != ticket:
            return  # revoked while it was on its way
        del self._loading[loaded.partition]
        self._share.take(loaded.partition, ticket, loaded.position, loaded.states)
        self._loads[loaded.partition] = loaded
        self._board.load(loaded.live)
        self.follower.position(loaded.partition, loaded.position, ticket)

    async def _begin_asking(self, partition: int, ticket: int) -> None:
        """Hand the channels of a partition that caught up to the schedule, some at a time."""
        loaded = self._loads.pop(partition, None)
        verified_at = {} if loaded is None else loaded.verified_at
        self._readiness.found(_log_part(partition))
        for number, state in enumerate(self._share.caught_up(partition, ticket), start=1):
            if may_be_asked(state):
                moment = verified_at.get(state.channel) if state.verified else None
                self._track(state, verified_at_s=None if moment is None else self._clock.at_s(moment))
            if number % TRACKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._bell.ring(urgent=True)

    def _track(self, state: ChannelState, *, verified_at_s: float | None = None) -> None:
        self._schedule.track(
            state.channel,
            labels=frozenset(state.labels),
            cluster=state.cluster,
            verified=state.verified,
            urgent=state.status is Status.MOVING,
            now_s=self._clock.now_s(),
            verified_at_s=verified_at_s,
        )

    def _tell_schedule(self, update: Update) -> None:
        before, after = update.before, update.after
        if not may_be_asked(after):
            self._schedule.untrack(after.channel)
            self._traces.forget(after.channel)
            return
        if not (after.verified or isinstance(update.event, ClusterObserved)):
            self._traces.note(after.channel, update.event.traceparent)
        if before is None or after.channel not in self._schedule or before.wanting != after.wanting:
            self._track(after)
            self._bell.ring(urgent=not after.verified)
            return
        if _tells_nothing(update):
            return
        urgent = not after.verified and _is_urgent(update)
        self._schedule.update(
            after.channel,
            cluster=after.cluster,
            verified=after.verified,
            urgent=urgent,
            moved=before.cluster != after.cluster,
            now_s=self._clock.now_s(),
        )
        self._bell.ring(urgent=urgent)

    def _forget(self, partitions: frozenset[int]) -> None:
        for partition in partitions:
            self._loading.pop(partition, None)
            self._loads.pop(partition, None)
            channels: frozenset[Channel] = self._share.forget(partition)
            self._board.forget(channels)
            for channel in channels:
                self._schedule.untrack(channel)
                self._traces.forget(channel)
            self._readiness.found(_log_part(partition))
        _log.info(LogEvent.PARTITIONS_REVOKED, partitions=sorted(partitions))

    def _say_how_far(self) -> None:
        metrics.PARTITIONS_OWNED.set(len(self._share.partitions))
        if self._loading or self._share.catching_up:
            self._readiness.wait_for("assignment", "partitions are being loaded and followed to the log's end")
        else:
            self._readiness.found("assignment")


def _deliver(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[_Event], event: FollowerEvent) -> None:
    """Pass an event from the follower's thread into the loop; a loop that ended needs none."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def _log_part(partition: int) -> str:
    return f"log/{partition}"


def _is_urgent(update: Update) -> bool:
    """Whether somebody heard something that a lookup must settle: such channels go to the front."""
    if not isinstance(update.event, ServerChangeReceived | ChannelDoubted):
        return False
    before, after = update.before, update.after
    return after.status is Status.UNKNOWN or before is None or before.known_after != after.known_after


def _tells_nothing(update: Update) -> bool:
    """Whether an observation left the belief as it was: the one who asked has told the schedule already."""
    before, after = update.before, update.after
    if before is None or not isinstance(update.event, ClusterObserved):
        return False
    return (before.cluster, before.verified, before.status) == (after.cluster, after.verified, after.status)
