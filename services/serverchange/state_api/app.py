"""Puts the state API together: parts, routes, limits; nothing connects before the app is started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.process import Readiness, health_routes
from serverchange.adapters.settings import Settings
from serverchange.state_api import change_routes, channel_routes, cluster_routes, page_routes, write_routes
from serverchange.state_api.catch_up import CatchUp
from serverchange.state_api.change_feed import ChangeFeed
from serverchange.state_api.change_routes import StreamSlots
from serverchange.state_api.deciding_records import DecidingRecords
from serverchange.state_api.freshness import FreshnessBoard
from serverchange.state_api.guard import Guard
from serverchange.state_api.handover_feed import HandoverFeed
from serverchange.state_api.log_watch import LogEnds, LogWatch
from serverchange.state_api.overview import Overview, RecentMoves
from serverchange.state_api.parts import Parts
from serverchange.state_api.problems import add_handlers
from serverchange.state_api.reads import Reader
from serverchange.state_api.tokens import parse_tokens
from serverchange.state_api.writes import Writer
from serverchange.views import Problem

GZIP_BYTES_MIN: Final = 2_048
"""Shorter answers fit a few packets; packing them costs more than it saves."""

DESCRIPTION: Final = """Where every channel is, how fresh that is, and every change as it happens.

Every answer says `as_of` and `behind_records`. A write answers `Serverchange-Position`; a read that sends it back sees
the write, or is told 503. Errors are problem details (RFC 9457)."""


def create_app(settings: Settings, *, readiness: Readiness | None = None) -> FastAPI:
    """Return the API; it connects when it is started, and serves what it can while Kafka or Postgres are away.

    Raises:
        SettingsError: the tokens are not what they should be.
    """
    tokens = parse_tokens(settings.api.tokens.get_secret_value())
    ready = readiness or Readiness()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client_id = f"serverchange-state-api-{settings.process.name}"
        ready.wait_for("postgres", "not asked yet")
        board = FreshnessBoard(ready)
        feed = ChangeFeed(settings.kafka, client_id=client_id)

        def told(ends: LogEnds | None) -> None:
            board.note_ends(ends)
            if ends is not None:
                feed.check_topic(ends.changes_topic_id)

        watch = LogWatch(settings.kafka, client_id=client_id, told=told)
        publisher = EventPublisher(settings.kafka, client_id=client_id)
        async with Reader(settings.postgres, application=client_id) as reader:
            records = DecidingRecords(settings.kafka, client_id=client_id)
            app.state.parts = Parts(settings, tokens, reader, Writer(publisher), records, board, feed)
            app.state.catch_up = CatchUp(settings.kafka, client_id=client_id)
            feed.start()
            app.state.handovers.start(settings.kafka, client_id=client_id)
            watch.start()
            keeping = [
                asyncio.create_task(board.run(reader.read), name="freshness"),
                asyncio.create_task(app.state.overview.run(reader), name="overview"),
            ]
            try:
                yield
            finally:
                feed.stop()
                watch.stop()
                for task in keeping:
                    task.cancel()
                closing = (publisher.close(), records.close(), app.state.handovers.stop())
                await asyncio.gather(*keeping, *closing, return_exceptions=True)

    # FastAPI's own pages of the document load scripts from elsewhere.
    app = FastAPI(
        title="serverchange", version="1", description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.overview = Overview(settings.platform.rate_window_s)
    app.state.recent_moves = RecentMoves()
    app.state.handovers = HandoverFeed()
    app.state.stream_slots = StreamSlots(settings.api.streams_max)
    for routes in (channel_routes, write_routes, change_routes, cluster_routes, page_routes):
        app.include_router(routes.router)
    app.router.routes.extend(health_routes(ready))
    app.add_middleware(GZipMiddleware, minimum_size=GZIP_BYTES_MIN, compresslevel=4)
    app.add_middleware(
        Guard,
        body_bytes_max=settings.api.body_bytes_max,
        requests_per_second=settings.api.requests_per_second,
    )
    add_handlers(app)
    _describe(app)
    return app


def openapi_document() -> dict[str, Any]:
    """Return the API's OpenAPI document; connects to nothing."""
    return create_app(Settings.model_construct()).openapi()


def _describe(app: FastAPI) -> None:
    """Have the document name the problem details and the tokens, which FastAPI cannot see."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            components = document.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
