"""Applies the migrations: numbered files, forward only, under an advisory lock, each in one transaction."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final, LiteralString

import psycopg
from psycopg.rows import TupleRow

from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger

_log = get_logger("schema")

_LOCK_KEY: Final = 0x5EC4A  # any fixed number: two processes that start at once must not both migrate
_FILE: Final = re.compile(r"^(?P<number>\d{4})_[a-z0-9_]+\.sql$")


class SchemaError(Exception):
    """The database was made by a newer release; upgrade this process."""


def migrations() -> list[tuple[int, str, LiteralString]]:
    """Return (number, file name, SQL) of all migrations in order."""
    found = []
    for entry in files("serverchange.adapters.postgres.migrations").iterdir():
        match = _FILE.match(entry.name)
        if match:
            found.append((int(match["number"]), entry.name, entry.read_text("utf-8")))
    return sorted(found)


def migrate(connection: psycopg.Connection[TupleRow]) -> list[str]:
    """Bring the schema up to date and return the names of the migrations applied; safe to call from many at once.

    Raises:
        SchemaError: the database knows migrations that this release does not.
    """
    applied_now = []
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '60s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK_KEY])
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration"
            " (number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row[0] for row in connection.execute("SELECT number FROM schema_migration").fetchall()}
        known = migrations()
        if unknown := done - {number for number, _, _ in known}:
            raise SchemaError(f"the database has migration {max(unknown)}, which this release does not know: upgrade")
        for number, name, sql in known:
            if number not in done:
                connection.execute(sql)
                connection.execute("INSERT INTO schema_migration (number, name) VALUES (%s, %s)", [number, name])
                applied_now.append(name)
    for name in applied_now:
        _log.info(LogEvent.MIGRATION_APPLIED, migration=name)
    return applied_now
