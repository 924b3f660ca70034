"""The live page at `/`, and the counts that it draws.

One file, no build step, nothing from elsewhere: the content security policy allows the page's own script and style,
by their hashes, and connections to this API alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from serverchange.state_api.answers import NOT_MODIFIED, respond
from serverchange.state_api.overview import Overview, RecentMoves, recent_changes
from serverchange.state_api.parts import parts_of
from serverchange.views import OverviewAnswer

router = APIRouter(tags=["overview"])

_INLINE: Final = re.compile(r"<(?P<tag>script|style)>(?P<text>.*?)</(?P=tag)>", re.DOTALL)


@cache
def page() -> tuple[str, str]:
    """Return the page and its content security policy."""
    text = files("serverchange.state_api").joinpath("page.html").read_text("utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for match in _INLINE.finditer(text):
        digest = base64.b64encode(hashlib.sha256(match["text"].encode()).digest()).decode()
        hashes[match["tag"]].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def get_page() -> HTMLResponse:
    """Answer with the live page."""
    text, policy = page()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(text, headers=headers)


@router.get("/overview", response_model=OverviewAnswer, responses=NOT_MODIFIED, summary="The whole fleet in a page")
async def get_overview(request: Request) -> Response:
    """Answer with the newest counts, how they went, and the newest changes; asks no database."""
    parts = parts_of(request)
    overview: Overview = request.app.state.overview
    moves: RecentMoves = request.app.state.recent_moves
    counted = overview.counted
    ring = parts.feed.ring
    handovers = request.app.state.handovers.figures()
    members = {
        "counted_at": None if counted is None else counted.at,
        "clusters": () if counted is None else counted.clusters,
        "unknown": 0 if counted is None else counted.unknown,
        "untracked": 0 if counted is None else counted.untracked,
        "shards": overview.shards,
        "held": overview.held,
        "verified": overview.verified,
        "budgets": overview.budgets,
        "handovers": handovers.recent,
        "handovers_last_minute": handovers.last_minute,
        "handover_confirmed_median_s": handovers.confirmed_median_s,
        "moves_last_minute": moves.moves_last_minute(ring, time.monotonic()),
        "samples": overview.samples,
        "recent": recent_changes(ring),
    }
    return respond(request, members, parts.board.now)
