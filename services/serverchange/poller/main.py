"""Wires the poller: the log's follower, the schedule, the asking, and what they write."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Coroutine
from typing import Final

from serverchange.adapters.kafka.group_follower import GroupFollower
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.platform_api import PlatformApi
from serverchange.adapters.postgres.connections import make_pool
from serverchange.adapters.process import ExitCode, Process, run_process
from serverchange.adapters.settings import Settings
from serverchange.poller.asking import Asking, Parts
from serverchange.poller.bell import Bell
from serverchange.poller.explaining import explain_route, tell_where
from serverchange.poller.following import Following
from serverchange.poller.freshness_writer import FreshnessWriter
from serverchange.poller.live_board import LiveBoard
from serverchange.poller.permission import Permission
from serverchange.poller.platform_clock import PlatformClock
from serverchange.poller.share import Share
from serverchange.poller.traces import Traces
from serverchange.tracker.lookup_schedule import LookupSchedule, ScheduleSettings

WATCH_INTERVAL_S: Final = 5.0

STUCK_AFTER_S: Final = 90.0
"""A follower that did not come round for so long hangs in a call: three times kafka-python's request time-out."""

FORGET_IN_FLIGHT_S: Final = 180.0
"""Longer than an answer and its publication may take: a platform's 60 s and the producer's 120 s at most."""

QUIET_AFTER_S: Final = 3 * 86_400.0
"""Platform seconds without a move until the budget is spent less and less: longer than a migration pauses (weekends,
nights; the first one moved ten channels, then nobody for days), so that its next step is noticed at full pace."""

LAST_FLUSH_S: Final = 1.0
LEAVE_GROUP_S: Final = 1.5
"""What a stop may take before the process ends regardless: the verifications not stored yet are only hints."""


def main(settings: Settings) -> None:
    """Run the poller until a signal stops it."""

    async def poll(process: Process) -> None:
        await poll_platform(settings, process)

    run_process("poller", settings.process, poll)


async def poll_platform(settings: Settings, process: Process) -> None:
    """Poll until `process.stopping` is set; every part that fails for good ends the process."""
    client_id = f"poller-{settings.process.name}"
    async with (
        PlatformApi(settings.platform, connections_max=settings.poller.concurrency) as api,
        make_pool(settings.postgres, application=client_id) as pool,
    ):
        publisher = EventPublisher(settings.kafka, client_id=client_id)
        share, board, clock = Share(), LiveBoard(), PlatformClock(settings.poller.time_scale)
        schedule = LookupSchedule(_schedule_settings(settings, clock), now_s=clock.now_s())
        bell, traces = Bell(), Traces()
        following = Following(
            settings,
            process.readiness,
            share=share,
            schedule=schedule,
            clock=clock,
            board=board,
            bell=bell,
            traces=traces,
        )
        freshness = FreshnessWriter(pool, share, process.readiness, flush_s=settings.poller.freshness_flush_s)
        permission = Permission(pool, process.readiness, requests_per_second=settings.platform.requests_per_second)
        parts = Parts(share, schedule, clock, board, freshness, following, api, publisher, permission, traces)
        asking = Asking(settings, process.readiness, parts, bell)
        process.routes.append(explain_route(process.settings.name, share, schedule, clock))
        await _run_until_stopped(process, parts, asking, tell_where(process, pool))
        await _leave(following.follower, freshness, publisher)


def _schedule_settings(settings: Settings, clock: PlatformClock) -> ScheduleSettings:
    repeat_after_s = settings.poller.repeat_after_s
    return ScheduleSettings(
        names_per_scan=settings.poller.streams_batch,
        repeat_after_s=tuple(clock.platform_s(spacing_s) for spacing_s in repeat_after_s),
        forget_in_flight_after_s=clock.platform_s(FORGET_IN_FLIGHT_S),
        retry_failed_after_s=clock.platform_s(repeat_after_s[0]),
        quiet_after_s=QUIET_AFTER_S,
        seed=zlib.crc32(settings.process.name.encode()),
    )


async def _run_until_stopped(
    process: Process, parts: Parts, asking: Asking, telling: Coroutine[None, None, None]
) -> None:
    async with asyncio.TaskGroup() as tasks:
        working = [
            tasks.create_task(parts.following.run(), name="following"),
            tasks.create_task(parts.permission.run(), name="permission"),
            tasks.create_task(asking.run(), name="asking"),
            tasks.create_task(parts.freshness.run(), name="freshness"),
            tasks.create_task(_watch(process, parts.following.follower), name="watch"),
            tasks.create_task(telling, name="telling"),
        ]
        await process.stopping.wait()
        for task in working:
            task.cancel()


async def _watch(process: Process, follower: GroupFollower) -> None:
    """End the process when the follower's thread hangs: a restart is cheap, a silent poller is not."""
    while True:
        await asyncio.sleep(WATCH_INTERVAL_S)
        silent_s = time.monotonic() - follower.beat_s
        if silent_s > STUCK_AFTER_S:
            process.fail(ExitCode.NO_PROGRESS, f"the follower of the log has been silent for {silent_s:.0f} s")


async def _leave(follower: GroupFollower, freshness: FreshnessWriter, publisher: EventPublisher) -> None:
    """Hand the partitions on at once, and store what is known; a part that hangs is left behind."""
    await asyncio.gather(
        asyncio.to_thread(follower.stop, LEAVE_GROUP_S),
        _within(freshness.flush(), LAST_FLUSH_S),
        _within(publisher.close(), LEAVE_GROUP_S),
    )


async def _within(work: Coroutine[None, None, None], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await work
    except TimeoutError:
        return
