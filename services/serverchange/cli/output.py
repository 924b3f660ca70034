# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""What commands print: JSON for machines (one line a value), tables and key-value lists for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import typer

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

NameArgument: TypeAlias = Annotated[str, typer.Argument(metavar="CHANNEL", help="With or without #.")]

ApiOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--api",
        envvar="SERVERCHANGE_CLIENT_API",
        help="Base URL of the state API; by default where the settings say that it listens.",
        show_default=False,
    ),
]


def print_json(value: Any) -> None:
    """Print one value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table; plain columns where the output is no terminal, so that awk can read it."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(_text(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    Console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        print(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


def note(message: str) -> None:
    """Say something that is no part of the answer."""
    print(message, file=sys.stderr, flush=True)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def quiet_logs() -> None:
    """Let the adapters' log lines that a person at a terminal does not need go nowhere; warnings are shown."""
    from serverchange.adapters.logs import configure_logs
    from serverchange.adapters.settings import ProcessSettings

    configure_logs(ProcessSettings(log_level="warning"), service="cli")
    # kafka-python tells of every attempt to connect while a broker restarts; what matters comes as an exception.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
