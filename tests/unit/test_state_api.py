"""Small rules of the state API, without Kafka or Postgres."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from serverchange.adapters.postgres.state import Count, Progress
from serverchange.adapters.settings import SettingsError
from serverchange.client.change_log import why_lost
from serverchange.state_api.app import openapi_document
from serverchange.state_api.freshness import Fresh, next_fresh
from serverchange.state_api.guard import CLIENTS_MAX, RequestRate
from serverchange.state_api.log_watch import LogEnds
from serverchange.state_api.overview import summarise, thinned
from serverchange.state_api.page_routes import page
from serverchange.state_api.tokens import parse_tokens
from serverchange.views import ChangePosition, ChannelAnswer, ChannelsPage, LookupAnswer, OverviewSample

NOW = datetime(2016, 2, 14, 12, tzinfo=UTC)


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def test_a_token_is_known_by_its_hash_and_names_its_service() -> None:
    tokens = parse_tokens(f"my-bot={sha256('a')}, my-bot={sha256('b')} other={sha256('c')}")

    assert [tokens.service_of(token) for token in ("a", "b", "c", "d", "", sha256("a"))] == [
        "my-bot",
        "my-bot",
        "other",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("text", ["my-bot", "my-bot=secret", f"My Bot={'0' * 64}", f"x={'0' * 63}", f"={'0' * 64}"])
def test_a_wrong_token_setting_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_tokens(text)

    assert "SERVERCHANGE_API_TOKENS" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_third_token_of_one_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="more than 2"):
        parse_tokens(",".join(f"my-bot={sha256(str(number))}" for number in range(3)))


def ends(*events: int) -> LogEnds:
    return LogEnds(NOW, 0.0, dict(enumerate(events)), {}, "", {})


def test_tables_at_the_logs_end_are_fresh_as_of_the_question() -> None:
    assert next_fresh(Fresh(), Progress({0: 5, 1: 7}, None), ends(5, 7)) == Fresh(NOW, 0)


def test_tables_behind_say_by_how_much_and_keep_the_last_good_moment() -> None:
    before = Fresh(NOW - timedelta(minutes=1), 0)

    assert next_fresh(before, Progress({0: 5}, None), ends(5, 7)) == Fresh(before.as_of, 7)


def test_with_kafka_away_the_materializers_word_counts_if_newer() -> None:
    before = Fresh(NOW, 0)

    assert next_fresh(before, Progress({0: 5}, NOW + timedelta(seconds=1)), None) == Fresh(
        NOW + timedelta(seconds=1), None
    )
    assert next_fresh(before, Progress({0: 5}, None), None) == Fresh(NOW, None)


def test_a_client_may_burst_and_then_keeps_to_its_rate() -> None:
    now_s = 0.0
    rate = RequestRate(10, monotonic=lambda: now_s)
    assert [rate.wait_s("a") for _ in range(20)] == [0.0] * 20
    assert rate.wait_s("a") > 0
    assert rate.wait_s("b") == 0

    now_s = 0.1
    assert rate.wait_s("a") == 0
    assert rate.wait_s("a") == pytest.approx(0.1)


def test_the_addresses_kept_are_bounded() -> None:
    rate = RequestRate(1, monotonic=lambda: 0.0)
    for number in range(CLIENTS_MAX + 10):
        rate.wait_s(str(number))

    assert len(rate._buckets) == CLIENTS_MAX


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        (ChangePosition("t", (5, 5)), None),
        (ChangePosition("t", (9, 9)), None),
        (ChangePosition("u", (5, 5)), "another topic"),
        (ChangePosition("t", (5,)), "another topic"),
        (ChangePosition("t", (5, 10)), "past the end"),
        (ChangePosition("t", (5, 2)), "29 days"),
    ],
)
def test_a_place_is_lost_where_going_on_would_lose_something(position: ChangePosition, reason: str | None) -> None:
    found = why_lost(position, "t", ends=(9, 9), resumable=(3, 3))

    assert (found is None) if reason is None else (reason in (found or ""))


def test_counts_are_summed_by_cluster_the_largest_first() -> None:
    counted = summarise(
        [
            Count("main", "settled", 5, 1, 0),
            Count("aws", "settled", 9, 2, 1),
            Count("main", "moving", 2, 2, 0),
            Count("", "unknown", 4, 4, 0),
            Count("main", "untracked", 7, 7, 0),
        ],
        NOW,
    )

    assert [(one.cluster, one.channels, one.moving, one.unverified) for one in counted.clusters] == [
        ("aws", 9, 0, 2),
        ("main", 7, 2, 3),
    ]
    assert (counted.unknown, counted.untracked) == (4, 7)


def test_old_samples_are_thinned_out_and_the_first_and_newest_stay() -> None:
    samples = [OverviewSample(at=NOW + timedelta(seconds=number), channels={}) for number in range(100)]

    kept = thinned(samples)

    assert len(kept) == 75
    assert (kept[0], kept[-1]) == (samples[0], samples[-1])
    assert kept[25:] == samples[50:]


def test_the_pages_policy_names_its_own_script_and_style() -> None:
    text, policy = page()

    assert text.count("<script>") == policy.partition("script-src ")[2].partition(";")[0].count("sha256-") == 1
    assert text.count("<style>") == policy.partition("style-src ")[2].partition(";")[0].count("sha256-") == 1


@pytest.mark.parametrize("model", [ChannelAnswer, LookupAnswer, ChannelsPage])
def test_the_documents_examples_are_what_they_show(model: type[BaseModel]) -> None:
    (example,) = model.model_json_schema()["examples"]

    assert model.model_validate(example).model_dump(mode="json").keys() == example.keys()


def test_every_route_of_the_document_says_what_it_is_for() -> None:
    for path, routes in openapi_document()["paths"].items():
        for method, route in routes.items():
            assert route["summary"], (method, path)
            assert route["description"], (method, path)
