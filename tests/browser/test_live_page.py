"""The live page in a real browser: what a person sees of a migration."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from serverchange.events import Channel, ChannelKind, Cluster, ClusterChanged
from serverchange.reconnector.handover_reports import handover_report
from serverchange.topics import HANDOVERS
from serverchange.tracker.channel_state import Status
from serverchange.tracker.handover_words import Cause, Outcome, Record

from ..integration.state_api.conftest import RunningApi, Tables, Topics, moved, settled

pytestmark = pytest.mark.browser

DOCS: Final = Path(__file__).parents[2] / "docs" / "screenshots"
KEEP: Final = "SERVERCHANGE_SCREENSHOTS"
"""Set it to have the screenshots in the documents made anew."""

DESKTOP: Final = {"width": 1180, "height": 900}
PHONE: Final = {"width": 360, "height": 740}
MANY: Final = 200_000
CELLS: Final = """[...document.querySelectorAll("#found tr")].slice(1).map(
    (row) => [...row.cells].slice(1, 4).map((cell) => cell.innerText))"""


@pytest.fixture(autouse=True)
def ages_at_every_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have verifications counted as often as channels: what a test stores is seen at once."""
    monkeypatch.setattr("serverchange.state_api.overview.AGES_INTERVAL_S", 0.0)


@asynccontextmanager
async def page_at(
    browser: Any, api: RunningApi, size: dict[str, int], scheme: str = "light", path: str = "/"
) -> AsyncIterator[Any]:
    """Open the page, and fail where the browser complains of anything."""
    complaints: list[str] = []
    page = await browser.new_page(viewport=size, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(api.url + path)
    yield page
    assert complaints == []
    await page.close()


async def fill(tables: Tables) -> None:
    now_ms = round(datetime.now(UTC).timestamp() * 1000)
    await tables.store(
        [
            *(settled(f"on_aws_{number}", on="aws") for number in range(12)),
            *(settled(f"on_main_{number}", on="main") for number in range(7)),
            settled("group_room", on="group", kind=ChannelKind.GROUP),
            settled("in_between", on="main", status=Status.MOVING, verified=False),
            settled("restless", on="aws", left_cluster="main", version=9, penalty=4_000, penalty_at_ms=now_ms),
            settled("forsen", on="aws", left_cluster="event", version=3),
        ]
    )
    await tables.store_history("forsen", ["main", "event", "aws"])
    await tables.execute(
        "INSERT INTO fleet_report VALUES"
        """ ('shard-1', 'my_bot', 23, 22, 3, 1, 0, 0, 0, now(), '{"my_bot": {"join": 1, "login": 0}}'),"""
        " ('shard-2', 'my_bot', 40, 40, 3, 0, 0, 2, 0, now() - interval '1 hour', '{}')"
    )
    await tables.execute(
        "INSERT INTO channel_freshness SELECT channel, version, now() - interval '3 minutes' FROM channel_state"
        " WHERE channel LIKE 'on\\_%%'",
    )
    await tables.execute(
        "WITH budget AS (INSERT INTO join_budget VALUES ('my_bot', 'join', now()))"
        " INSERT INTO join_lease (account, kind, holder, amount, granted_at)"
        " VALUES ('my_bot', 'join', 'shard-1', 6, now())"
    )
    await tables.execute("INSERT INTO fleet_brake VALUES (true, now(), 'anna', 'the platform misbehaves')")


def just_decided(change: ClusterChanged) -> ClusterChanged:
    return change.model_copy(update={"data": change.data.model_copy(update={"since": datetime.now(UTC)})})


async def keep(page: Any, name: str) -> None:
    if os.environ.get(KEEP):
        DOCS.mkdir(exist_ok=True)
        await page.screenshot(path=DOCS / f"{name}.png", full_page=True)


async def until(page: Any, selector: str, text: str) -> None:
    await page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)",
        arg=[selector, text],
        timeout=60_000,
    )


