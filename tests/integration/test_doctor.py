"""`serverchange doctor` against real Kafka, PostgreSQL and the simulated platform: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    ResourcePattern,
    ResourceType,
)

from serverchange.adapters.kafka.clients import make_admin, make_producer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import KafkaSettings, PostgresSettings
from serverchange.cli import main
from serverchange.cli.doctor.kafka_checks import check_brokers
from serverchange.embedded.kafka import SETTINGS_FILE, EmbeddedKafka
from serverchange.embedded.server import ServerCommand
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES

CANARY = "canary-7f3a9c"
TOKEN = "simulated-token-of-bot-one"
TIMEOUT_S = 90


@pytest.fixture(scope="module")
def platform() -> Iterator[str]:
    """A simulated platform on a thread of its own; its API's address."""
    started, stop, addresses = threading.Event(), threading.Event(), []

    async def serve() -> None:
        quiet = {"channels": 10, "script": False, "habits": False, "lines_per_second": 0}
        async with Simulator(SimulatorSettings.model_validate(quiet)) as simulator:
            addresses.append(simulator.addresses.api_url)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert started.wait(TIMEOUT_S)
    yield addresses[0]
    stop.set()
    thread.join()


Environment = dict[str, str]


@pytest.fixture
def environment(kafka: KafkaSettings, postgres: PostgresSettings, platform: str) -> Environment:
    """Settings with which everything is as it should be."""
    return {
        "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "SERVERCHANGE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
        "SERVERCHANGE_KAFKA_PARTITIONS": str(kafka.partitions),
        "SERVERCHANGE_POSTGRES_DSN": postgres.dsn.get_secret_value(),
        "SERVERCHANGE_PLATFORM_API_URL": platform,
        "SERVERCHANGE_PLATFORM_PLAINTEXT_TOKEN_HOSTS": '["127.0.0.1"]',
        "SERVERCHANGE_RECONNECTOR_ACCOUNT": "bot_one",
        "SERVERCHANGE_RECONNECTOR_TOKEN": TOKEN,
        "SERVERCHANGE_API_TOKENS": f"me={'ab' * 32}",
    }


class Report:
    """What one run of the command said."""

    def __init__(self, code: int, said: str, error: str) -> None:
        self.code, self.said, self.error = code, said, error
        assert "Traceback" not in error
        self.findings: list[dict[str, Any]] = json.loads(said)["findings"]

    def of(self, check: str, verdict: str) -> list[str]:
        """Return what was found by a check with a verdict."""
        return [one["found"] for one in self.findings if (one["check"], one["verdict"]) == (check, verdict)]

    def advice(self, check: str) -> str:
        """Return all advice of a check."""
        return "\n".join(one["advice"] for one in self.findings if one["check"] == check)


