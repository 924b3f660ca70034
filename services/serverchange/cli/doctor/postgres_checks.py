"""Examines PostgreSQL: reach, version, durability, migrations, its clock, and whether the tables are of this log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

import psycopg

from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.projection import LogPosition, load_positions
from serverchange.adapters.postgres.schema import migrations
from serverchange.adapters.postgres.server_facts import (
    ClockReading,
    ServerFacts,
    load_clock_reading,
    load_migration_numbers,
    load_server_facts,
)
from serverchange.adapters.settings import PostgresSettings
from serverchange.cli.doctor.findings import Finding, failed, ok, skipped, warning
from serverchange.cli.doctor.kafka_checks import LogFacts
from serverchange.tracker.channel_state import RULES_VERSION

STATEMENT_TIMEOUT_S: Final = 10.0

OLDEST: Final = 120_000
"""The queries say AS MATERIALIZED, which 12 brought."""

TESTED: Final = 180_000
"""The suite runs against PostgreSQL 18; older ones may work."""

SKEW_WARNING_S: Final = 1.0
"""A host that follows NTP is within a tenth of this; ages are shown in seconds."""

CLOCKS_ADVICE: Final = "run chrony or systemd-timesyncd on every host: no clock decides, but the ages shown are off"


async def check_database(settings: PostgresSettings, log: LogFacts | None) -> list[Finding]:
    """Return what is to say about the database; the tables are compared with `log`, None while Kafka is away."""
    try:
        connection = await connect(settings, application="serverchange-doctor", statement_timeout_s=STATEMENT_TIMEOUT_S)
    except psycopg.OperationalError as error:
        advice = (
            "start it, or set the secret SERVERCHANGE_POSTGRES_DSN; the role needs LOGIN and the database must exist"
        )
        return [failed("postgres", " ".join(str(error).split()), advice), *_not_asked("PostgreSQL does not answer")]
    except (psycopg.Error, ValueError):
        # The message of a string that cannot be parsed repeats it, and it may hold a password.
        advice = "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or libpq's key=value form"
        return [failed("postgres", "postgres.dsn is no connection string", advice), *_not_asked("no connection string")]
    async with connection:
        try:
            return await _examine(connection, log)
        except psycopg.Error as error:
            return [failed("postgres", f"it stopped answering: {error}", "look at the server's log; then ask again")]


def _not_asked(reason: str) -> Iterator[Finding]:
    yield from skipped(["migrations", "log", "clocks"], reason)


async def _examine(connection: AsyncConnection, log: LogFacts | None) -> list[Finding]:
    facts = await load_server_facts(connection)
    applied = await load_migration_numbers(connection) if facts.has_migrations else []
    known = [number for number, _, _ in migrations()]
    findings = [*judge_server(facts), *judge_migrations(applied, known, may_create=facts.may_create)]
    if log is not None:
        if known[0] in applied:
            findings += judge_log(await load_positions(connection), log)
        else:
            findings += skipped(["log"], "there are no tables yet")
    reading = await load_clock_reading(connection)
    newest_ahead_s = None
    if log is not None and log.newest_append_ms is not None:
        newest_ahead_s = log.newest_append_ms / 1000 - time.time()
    return [*findings, *judge_clocks(reading, newest_ahead_s)]


def judge_server(facts: ServerFacts) -> Iterator[Finding]:
    """Yield the verdict on version, role and durability."""
    if facts.version_number < OLDEST:
        yield failed("postgres", f"version {facts.version}", "upgrade to 18: the queries need at least 12")
    elif facts.version_number < TESTED:
        found = f"version {facts.version}: the suite runs against PostgreSQL 18"
        yield warning("postgres", found, "upgrade, or run the suite against yours")
    else:
        yield ok("postgres", f"version {facts.version}, {facts.connections_max} connections at most")
    if facts.standby:
        yield failed(
            "postgres", "it is a standby and takes no writes", "point SERVERCHANGE_POSTGRES_DSN at the primary"
        )
    if facts.encoding != "UTF8":
        advice = "dump, create the database with ENCODING 'UTF8', restore"
        yield failed("postgres", f"the database's encoding is {facts.encoding}", advice)
    if not (facts.fsync and facts.full_page_writes):
        yield failed(
            "postgres",
            "fsync or full_page_writes is off: a loss of power can corrupt the tables without a trace",
            "switch both on; after a crash without them: serverchange verify, and rebuild if a row differs",
        )
    if facts.synchronous_commit == "off":
        yield warning(
            "postgres",
            "synchronous_commit is off: after a crash the tables may be older than changes already published",
            "ALTER ROLE ... RESET synchronous_commit",
        )
    if not facts.data_checksums:
        yield warning("postgres", "no data checksums: a broken page is not noticed", "stop it, pg_checksums --enable")


def judge_migrations(applied: Sequence[int], known: Sequence[int], *, may_create: bool) -> Iterator[Finding]:
    """Yield the verdict on the tables: made, out of date, or of a newer release than this one."""
    newer = sorted(set(applied) - set(known))
    missing = sorted(set(known) - set(applied))
    if newer:
        found = f"the database has migration {newer[-1]}, this release knows {known[-1]}"
        yield failed("migrations", found, "upgrade this installation; migrations are never undone")
    elif missing and not may_create:
        found = f"{len(missing)} to apply, and the role may not make tables"
        yield failed("migrations", found, "GRANT CREATE ON SCHEMA public TO the role, then start the materializer")
    elif missing:
        found = f"{len(missing)} to apply: {', '.join(f'{number:04}' for number in missing)}"
        yield failed("migrations", found, "start the materializer: it applies them before it folds")
    else:
        yield ok("migrations", f"all {len(known)} are applied")


def judge_log(positions: Sequence[LogPosition], log: LogFacts) -> Iterator[Finding]:
    """Yield the verdict on whether the tables are the fold of this very log, and how far it is."""
    if not positions:
        yield ok("log", "nothing was folded yet")
        return
    others = sorted({one.topic_id for one in positions if one.position > 0 and one.topic_id != log.topic.topic_id})
    if others:
        found = f"the tables were folded from another topic {log.topic.name} (id {others[0]}, now {log.topic.topic_id})"
        yield failed("log", found, "restore the old topic, or take this one as the truth: serverchange rebuild")
        return
    rules = sorted({one.rules_version for one in positions})
    if rules != [RULES_VERSION]:
        found = f"the tables were made by rules {', '.join(map(str, rules))}, this release has {RULES_VERSION}"
        yield failed("log", found, "serverchange rebuild")
    yield from _judge_ends(positions, log)


def _judge_ends(positions: Sequence[LogPosition], log: LogFacts) -> Iterator[Finding]:
    behind = 0
    broken = False
    for one in positions:
        ends = log.ends.get(one.partition)
        if ends is None:
            continue
        behind += max(0, ends.end - one.position)
        place = f"{log.topic.name}/{one.partition}"
        if one.position > ends.end:
            broken = True
            found = f"{place} ends at {ends.end}, the tables are at {one.position}: records are gone"
            yield failed("log", found, "see docs/operations.md, The log is not the one that was folded")
        elif one.position < ends.low:
            broken = True
            found = f"{place} begins at {ends.low}, the tables are at {one.position}: records were deleted unread"
            yield failed("log", found, "see docs/operations.md, The log is not the one that was folded")
    if not broken:
        yield ok("log", f"the tables are {behind:,} records behind the log's end")


def judge_clocks(reading: ClockReading, newest_append_ahead_s: float | None) -> Iterator[Finding]:
    """Yield the verdict on the clocks of PostgreSQL and, as far as the log tells, of the brokers.

    `newest_append_ahead_s` is how far the newest append time is ahead of our clock. The brokers' clock is at least
    that late: one that goes slow cannot be told without a write.
    """
    skew_s = abs(reading.ahead_s)
    if skew_s - reading.uncertainty_s > SKEW_WARNING_S:
        side = "ahead of" if reading.ahead_s > 0 else "behind"
        yield warning("clocks", f"PostgreSQL's clock is {skew_s:.1f} s {side} this host's", CLOCKS_ADVICE)
    else:
        yield ok("clocks", f"PostgreSQL's is within {skew_s + reading.uncertainty_s:.3f} s of this host's")
    if newest_append_ahead_s is None:
        yield from skipped(["clocks"], "Kafka's is not known: no record of the log was seen")
    elif newest_append_ahead_s > SKEW_WARNING_S:
        found = f"a broker's clock is at least {newest_append_ahead_s:.1f} s ahead of this host's"
        yield warning("clocks", found, CLOCKS_ADVICE)
    else:
        yield ok("clocks", "no broker's is ahead of this host's, by the newest record of the log")