async def test_a_person_sees_the_fleet_and_moves_as_they_happen(
    browser: Any, api: RunningApi, tables: Tables, topics: Topics
) -> None:
    await fill(tables)
    await api.until_streaming()
    async with page_at(browser, api, DESKTOP) as page:
        await until(page, "#state", "live")
        await until(page, "#n-tracked", "23")
        await until(page, "#clusters", "aws\t14")
        await until(page, "#moving", "in_between")
        await until(page, "#flapping", "restless")
        await until(page, "#shards", "shard-2 (silent)")
        await until(page, "#held", "the platform misbehaves (anna)")
        await until(page, "#v-within_10_minutes", "19")
        await until(page, "#v-never", "3")
        await until(page, "#budgets", "my_bot\tJOINs\t0\t6\t1\t10 s")
        await page.wait_for_selector("#chart path")

        await topics.change(*(just_decided(one) for one in (moved("caedrel", "aws", 2), moved("xqc", "event", 5))))
        record = Record(Cause.MOVED, Outcome.DONE, Cluster("main"), Cluster("aws"), 1.0, 1.1, 1.25, 21.4, 1)
        report = handover_report(Channel("caedrel"), record, "shard-1", datetime.now(UTC))
        await topics.publisher.publish(HANDOVERS, "caedrel", report.to_record())

        await until(page, "#moves", "caedrel")
        await until(page, "#moves", " ms")
        await until(page, "#handovers", "caedrel\tmain → aws\tmoved\t0.25 s")
        await until(page, "#n-handovers", "1")
        await until(page, "#n-confirmed", "0.25 s")
        await until(page, "#moves", "xqc")
        await until(page, "#n-moves", "2")
        await keep(page, "live-page-light")


async def test_a_channel_is_found_by_keyboard_with_its_history(browser: Any, api: RunningApi, tables: Tables) -> None:
    await fill(tables)
    await api.until_streaming()
    async with page_at(browser, api, DESKTOP, scheme="dark") as page:
        await page.keyboard.press("/")
        await page.keyboard.type("#Forsen")
        await page.keyboard.press("Enter")
        await until(page, "#found", "forsen is on aws")
        assert await page.evaluate(CELLS) == [
            ["moved", "event", "aws"],
            ["moved", "main", "event"],
            ["first-seen", "–", "main"],
        ]
        await until(page, "#n-tracked", "23")
        await until(page, "#v-within_10_minutes", "19")
        await page.wait_for_selector("#chart path")
        await keep(page, "live-page-dark")


async def test_a_name_that_is_none_is_answered_in_words(browser: Any, api: RunningApi) -> None:
    await api.until_streaming()
    page = await browser.new_page()
    await page.goto(api.url)
    for typed, answer in (("<img src=x onerror=alert(1)>", "is not a channel"), ("nobody", "never tracked")):
        await page.fill("#name", typed)
        await page.press("#name", "Enter")
        await until(page, "#found", answer)
    await page.close()


async def test_it_fits_a_narrow_phone(browser: Any, api: RunningApi, tables: Tables) -> None:
    await fill(tables)
    await api.until_streaming()
    async with page_at(browser, api, PHONE, path="/#forsen") as page:
        await until(page, "#found", "forsen is on aws")
        await until(page, "#n-tracked", "23")
        await until(page, "#v-within_10_minutes", "19")
        await page.wait_for_selector("#chart path")
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        await keep(page, "live-page-phone")


async def test_it_works_with_as_many_channels_as_a_fleet_has(browser: Any, api: RunningApi, tables: Tables) -> None:
    await tables.execute(
        "INSERT INTO channel_state (partition, channel, seq, known_after, status, cluster, left_at_ms, verified,"
        " doubts, version, since_ms, kind, labels, wanting, penalty, penalty_at_ms, evidence)"
        " SELECT 0, 'channel_' || n, 1, 1, 'settled', CASE WHEN n %% 3 = 0 THEN 'main' ELSE 'aws' END, 0, true, 0,"
        " 1, 1456000000000, 'chat', '{}', '[]', 0, 0, '{}' FROM generate_series(1, %s) AS n",
        [MANY],
    )
    await api.until_streaming()
    async with page_at(browser, api, DESKTOP) as page:
        await until(page, "#n-tracked", "200,000")
        await until(page, "#clusters", "133,334")


async def test_the_page_allows_nothing_from_elsewhere(api: RunningApi) -> None:
    response = await api.client.get("/")

    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")
