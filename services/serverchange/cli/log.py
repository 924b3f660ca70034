# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""Commands about the log and the tables made from it: `verify`, `rebuild`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import typer

from serverchange.cli.faults import CheckFault
from serverchange.cli.output import JsonOption, note, print_fields, print_json, quiet_logs

if TYPE_CHECKING:
    from serverchange.materializer.rebuild import RebuildReport

PROGRESS_INTERVAL_S: Final = 2.0


def register(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to the application."""
    app.command(rich_help_panel=panel, epilog="Example: serverchange verify --json")(verify)
    app.command(rich_help_panel=panel, epilog="Example: serverchange rebuild")(rebuild)


def verify(as_json: JsonOption = False) -> None:
    """Fold the whole log again beside the live tables and compare, row by row. Exits with 1 if any row differs."""
    report = _run(swap=False)
    print_json(to_json(report)) if as_json else print_fields(to_json(report))
    if report.differences:
        first = report.differences[0]
        raise CheckFault(
            f"the tables are not the fold of the log, e.g. {first.table} {first.key}: {first.live} is {first.rebuilt}"
            " in a fold. Replace them: serverchange rebuild"
        )


def rebuild(as_json: JsonOption = False) -> None:
    """Fold the whole log again and put the result in the tables' place; subscribers are told what that alters."""
    report = _run(swap=True)
    print_json(to_json(report)) if as_json else print_fields(to_json(report))


def to_json(report: RebuildReport) -> dict[str, Any]:
    """Return the report as JSON."""
    differences = report.differences or ()
    return {
        "records": report.records,
        "seconds": round(report.seconds, 2),
        "differences": [f"{one.table} {one.key}: {one.live} -> {one.rebuilt}" for one in differences],
        "swapped": report.swapped,
        "altered": report.altered,
        "generation": report.generation,
        "missing_before": {str(partition): offset for partition, offset in report.missing_before.items()},
    }


def _run(*, swap: bool) -> RebuildReport:
    from serverchange.adapters.settings import load_settings
    from serverchange.cli.reach import check_kafka
    from serverchange.materializer.rebuild import run

    settings = load_settings()
    quiet_logs()
    check_kafka(settings.kafka)
    return run(settings, swap=swap, compare=True, progress=_Shown())


class _Shown:
    """Says every few seconds how far the fold is."""

    def __init__(self) -> None:
        self._said_at_s = time.monotonic()

    def __call__(self, folded: int, total: int) -> None:
        if time.monotonic() - self._said_at_s >= PROGRESS_INTERVAL_S:
            self._said_at_s = time.monotonic()
            note(f"{folded:,} of {total:,} records folded")