Doctor = Callable[[Environment], Report]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the command with nothing but these settings."""

    def run(environment: Environment) -> Report:
        for name in [name for name in os.environ if name.startswith("SERVERCHANGE_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["serverchange", "doctor", "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        code = ended.value.code
        return Report(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def test_a_sound_fleet_passes_with_0_and_names_what_a_single_broker_cannot_promise(
    doctor: Doctor, environment: Environment
) -> None:
    report = doctor(environment)

    assert [one for one in report.findings if one["verdict"] == "failed"] == []
    assert report.code == 0
    assert report.of("token", "ok") == ["the platform knows it as bot_one"]
    assert report.of("log", "ok") == ["nothing was folded yet"]
    assert len(report.of("platform", "ok")) == 2
    assert "no authorizer" in report.of("acls", "skipped")[0]
    assert "one broker" in report.of("topics", "warning")[0]


def test_every_failure_and_warning_comes_with_advice(doctor: Doctor, environment: Environment) -> None:
    nothing = {
        **environment,
        "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "SERVERCHANGE_POSTGRES_DSN": f"postgresql://me:{CANARY}@127.0.0.1:1/none",
        "SERVERCHANGE_PLATFORM_API_URL": "http://127.0.0.1:1",
    }

    report = doctor(nothing)

    assert report.code == 1
    assert {one["check"] for one in report.findings if one["verdict"] == "failed"} == {
        "kafka",
        "postgres",
        "platform",
        "token",
    }
    assert [one for one in report.findings if one["verdict"] in {"failed", "warning"} and not one["advice"]] == []
    assert report.of("topics", "skipped") == ["Kafka does not answer"]


def test_settings_that_do_not_load_are_a_finding(doctor: Doctor, environment: Environment) -> None:
    report = doctor({**environment, "SERVERCHANGE_KAFKA_PARTITIONS": "many"})

    assert report.code == 1
    assert "SERVERCHANGE_KAFKA_PARTITIONS" in report.of("settings", "failed")[0]
    assert report.of("postgres", "skipped") == ["the settings do not load"]


def test_a_misspelt_setting_is_named_with_the_one_that_was_meant(doctor: Doctor, environment: Environment) -> None:
    report = doctor({**environment, "SERVERCHANGE_KAFFKA_PARTITIONS": "4"})

    assert "SERVERCHANGE_KAFFKA_PARTITIONS" in report.of("settings", "warning")[0]
    assert "SERVERCHANGE_KAFKA_PARTITIONS" in report.advice("settings")


def test_a_secret_file_that_no_setting_reads_is_named(doctor: Doctor, environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "serverchange_postgres_dns").write_text(CANARY)

    report = doctor({**environment, "SERVERCHANGE_SECRETS_DIR": str(tmp_path)})

    assert "serverchange_postgres_dns" in report.of("settings", "warning")[0]
    assert "SERVERCHANGE_POSTGRES_DSN" in report.advice("settings")
    assert CANARY not in report.said + report.error


def test_missing_and_differing_topics_are_found(doctor: Doctor, environment: Environment, kafka: KafkaSettings) -> None:
    log, changes = topic_name(kafka, CHANNEL_EVENTS), topic_name(kafka, CLUSTER_CHANGES)
    admin = make_admin(kafka, client_id="test")
    try:
        config = {**dict(CHANNEL_EVENTS.config), "retention.ms": "1000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, log, configs=config)])
        admin.delete_topics([changes])
    finally:
        admin.close()

    report = doctor(environment)

    assert report.code == 1
    assert set(report.of("topics", "failed")) == {f"{log} differs in retention.ms", f"{changes} does not exist"}
    assert "serverchange topics apply" in report.advice("topics")


def test_another_number_of_partitions_is_found(doctor: Doctor, environment: Environment) -> None:
    report = doctor({**environment, "SERVERCHANGE_KAFKA_PARTITIONS": "5"})

    assert "topics copy" in report.of("topics", "failed")[0]


def test_a_database_without_tables_is_told_how_to_get_them(
    doctor: Doctor, environment: Environment, postgres: PostgresSettings
) -> None:
    with psycopg.connect(postgres.dsn.get_secret_value(), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")

    report = doctor(environment)

    assert report.code == 1
    assert "0001" in report.of("migrations", "failed")[0]
    assert "materializer" in report.advice("migrations")
    assert report.of("log", "skipped") == ["there are no tables yet"]


def test_tables_of_a_newer_release_are_found(
    doctor: Doctor, environment: Environment, postgres: PostgresSettings
) -> None:
    with psycopg.connect(postgres.dsn.get_secret_value(), autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migration (number, name) VALUES (9999, 'of tomorrow')")

    report = doctor(environment)

    assert "9999" in report.of("migrations", "failed")[0]
    assert "upgrade" in report.advice("migrations")


def test_tables_folded_from_another_log_are_found(
    doctor: Doctor, environment: Environment, postgres: PostgresSettings
) -> None:
    with psycopg.connect(postgres.dsn.get_secret_value(), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO log_position (partition, topic_id, position, appended_ms, rules_version, generation)"
            " VALUES (0, 'of-yesterday', 7, 0, 1, 1)"
        )

    report = doctor(environment)

    assert "of-yesterday" in report.of("log", "failed")[0]
    assert "rebuild" in report.advice("log")


def test_the_newest_record_tells_that_no_brokers_clock_is_ahead(
    doctor: Doctor, kafka: KafkaSettings, environment: Environment
) -> None:
    producer = make_producer(kafka, client_id="test")
    try:
        producer.send(topic_name(kafka, CHANNEL_EVENTS), key=b"forsen", value=b"{}").get(timeout=30)
    finally:
        producer.close()

    report = doctor(environment)

    assert report.of("clocks", "warning") == []
    assert len(report.of("clocks", "ok")) == 2


def test_a_token_of_somebody_else_and_a_refused_one_are_found(doctor: Doctor, environment: Environment) -> None:
    other = doctor({**environment, "SERVERCHANGE_RECONNECTOR_ACCOUNT": "bot_two"})
    refused = doctor({**environment, "SERVERCHANGE_RECONNECTOR_TOKEN": CANARY})

    assert other.of("token", "failed") == ["the token belongs to bot_one, not to bot_two"]
    assert refused.of("token", "failed") == ["the platform refuses the token of bot_one"]
    assert CANARY not in refused.said + refused.error
    broken = doctor({**environment, "SERVERCHANGE_RECONNECTOR_TOKEN": f"{CANARY}\nx"})
    assert broken.of("token", "failed") == ["the platform refuses the token of bot_one"]
    assert CANARY not in broken.said + broken.error


def test_a_token_is_not_sent_in_clear_to_a_host_that_no_setting_names(doctor: Doctor, environment: Environment) -> None:
    report = doctor({**environment, "SERVERCHANGE_PLATFORM_PLAINTEXT_TOKEN_HOSTS": "[]"})

    assert report.of("token", "failed")[0].startswith("not sent")


def test_no_secret_is_repeated_from_a_connection_string_that_cannot_be_read(
    doctor: Doctor, environment: Environment
) -> None:
    for dsn in (CANARY, f"host=127.0.0.1 port=1 passwort={CANARY}", f"postgresql://me:{CANARY}@127.0.0.1:1/none"):
        report = doctor({**environment, "SERVERCHANGE_POSTGRES_DSN": dsn})

        assert report.of("postgres", "failed")
        assert CANARY not in report.said + report.error


class AuthorizedKafka(EmbeddedKafka):
    """A broker with an authorizer; whoever is not named by a rule is a super user, for the test's own sake."""

    def _prepare(self, lock_fd: int) -> ServerCommand:
        command = super()._prepare(lock_fd)
        with (self._folder.path / SETTINGS_FILE).open("a") as settings:
            settings.write("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n")
            settings.write("super.users=User:ANONYMOUS\n")
        return command


@pytest.mark.slow
def test_with_an_authorizer_it_says_who_may_write_to_the_log(tmp_path: Path) -> None:
    broker = AuthorizedKafka(tmp_path)
    broker.start()
    try:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, partitions=1)
        apply_topics(settings)
        assert _acls(settings) == ["only super users may write to channel-events"]

        _allow(settings, "User:poller", CHANNEL_EVENTS.name, ACLResourcePatternType.LITERAL)
        assert _acls(settings) == ["may write to channel-events: User:poller, and super users"]

        _allow(settings, "User:*", "channel-", ACLResourcePatternType.PREFIXED)
        assert _acls(settings) == ["everybody (User:*) may write to channel-events"]
    finally:
        broker.stop()


def _acls(settings: KafkaSettings) -> list[str]:
    return [one.found for one in check_brokers(settings)[0] if one.check == "acls"]


def _allow(settings: KafkaSettings, principal: str, topic: str, pattern: ACLResourcePatternType) -> None:
    admin = make_admin(settings, client_id="test")
    try:
        resource = ResourcePattern(ResourceType.TOPIC, topic, pattern)
        admin.create_acls([ACL(principal, "*", ACLOperation.WRITE, ACLPermissionType.ALLOW, resource)])
    finally:
        admin.close()
