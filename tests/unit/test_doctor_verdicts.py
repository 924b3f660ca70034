"""What the doctor makes of facts that no test machine has: old versions, lost copies, wrong clocks."""

from __future__ import annotations

import dataclasses

import pytest

from serverchange.adapters.kafka.log_identity import Ends, TopicIdentity
from serverchange.adapters.platform_api import NoInformation, Reason
from serverchange.adapters.postgres.projection import LogPosition
from serverchange.adapters.postgres.server_facts import ClockReading, ServerFacts
from serverchange.adapters.settings import Settings
from serverchange.cli.doctor.findings import Finding, Verdict
from serverchange.cli.doctor.kafka_checks import LogFacts, judge_access, judge_copies, judge_version
from serverchange.cli.doctor.platform_checks import judge_token
from serverchange.cli.doctor.postgres_checks import judge_clocks, judge_log, judge_migrations, judge_server
from serverchange.cli.doctor.settings_checks import check_settings
from serverchange.platform import TokenAnswer
from serverchange.tracker.channel_state import RULES_VERSION

SOUND = ServerFacts(180_001, "18.1", False, "UTF8", True, True, "on", True, 100, True, True)
LOG = LogFacts(TopicIdentity("channel-events", "this", 2), {0: Ends(0, 100), 1: Ends(50, 60)}, None)


def verdicts(findings: object) -> list[tuple[Verdict, str]]:
    return [(one.verdict, one.found) for one in list(findings)]  # type: ignore[call-overload]


def only(findings: object) -> Finding:
    (one,) = list(findings)  # type: ignore[call-overload]
    assert isinstance(one, Finding)
    assert one.advice or one.verdict in {Verdict.OK, Verdict.SKIPPED}
    return one


@pytest.mark.parametrize(
    ("version", "verdict"), [((2, 7), Verdict.FAILED), ((3, 9), Verdict.WARNING), ((4, 3), Verdict.OK)]
)
def test_a_broker_without_topic_ids_is_too_old_and_one_before_4_is_untested(
    version: tuple[int, ...], verdict: Verdict
) -> None:
    assert only(judge_version(version, 1)).verdict is verdict


def topic(*, leader: int = 1, replicas: int = 3, in_sync: int = 3) -> dict[str, object]:
    partition = {"partition_index": 4, "leader_id": leader, "replica_nodes": [*range(replicas)]}
    return {"name": "channel-events", "partitions": [{**partition, "isr_nodes": [*range(in_sync)]}]}


def test_three_copies_in_sync_need_nothing() -> None:
    assert verdicts(judge_copies([topic()], brokers=3, wanted=3)) == []


def test_a_partition_without_a_leader_is_a_failure() -> None:
    found = only(judge_copies([topic(leader=-1)], brokers=3, wanted=3))
    assert (found.verdict, found.found) == (Verdict.FAILED, "channel-events: no leader for partition 4")


def test_a_copy_that_lags_is_a_warning() -> None:
    assert only(judge_copies([topic(in_sync=2)], brokers=3, wanted=3)).verdict is Verdict.WARNING


def test_fewer_copies_than_the_settings_say_is_a_failure() -> None:
    found = only(judge_copies([topic(replicas=2, in_sync=2)], brokers=3, wanted=3))
    assert (found.verdict, found.found) == (Verdict.FAILED, "a partition has 2 copies, the settings say 3")


def test_an_account_that_may_not_read_the_log_is_told_so() -> None:
    assert "READ, WRITE" in only(judge_access("channel-events", ["DESCRIBE"])).found
    assert list(judge_access("channel-events", None)) == []


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        ({"version_number": 110_000, "version": "11.2"}, Verdict.FAILED, "11.2"),
        ({"version_number": 150_000, "version": "15.0"}, Verdict.WARNING, "15.0"),
        ({"standby": True}, Verdict.FAILED, "standby"),
        ({"encoding": "SQL_ASCII"}, Verdict.FAILED, "SQL_ASCII"),
        ({"fsync": False}, Verdict.FAILED, "fsync"),
        ({"full_page_writes": False}, Verdict.FAILED, "full_page_writes"),
        ({"synchronous_commit": "off"}, Verdict.WARNING, "synchronous_commit"),
        ({"data_checksums": False}, Verdict.WARNING, "checksums"),
    ],
)
def test_a_server_that_would_lose_or_refuse_something_is_found(
    change: dict[str, object], verdict: Verdict, said: str
) -> None:
    findings = [one for one in judge_server(dataclasses.replace(SOUND, **change)) if said in one.found]  # type: ignore[arg-type]
    assert only(findings).verdict is verdict


