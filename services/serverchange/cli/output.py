# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""What commands print: JSON for machines (one line a value), tables and key-value lists for people.

A command that answers is decorated with `answering`: it gets the options `--output` and `--json`, and what was chosen
as an `Output`, which alone decides in what form an answer is printed.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Concatenate, Final, ParamSpec, TypeAlias

import typer

from serverchange.cli.faults import Fault

TABLE_ROWS_MAX: Final = 1_000
"""Rows of one table on a terminal: a longer list goes on in a further table, so that it is shown while it comes."""

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


class Form(StrEnum):
    """In what form an answer is printed."""

    TABLE = "table"
    """For people; tab-separated columns where the output is no terminal."""
    JSON = "json"
    """The answer as one value in one line; a stream, which has no end to wait for, as one value a line."""
    NDJSON = "ndjson"
    """The answer's entries, one a line."""


@dataclass(frozen=True, slots=True)
class Output:
    """Prints one command's answer in the form that was asked for."""

    form: Form = Form.TABLE

    def answer(self, value: Any, *, entries: Iterable[Any] | None = None, show: Callable[[], None]) -> None:
        """Print `value`: for people by `show`, as NDJSON by its `entries`, or as it is where it has none."""
        match self.form:
            case Form.TABLE:
                show()
            case Form.JSON:
                print_json(value)
            case Form.NDJSON:
                for entry in [value] if entries is None else entries:
                    print_json(entry)

    def fields(self, value: Mapping[str, Any]) -> None:
        """Print an answer that is one object."""
        self.answer(value, show=lambda: print_fields(value))

    def line(self, entry: Any, text: str) -> None:
        """Print one entry of a stream at once; people see `text`, on a terminal with its colours."""
        if self.form is Form.TABLE:
            typer.echo(text, color=False if os.environ.get("NO_COLOR") else None)
        else:
            print_json(entry)

    def rows(self, columns: Sequence[str], entries: Iterable[Mapping[str, Any]]) -> None:
        """Print a stream of entries as they come; people see these columns of them."""
        if self.form is Form.TABLE:
            print_rows(columns, ([entry[column] for column in columns] for entry in entries))
        else:
            for entry in entries:
                print_json(entry)


_Parameters = ParamSpec("_Parameters")


def answering(command: Callable[Concatenate[Output, _Parameters], None]) -> Callable[..., None]:
    """Give a command the options `--output` and `--json`, and in their stead its first argument, an `Output`."""

    @functools.wraps(command)
    def run(*args: Any, output: Form | None, as_json: bool, **given: Any) -> None:
        if as_json and output not in {None, Form.JSON}:
            raise Fault(f"--json is --output json, not --output {output}: give one of them")
        command(Output(Form.JSON if as_json else output or Form.TABLE), *args, **given)

    # Typer reads the signature, not the arguments: it sees the command's own, and our two options behind them.
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *_OPTIONS)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_OPTIONS: Final = (
    _option(
        "output",
        Annotated[
            Form | None,
            typer.Option("--output", help="A table (default), one JSON value, or one a line.", show_default=False),
        ],
        None,
    ),
    _option("as_json", Annotated[bool, typer.Option("--json", help="Short for --output json.")], False),
)


def print_json(value: Any) -> None:
    """Print one value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as its rows come; plain columns where the output is no terminal, so that awk can read it."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(_text(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    left = iter(rows)
    portion = list(itertools.islice(left, TABLE_ROWS_MAX))
    while True:
        table = Table(*columns)
        for row in portion:
            table.add_row(*(_text(cell) for cell in row))
        Console().print(table)
        if not (portion := list(itertools.islice(left, TABLE_ROWS_MAX))):
            return


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
