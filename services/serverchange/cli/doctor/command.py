# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange doctor`: makes all checks, prints the findings, exits with 1 if one failed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import typer

from serverchange.cli.faults import CheckFault
from serverchange.cli.output import Output, answering, quiet_logs

if TYPE_CHECKING:
    from serverchange.cli.doctor.findings import Finding

OTHER_CHECKS: Final = ("kafka", "topics", "acls", "log", "postgres", "migrations", "clocks", "platform", "token")


def register(app: typer.Typer, *, panel: str) -> None:
    """Add the command to the application."""
    app.command(rich_help_panel=panel, epilog="Example: serverchange doctor --json")(doctor)


@answering
def doctor(out: Output) -> None:
    """Check settings, Kafka, PostgreSQL, platform and tokens, and say what to do. Exits with 1 if a check failed."""
    quiet_logs()
    findings = examine()
    failures = [one for one in findings if one.verdict == "failed"]
    told = [one.to_json() for one in findings]
    out.answer({"ok": not failures, "findings": told}, entries=told, show=lambda: _print(findings))
    if failures:
        names = ", ".join(dict.fromkeys(one.check for one in failures))
        raise CheckFault(f"{len(failures)} of {len(findings)} findings are failures: {names}")


def examine() -> list[Finding]:
    """Make all checks, in the order in which one rests on the other, and return what they found."""
    import asyncio

    from serverchange.adapters.settings import SettingsError, load_settings
    from serverchange.cli.doctor.findings import failed, skipped
    from serverchange.cli.doctor.kafka_checks import check_brokers
    from serverchange.cli.doctor.platform_checks import check_platform
    from serverchange.cli.doctor.postgres_checks import check_database
    from serverchange.cli.doctor.settings_checks import check_settings

    try:
        settings = load_settings()
    except SettingsError as error:
        advice = "correct it first: nothing else can be checked without settings"
        return [failed("settings", str(error), advice), *skipped(OTHER_CHECKS, "the settings do not load")]
    findings = [*check_settings(settings, os.environ)]
    kafka, log = check_brokers(settings.kafka)
    findings += kafka
    findings += asyncio.run(check_database(settings.postgres, log))
    if any("allowed_networks" in one.found for one in findings):
        return [*findings, *skipped(["platform", "token"], "platform.allowed_networks cannot be read")]
    return [*findings, *asyncio.run(check_platform(settings.platform, settings.reconnector))]


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(one.check) for one in findings)
    for one in findings:
        print(f"{one.verdict:<7}  {one.check:<{width}}  {one.found}")
        if one.advice:
            print(f"{'':<7}  {'':<{width}}  → {one.advice}")
    counts = Counter(one.verdict.value for one in findings)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
