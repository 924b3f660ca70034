# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""Commands about the log and the tables made from it: `verify`, `rebuild`, `log accept-hole`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from serverchange.cli.faults import CheckFault, Fault
from serverchange.cli.output import Output, answering, note, print_fields, quiet_logs

if TYPE_CHECKING:
    from serverchange.adapters.settings import Settings
    from serverchange.materializer.rebuild import RebuildReport

PROGRESS_INTERVAL_S: Final = 2.0

log_app = typer.Typer(help="Tell the materializer what to make of a damaged log.", no_args_is_help=True)


def register(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to the application."""
    app.command(rich_help_panel=panel, epilog="Example: serverchange verify --json")(verify)
    app.command(rich_help_panel=panel, epilog="Example: serverchange rebuild --compare")(rebuild)
    app.add_typer(log_app, name="log", rich_help_panel=panel)


@answering
def verify(out: Output) -> None:
    """Prove that the tables are the fold of the log, and cluster-changes a snapshot of them. Exits with 1 if not."""
    settings = _load_settings()
    from serverchange.materializer.verify import run

    report = run(settings, progress=_Shown())
    told = report.as_json()
    out.answer(told, show=lambda: print_fields(told | {"faults": report.fault_count}))
    if not report.ok:
        raise CheckFault("\n".join([f"{report.fault_count} differences:", *report.faults]))


@answering
def rebuild(
    out: Output,
    compare: Annotated[
        bool, typer.Option("--compare", help="Only compare; leave the live tables as they are.")
    ] = False,
) -> None:
    """Fold the whole log again and put the result in the tables' place; subscribers are told what that alters.

    The materializer may run meanwhile. An interrupted rebuild goes on where it stopped.
    """
    settings = _load_settings()
    from serverchange.materializer.rebuild import run

    report = run(settings, swap=not compare, compare=compare, progress=_Shown())
    out.fields(to_json(report))
    if report.differences:
        raise CheckFault("the live tables are not what the log folds to. Replace them: serverchange rebuild")


def to_json(report: RebuildReport) -> dict[str, Any]:
    """Return the report as JSON."""
    return {
        "records": report.records,
        "seconds": round(report.seconds, 2),
        "differences": None
        if report.differences is None
        else [f"{one.table} {one.key}: {one.live} -> {one.rebuilt}" for one in report.differences],
        "swapped": report.swapped,
        "altered": report.altered,
        "generation": report.generation,
        "missing_before": {str(partition): offset for partition, offset in report.missing_before.items()},
    }


@log_app.command(
    "accept-hole", epilog="Example: serverchange log accept-hole --partition 3. First read what /readyz says."
)
@answering
def accept_hole(
    out: Output,
    partition: Annotated[int, typer.Option(min=0, help="Of channel-events; /readyz of the materializer names it.")],
) -> None:
    """Accept that records were deleted before they were folded: go on behind them, and note the loss for ever."""
    settings = _load_settings()
    from serverchange.materializer.holes import NoHoleError
    from serverchange.materializer.holes import accept_hole as accept

    try:
        hole = accept(settings, partition)
    except NoHoleError as error:
        raise Fault(str(error)) from error
    out.fields({"partition": partition, "first_offset": hole.first_offset, "next_offset": hole.next_offset})


def _load_settings() -> Settings:
    from serverchange.adapters.settings import load_settings
    from serverchange.cli.reach import check_kafka

    settings = load_settings()
    quiet_logs()
    check_kafka(settings.kafka)
    return settings


class _Shown:
    """Says every few seconds how far the fold is."""

    def __init__(self) -> None:
        self._said_at_s = time.monotonic()

    def __call__(self, folded: int, total: int) -> None:
        if time.monotonic() - self._said_at_s >= PROGRESS_INTERVAL_S:
            self._said_at_s = time.monotonic()
            note(f"{folded:,} of {total:,} records")
