"""Generated requests, honest and not, get documented answers of the documented shape, and never a 5xx of ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serverchange.state_api.app import openapi_document
from serverchange.views import POSITION_HEADER

from .conftest import TOKEN, RunningApi, Tables, Topics, settled

CASES_A_ROUTE: Final = 30
CHECKS: Final = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
HEADERS: Final = {"authorization": f"Bearer {TOKEN}", "prefer": "wait=0"}


async def test_generated_requests_get_documented_answers(api: RunningApi, tables: Tables, topics: Topics) -> None:
    await topics.servers("aws", ["irc.chat.twitch.tv:6667"])
    await tables.store([settled("forsen", on="aws", version=3), settled("a", on="main")])
    await tables.store_history("forsen", ["main", "event", "aws"])
    await api.until_streaming()

    statuses = await asyncio.to_thread(probe, api.url)

    assert {200, 202, 404, 422} <= set(statuses), statuses


def probe(url: str) -> Counter[int]:
    """Try every route but the stream without an end, which has tests of its own; return the statuses that came."""
    document = openapi_document()
    del document["paths"]["/changes"]
    statuses: Counter[int] = Counter()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        probe_route(found.ok(), url, statuses)
    return statuses


def probe_route(operation: Any, url: str, statuses: Counter[int]) -> None:
    honest, dishonest = (operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE))

    @seed(20160214)
    @settings(
        max_examples=CASES_A_ROUTE,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(honest | dishonest)
    def check(case: Any) -> None:
        response = case.call_and_validate(base_url=url, headers=HEADERS, checks=CHECKS)
        statuses[response.status_code] += 1
        demanded = POSITION_HEADER.lower() in {name.lower() for name in case.headers}
        assert response.status_code < 500 or (response.status_code == 503 and demanded), response.content

    check()
