"""`GET /overview`: what is known of how sure the answers are, of budgets and of handovers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.fleet import ShardReport, report_shard
from serverchange.adapters.postgres.freshness import Fresh, store_freshness
from serverchange.adapters.postgres.join_budget import grant_lease, report_lease
from serverchange.adapters.settings import Settings
from serverchange.events import Channel, Cluster
from serverchange.reconnector.handover_reports import handover_report
from serverchange.topics import HANDOVERS
from serverchange.tracker.budget import LIMITS, AccountClass, Kind
from serverchange.tracker.handover_words import Cause, Outcome, Record

from .conftest import RunningApi, Tables, Topics, moved, settled

VERIFIED_AGO = {"a": timedelta(minutes=1), "b": timedelta(minutes=30), "c": timedelta(hours=5), "d": timedelta(days=3)}
LIMIT = LIMITS[AccountClass.ORDINARY, Kind.JOIN]


def ended(channel: str, confirmed_s: float | None, at: datetime) -> tuple[str, bytes]:
    confirmed_at = None if confirmed_s is None else 1.0 + confirmed_s
    record = Record(Cause.MOVED, Outcome.DONE, Cluster("main"), Cluster("aws"), 1.0, 1.1, confirmed_at, 21.0, 1)
    return channel, handover_report(Channel(channel), record, "shard-1", at).to_record()


async def test_it_says_how_long_ago_lookups_agreed_and_who_used_how_much(settings: Settings, tables: Tables) -> None:
    overtaken = settled("e", on="aws", version=2)
    await tables.store(
        [
            *(settled(name, on="aws") for name in VERIFIED_AGO),
            overtaken,
            settled("gone", on="main"),
        ]
    )
    await tables.execute("UPDATE channel_state SET status = 'untracked' WHERE channel = 'gone'")
    now = datetime.now(UTC)
    async with await connect(settings.postgres, application="test") as connection:
        await store_freshness(connection, [Fresh(Channel(name), 1, now - ago) for name, ago in VERIFIED_AGO.items()])
        await store_freshness(connection, [Fresh(Channel("e"), 1, now)])
        spent = await grant_lease(connection, account="my_bot", kind=Kind.JOIN, limit=LIMIT, holder="shard-1", wanted=1)
        assert spent.lease_id is not None
        await report_lease(connection, lease_id=spent.lease_id, spent=1)
        await grant_lease(connection, account="my_bot", kind=Kind.JOIN, limit=LIMIT, holder="shard-2", wanted=1)
        waiting = {"my_bot": {Kind.JOIN: 7}}
        await report_shard(connection, ShardReport("shard-1", "my_bot", 23, 22, 3, 7, 0, 0, 0, waiting))

    async with RunningApi(settings) as api:
        answer = (await api.until("/overview", lambda response: response.json()["counted_at"] is not None)).json()

    counts: dict[str, Any] = answer["verified"]
    oldest = datetime.fromisoformat(counts.pop("oldest"))
    assert oldest == now - VERIFIED_AGO["d"]
    assert counts == {"within_10_minutes": 1, "within_an_hour": 1, "within_a_day": 1, "older": 1, "never": 1}
    assert answer["budgets"] == [
        {"account": "my_bot", "kind": "join", "window_s": LIMIT.window_s, "used": 1, "leased": 1, "waiting": 7}
    ]


async def test_it_shows_the_newest_handovers_and_the_last_minute_s_figures(
    api: RunningApi, topics: Topics, tables: Tables
) -> None:
    now = datetime.now(UTC)
    for channel, confirmed_s, at in (
        ("yesterday", 9.0, now - timedelta(hours=20)),
        ("a", 0.1, now),
        ("b", None, now),
        ("c", 0.3, now),
    ):
        await topics.publisher.publish(HANDOVERS, *ended(channel, confirmed_s, at))
    await topics.publisher.publish(HANDOVERS, "x", b"no report")
    await topics.publisher.publish(HANDOVERS, *ended("last", 0.2, now))

    answer = (await api.until("/overview", lambda response: len(response.json()["handovers"]) == 5)).json()

    shown = [(one["channel"], one["confirmed_s"], one["source"], one["target"]) for one in answer["handovers"]]
    assert shown[:2] == [("last", 0.2, "main", "aws"), ("c", 0.3, "main", "aws")]
    assert (answer["handovers_last_minute"], answer["handover_confirmed_median_s"]) == (4, 0.2)


async def test_a_recent_change_says_how_long_after_its_evidence_it_was_published(
    api: RunningApi, topics: Topics
) -> None:
    await api.until_streaming()
    await topics.change(moved("forsen", "aws", 2))  # decided in February 2016

    answer = (await api.until("/overview", lambda response: response.json()["recent"])).json()

    (change,) = answer["recent"]
    since = datetime.fromisoformat(change["since"])
    assert timedelta(milliseconds=change["published_after_ms"]) > datetime(2026, 1, 1, tzinfo=UTC) - since
