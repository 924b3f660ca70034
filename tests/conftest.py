"""Real Kafka and PostgreSQL for tests: one of each for the whole run, own topics and an own database for each test."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql

from serverchange.adapters.kafka.topics import apply_topics
from serverchange.adapters.postgres.schema import migrate, migrations
from serverchange.adapters.settings import KafkaSettings, PostgresSettings, ProcessSettings, Settings
from serverchange.embedded.shared_stack import SharedStack, shared_stack

# Workers share two cores with brokers and databases: how long an example takes says nothing about the rule.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-machine")

TEMPLATE = "serverchange_template"
TEMPLATE_LOCK = 0x7E57
PARTITIONS = 4


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a command that ran in the test's own process did to its logging.

    A handler that stays writes to the output which pytest has closed since: a traceback in some other test's output.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def stack() -> Iterator[SharedStack]:
    """One running Kafka and PostgreSQL, shared by all workers of this run."""
    with shared_stack("tests") as running:
        yield running


@pytest.fixture(scope="session")
def template_database(stack: SharedStack) -> str:
    """A database with all migrations applied, to clone; the first worker that comes makes it."""
    with psycopg.connect(stack.postgres.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [TEMPLATE_LOCK])
        name = f"{TEMPLATE}_{_migrations_digest()}"
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
        if known is None:
            draft = f"{name}_draft"
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(draft)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(draft)))
            with psycopg.connect(stack.postgres.dsn_for(draft), autocommit=True) as fresh:
                migrate(fresh)
            connection.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(draft), sql.Identifier(name))
            )
    return name


def _migrations_digest() -> str:
    return hashlib.sha256("".join(text for _, _, text in migrations()).encode()).hexdigest()[:12]


@pytest.fixture
def postgres(stack: SharedStack, template_database: str) -> Iterator[PostgresSettings]:
    """A database of this test's own, with the schema applied."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    with psycopg.connect(stack.postgres.dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template_database))
        )
        yield PostgresSettings.model_validate({"dsn": stack.postgres.dsn_for(name)})
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def kafka(stack: SharedStack) -> KafkaSettings:
    """Topics of this test's own, made as the contracts say."""
    settings = KafkaSettings(
        bootstrap_servers=stack.kafka.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:10]}.",
        partitions=PARTITIONS,
    )
    apply_topics(settings)
    return settings


@pytest.fixture
def settings(kafka: KafkaSettings, postgres: PostgresSettings, tmp_path: Path) -> Settings:
    """Settings of one process on this test's own topics and database."""
    return Settings(
        kafka=kafka,
        postgres=postgres,
        process=ProcessSettings(name="test", state_dir=tmp_path, log_format="json"),
    )
