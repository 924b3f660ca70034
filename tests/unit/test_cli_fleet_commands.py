"""What `serverchange budget` and `serverchange fleet status` make of the ledger, reports and group members."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serverchange.adapters.postgres.fleet import Brake, DrainOrder, ShardReport
from serverchange.adapters.postgres.join_budget import LedgerBudget
from serverchange.adapters.settings import PlatformSettings
from serverchange.cli.brake import describe_fleet
from serverchange.cli.budget import answer_what_if, describe_budget, in_words
from serverchange.cli.faults import Fault
from serverchange.cli.fleet_size import Resizing, plan_resize, refuse_drain
from serverchange.tracker.budget import Kind, Lease, Limit

T0 = 1_000.0
LIMIT = Limit(20, 10.0)
PLATFORM = PlatformSettings()


def report(
    process: str, *, age_s: float = 1.0, waiting: dict[str, dict[Kind, int]] | None = None, wanted: int = 50
) -> ShardReport:
    return ShardReport(process, "bot", wanted, 40, 1, 0, 0, 3, 0, waiting or {}, age_s)


def test_two_hundred_thousand_channels_of_a_verified_account_are_answered_without_connecting() -> None:
    answer = answer_what_if("200000 channels, verified", 90, PLATFORM)
    assert (answer["links"], answer["join_s"], answer["paced"]) == (2223, 1000.0, "18.1 min")


def test_the_platforms_rates_are_settings() -> None:
    changed = PlatformSettings.model_validate({"join_rates": {"verified": 50}, "rate_window_s": 15})
    assert changed.limits("verified")[Kind.JOIN] == Limit(50, 15.0)
    assert changed.limits("ordinary")[Kind.JOIN] == Limit(20, 15.0), "what is left out stays as it is"
    assert answer_what_if("200 channels, verified", 90, changed)["join_s"] == 60.0


def test_accounts_join_side_by_side() -> None:
    one, many = (
        answer_what_if("2000 channels, ordinary", 90, PLATFORM),
        answer_what_if("2000 channels, ordinary, 20 accounts", 90, PLATFORM),
    )
    assert (one["paced"], many["paced"]) == ("18.1 min", "44 s")


@pytest.mark.parametrize(
    "question",
    [
        "",
        "many channels, verified",
        "0 channels, verified",
        "5 channels, famous",
        "5 channels, known, 9 accounts",
        "\u0665 channels, known",
    ],
)
def test_what_is_no_question_says_how_to_ask(question: str) -> None:
    with pytest.raises(Fault, match="200000 channels, verified"):
        answer_what_if(question, 90, PLATFORM)


@pytest.mark.parametrize(("seconds", "words"), [(44, "44 s"), (1089, "18.1 min"), (100_000, "27.8 h")])
def test_a_duration_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_budget_shows_who_used_who_leased_and_who_waits() -> None:
    ledger = LedgerBudget(
        "bot",
        Kind.JOIN,
        now=T0,
        leases=[
            ("b", Lease(2, T0 - 1)),
            ("a", Lease(2, T0 - 5, T0 - 4, spent=2)),
            ("a", Lease(2, T0 - 60, T0 - 50, spent=2)),
        ],
    )
    reports = [report("a", waiting={"bot": {Kind.JOIN: 30}}), report("x", waiting={"other": {Kind.JOIN: 5}})]
    row = describe_budget(ledger, LIMIT, reports, LIMIT.window_s)
    assert (row["limit"], row["used"], row["leased"], row["free"], row["waiting"]) == (20, 2, 2, 16, 30)
    assert row["done_in_s"] == 11
    assert row["holders"] == [{"holder": "a", "used": 2, "leased": 0}, {"holder": "b", "used": 0, "leased": 2}]
    assert row["waiters"] == [{"process": "a", "waiting": 30}]


def test_an_account_whose_class_is_not_known_here_shows_no_guess() -> None:
    row = describe_budget(LedgerBudget("stranger", Kind.LOGIN, now=T0), None, [], 10.0)
    assert (row["limit"], row["free"], row["done_in_s"], row["used"]) == (None, None, None, 0)


def test_a_fleet_shows_its_brake_its_holders_and_what_they_joined() -> None:
    brake = Brake(datetime(2026, 1, 1, tzinfo=UTC), "me", "nonsense")
    reports = [report("one"), report("gone", age_s=500), report("silent", age_s=500)]
    members = {"one": frozenset({0, 1}), "silent": frozenset({2})}
    told = describe_fleet(brake, reports, [], members, partitions=4)
    assert (told["held"], told["held_by"], told["held_since"]) == (True, "me", "2026-01-01T00:00:00+00:00")
    assert (told["wanted"], told["confirmed"], told["moves_held"], told["partitions_unowned"]) == (50, 40, 3, 1)
    assert [(shard["process"], shard["partitions"], shard["told_s_ago"]) for shard in told["shards"]] == [
        ("one", 2, 1),
        ("silent", 1, 500),
    ]


def test_without_kafka_a_fleet_is_shown_as_far_as_it_is_known() -> None:
    told = describe_fleet(None, [report("one")], [], None, partitions=4)
    assert (told["held"], told["partitions_unowned"]) == (False, None)
    assert told["shards"][0]["partitions"] is None


def test_a_shard_that_was_told_to_drain_is_drained_once_it_has_nothing() -> None:
    reports = [report("giving"), report("holding", wanted=0), report("idle", wanted=0), report("one")]
    drains = [
        DrainOrder(name, datetime(2026, 1, 1, tzinfo=UTC), "me") for name in ("ended", "giving", "holding", "idle")
    ]
    told = describe_fleet(None, reports, drains, {"holding": frozenset({1}), "one": frozenset({0})}, partitions=2)
    assert {shard["process"]: shard["state"] for shard in told["shards"]} == {
        "ended": "drained",
        "giving": "draining",
        "holding": "draining",
        "idle": "drained",
        "one": "running",
    }


def test_the_surplus_with_the_highest_names_is_drained_as_people_count() -> None:
    reports = [report(f"shard-{number}") for number in (10, 9, 2, 1)] + [report("gone", age_s=500)]
    assert plan_resize(2, reports, []) == Resizing(("shard-9", "shard-10"), (), ("shard-1", "shard-2"), 0)
    assert plan_resize(4, reports, []).drain == ()


def test_a_growing_fleet_takes_back_the_idle_first_and_says_how_many_must_be_started() -> None:
    reports = [report("a1"), report("a2"), report("a3", wanted=0)]
    ordered = ["a2", "a3", "a4"]  # still giving, idle, ended
    assert plan_resize(2, reports, ordered) == Resizing((), ("a3",), ("a1", "a3"), 0)
    assert plan_resize(3, reports, ordered) == Resizing((), ("a3", "a2"), ("a1", "a3"), 1)
    assert plan_resize(6, reports, ordered) == Resizing((), ("a3", "a2", "a4"), ("a1", "a3"), 4)


def test_a_drain_that_nobody_could_obey_or_take_over_is_refused() -> None:
    refuse_drain("a1", [report("a1"), report("a2")], [])
    refuse_drain("a1", [report("a1")], ["a1"])
    with pytest.raises(Fault, match="there are: a1, a2"):
        refuse_drain("a9", [report("a1"), report("a2")], [])
    for reports, ordered in (([report("a1")], []), ([report("a1"), report("a2", age_s=99)], [])):
        with pytest.raises(Fault, match="only shard"):
            refuse_drain("a1", reports, ordered)
    with pytest.raises(Fault, match="only shard"):
        refuse_drain("a1", [report("a1"), report("a2")], ["a2"])