def test_a_sound_server_needs_nothing() -> None:
    assert only(judge_server(SOUND)).verdict is Verdict.OK


def test_missing_migrations_are_the_materializers_work_unless_the_role_may_not() -> None:
    assert "materializer" in only(judge_migrations([1], [1, 2], may_create=True)).advice
    assert "GRANT CREATE" in only(judge_migrations([1], [1, 2], may_create=False)).advice


def position(partition: int, at: int, *, topic_id: str = "this", rules: int = RULES_VERSION) -> LogPosition:
    return LogPosition(partition, topic_id, at, None, None, 0, rules, 1, 0, None)


def test_tables_of_this_log_say_how_far_behind_they_are() -> None:
    found = only(judge_log([position(0, 90), position(1, 55)], LOG))
    assert (found.verdict, found.found) == (Verdict.OK, "the tables are 15 records behind the log's end")


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ([position(0, 101)], "records are gone"),
        ([position(1, 49)], "deleted unread"),
        ([position(0, 5, topic_id="other")], "another topic"),
    ],
)
def test_another_a_truncated_and_an_emptied_log_are_failures(positions: list[LogPosition], said: str) -> None:
    found = only(judge_log(positions, LOG))
    assert found.verdict is Verdict.FAILED
    assert said in found.found


def test_tables_of_other_rules_ask_for_a_rebuild() -> None:
    findings = list(judge_log([position(0, 90, rules=RULES_VERSION + 1)], LOG))
    assert "serverchange rebuild" in [one.advice for one in findings]


def test_a_topic_made_anew_before_anything_was_folded_is_no_other_log() -> None:
    assert only(judge_log([position(0, 0, topic_id="other")], LOG)).verdict is Verdict.OK


def test_a_skew_counts_only_beyond_what_the_round_trip_leaves_open() -> None:
    sure, unsure = ClockReading(-3.0, 0.1), ClockReading(3.0, 2.5)
    assert verdicts(judge_clocks(sure, 0.0))[0] == (Verdict.WARNING, "PostgreSQL's clock is 3.0 s behind this host's")
    assert verdicts(judge_clocks(unsure, 0.0))[0][0] is Verdict.OK


def test_a_record_appended_in_the_future_tells_of_a_brokers_clock() -> None:
    assert "at least 60.0 s ahead" in verdicts(judge_clocks(ClockReading(0.0, 0.0), 60.0))[1][1]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (TokenAnswer(login="bot", expires_in=5_000_000), Verdict.OK),
        (TokenAnswer(login="bot", expires_in=0), Verdict.OK),
        (TokenAnswer(login="bot", expires_in=1_800), Verdict.WARNING),
        (TokenAnswer(login="other"), Verdict.FAILED),
        (NoInformation(Reason.UNAUTHORIZED, "status 401"), Verdict.FAILED),
        (NoInformation(Reason.SERVER_ERROR, "status 503"), Verdict.FAILED),
    ],
)
def test_a_token_is_good_only_where_the_platform_names_its_account(
    answer: TokenAnswer | NoInformation, verdict: Verdict
) -> None:
    assert only([judge_token(answer, account="bot")]).verdict is verdict


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kafka": {"security_protocol": "SASL_SSL"}}, "mechanism, name or password"),
        ({"platform": {"allowed_networks": ["10.0.0.1/8"]}}, "allowed_networks"),
        ({"platform": {"seeds": {"aws": ["evil.example:6697"]}}}, "evil.example"),
        ({"api": {"tokens": "me=short"}}, "entry 1"),
        ({"reconnector": {"account": "bot"}}, "no token"),
        ({"reconnector": {"token": "secret"}}, "no account"),
    ],
)
def test_settings_that_contradict_themselves_are_failures(changes: dict[str, object], said: str) -> None:
    findings = [one for one in check_settings(Settings.model_validate(changes), {}) if one.verdict is Verdict.FAILED]
    assert said in only(findings).found
