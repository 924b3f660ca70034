"""Tells an operator why and when a channel is asked next: a route on the health port, found through PostgreSQL.

Nothing is decided here, and a poller whose address nobody can look up asks as well as any other.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
from psycopg_pool import AsyncConnectionPool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.poller_address import TELL_INTERVAL_S, tell_address
from serverchange.adapters.process import Process
from serverchange.events import Channel, Rejected, parse_channel
from serverchange.poller.platform_clock import PlatformClock
from serverchange.poller.share import Share, may_be_asked
from serverchange.tracker.lookup_schedule import LookupSchedule
from serverchange.views import LookupPlan

PATH: Final = "/lookups/{channel}"

RETRY_S: Final = 2.0

FORESEEN_S: Final = 10 * 365 * 86_400.0
"""What is expected later says no more than "not soon", and may be no date at all."""


def explain_route(process: str, share: Share, schedule: LookupSchedule, clock: PlatformClock) -> Route:
    """Return the route: 200 with a `LookupPlan`, 404 where the channel is not in this poller's share."""

    async def explain(request: Request) -> Response:
        try:
            channel = parse_channel(request.path_params["channel"])
        except Rejected as error:
            return JSONResponse({"detail": str(error)}, status_code=422)
        plan = lookup_plan(process, channel, share, schedule, clock)
        if plan is None:
            return JSONResponse({"detail": f"{channel} is not this poller's"}, status_code=404)
        return Response(plan.model_dump_json(), media_type="application/json")

    return Route(PATH, explain)


def lookup_plan(
    process: str, channel: Channel, share: Share, schedule: LookupSchedule, clock: PlatformClock
) -> LookupPlan | None:
    """Return when and why a channel is asked next; None where it is not in this poller's share."""
    state = share.state(channel)
    if state is None:
        return None
    if not may_be_asked(state):
        reason = "lookups tell nothing of it: it is pinned, a group room, or not tracked any more"
        return LookupPlan(channel=channel, poller=process, reason=reason)
    if channel not in schedule:
        return LookupPlan(channel=channel, poller=process, reason="its partition is still being followed to its end")
    now_s = clock.now_s()
    found = schedule.explain(channel, now_s)
    wait_s = max(0.0, clock.real_s(found.next_lookup_s - now_s))
    is_foreseen = wait_s < FORESEEN_S
    return LookupPlan(
        channel=channel,
        poller=process,
        reason=found.reason,
        score=found.score,
        sources=found.sources,
        parts=found.parts,
        next_lookup_in_s=wait_s if is_foreseen else None,
        next_lookup_at=datetime.now(UTC) + timedelta(seconds=wait_s) if is_foreseen else None,
    )


async def tell_where(process: Process, pool: AsyncConnectionPool[AsyncConnection]) -> None:
    """Tell where this process answers, for ever; PostgreSQL being away is told by those whose work needs it."""
    while True:
        try:
            async with pool.connection() as connection:
                await tell_address(connection, process.settings.name, process.health_url)
        except psycopg.Error:
            await asyncio.sleep(RETRY_S)
        else:
            await asyncio.sleep(TELL_INTERVAL_S)
