"""The brake and the shards' figures in PostgreSQL, the ledger as people read it, and the commands for both."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from serverchange.adapters.postgres import fleet
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.fleet import ShardReport
from serverchange.adapters.postgres.join_budget import grant_lease, load_ledger, report_lease
from serverchange.adapters.settings import PostgresSettings
from serverchange.cli import main
from serverchange.tracker.budget import Kind, Lease, Limit

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = Limit(100, 10)


async def test_a_brake_is_held_once_and_released_once(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        assert await fleet.load_brake(connection) is None
        first = await fleet.hold(connection, held_by="me", reason="nonsense", now=T0)
        again = await fleet.hold(connection, held_by="you", reason="too", now=T0 + timedelta(seconds=9))
        assert (first.held_by, first.held_at) == ("me", T0)
        assert again == first == await fleet.load_brake(connection)
        assert await fleet.resume(connection) == first
        assert await fleet.resume(connection) is None


async def test_a_shard_tells_its_figures_and_is_forgotten_after_a_day(postgres: PostgresSettings) -> None:
    told = ShardReport("one", "bot", 9, 8, 1, 2, 3, 4, 5)
    async with await connect(postgres, application="test") as connection:
        await fleet.report_shard(connection, ShardReport("one", "bot", 1, 1, 1, 0, 0, 0, 0), now=T0)
        await fleet.report_shard(connection, told, now=T0)
        (shown,) = await fleet.load_reports(connection, now=T0 + timedelta(seconds=31))
        assert (shown.wanted, shown.foreign_count, shown.age_s, shown.fresh) == (9, 5, 31, False)
        later = T0 + timedelta(days=1, seconds=1)
        await fleet.report_shard(connection, ShardReport("two", "bot", 1, 1, 1, 0, 0, 0, 0), now=later)
        assert [one.process for one in await fleet.load_reports(connection, now=later)] == ["two"]


async def test_a_shard_is_told_to_drain_once_until_the_order_is_taken_back(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        await fleet.order_drain(connection, ["two", "one"], ordered_by="me", now=T0)
        await fleet.order_drain(connection, ["one"], ordered_by="you", now=T0 + timedelta(seconds=9))
        assert await fleet.load_drains(connection) == [
            fleet.DrainOrder("one", T0, "me"),
            fleet.DrainOrder("two", T0, "me"),
        ]
        assert await fleet.is_drained(connection, "one")
        assert await fleet.cancel_drain(connection, ["one", "three"]) == {"one"}
        assert not await fleet.is_drained(connection, "one")


async def test_the_ledger_is_read_as_it_stands(postgres: PostgresSettings) -> None:
    async with await connect(postgres, application="test") as connection:
        for kind in Kind:
            grant = await grant_lease(connection, account="bot", kind=kind, limit=LIMIT, holder="one", wanted=2, now=T0)
        assert grant.lease_id is not None
        await report_lease(connection, lease_id=grant.lease_id, spent=1, now=T0 + timedelta(seconds=1))
        join, login = await load_ledger(connection, now=T0 + timedelta(seconds=2))
    at = T0.timestamp()
    assert (join.account, join.kind, join.now, join.leases) == ("bot", Kind.JOIN, at + 2, [("one", Lease(2, at))])
    assert (login.kind, login.leases) == (Kind.LOGIN, [("one", Lease(2, at, at + 1, spent=1))])


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["serverchange", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    return json.loads(capsys.readouterr().out)


def test_the_commands_hold_show_and_resume(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVERCHANGE_POSTGRES_DSN", postgres.dsn.get_secret_value())
    monkeypatch.setenv("SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    held = run(monkeypatch, capsys, "fleet", "hold", "--reason", "nonsense", "--by", "me")
    assert isinstance(held, dict)
    assert (held["held"], held["held_by"], held["reason"]) == (True, "me", "nonsense")
    shown = run(monkeypatch, capsys, "fleet", "status")
    assert isinstance(shown, dict)
    assert (shown["held_by"], shown["partitions_unowned"], shown["shards"]) == ("me", None, [])
    resumed = run(monkeypatch, capsys, "fleet", "resume")
    assert resumed == {"held": False, "held_since": None, "held_by": None, "reason": None, "was_held": True}
    assert run(monkeypatch, capsys, "budget") == []


def test_the_commands_drain_and_resize(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVERCHANGE_POSTGRES_DSN", postgres.dsn.get_secret_value())
    monkeypatch.setenv("SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    asyncio.run(_report(postgres, "one", "two", "three"))
    assert run(monkeypatch, capsys, "fleet", "drain", "two") == {"process": "two", "ordered": True}
    assert run(monkeypatch, capsys, "fleet", "resize", "1") == {
        "wanted": 1,
        "running": ["one"],
        "drained": ["three"],
        "undrained": [],
        "to_start": 0,
    }
    assert states(run(monkeypatch, capsys, "fleet", "status")) == {
        "one": "running",
        "three": "draining",
        "two": "draining",
    }
    asyncio.run(_report(postgres, "three", wanted=0))
    grown = run(monkeypatch, capsys, "fleet", "resize", "5")
    assert isinstance(grown, dict)
    assert (grown["running"], grown["undrained"], grown["to_start"]) == (["one", "three"], ["three", "two"], 3)
    assert set(states(run(monkeypatch, capsys, "fleet", "status")).values()) == {"running"}
    assert run(monkeypatch, capsys, "fleet", "drain", "two", "--undo") == {
        "process": "two",
        "ordered": False,
        "was_ordered": False,
    }


async def _report(postgres: PostgresSettings, *names: str, wanted: int = 5) -> None:
    async with await connect(postgres, application="test") as connection:
        for name in names:
            await fleet.report_shard(connection, ShardReport(name, "bot", wanted, wanted, 1, 0, 0, 0, 0))


def states(told: object) -> dict[str, str]:
    assert isinstance(told, dict)
    return {shard["process"]: shard["state"] for shard in told["shards"]}
