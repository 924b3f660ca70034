# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""Commands for those who work on serverchange itself, in a checkout: benchmarks, generated pages and contracts."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from serverchange.cli.faults import Fault

SOURCE_DEPTH: Final = 3
"""This file is three folders below the checkout's root: services/serverchange/cli."""

docs_app = typer.Typer(help="The generated pages of docs/.", no_args_is_help=True)
schemas_app = typer.Typer(help="The generated contracts of schemas/generated/.", no_args_is_help=True)


def register(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to the application."""
    app.command(
        rich_help_panel=panel,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        epilog="Example: serverchange bench exposure --help",
    )(bench)
    app.command(rich_help_panel=panel, epilog="Example: serverchange settings | less")(settings)
    app.add_typer(docs_app, name="docs", rich_help_panel=panel)
    app.add_typer(schemas_app, name="schemas", rich_help_panel=panel)


def bench(
    context: typer.Context, name: Annotated[str, typer.Argument(help="A file of benchmarks/, without .py.")]
) -> None:
    """Run a benchmark of the checkout; further arguments go to it."""
    if name in {"-h", "--help"}:
        print(context.get_help())
        return
    folder = _checkout() / "benchmarks"
    known = sorted(found.stem for found in folder.glob("*.py") if "def main(" in found.read_text("utf-8"))
    if name not in known:
        raise Fault(f"there is no benchmark {name!r}; there are: {', '.join(known) or 'none'}")
    sys.path.insert(0, str(folder))  # benchmarks import one another
    raise typer.Exit(int(importlib.import_module(name).main(context.args)))


def settings() -> None:
    """Print every setting: variable, default, range, meaning."""
    from serverchange.cli.docs import settings_page

    print(settings_page())


@docs_app.command("write", epilog="Example: serverchange docs write")
def write() -> None:
    """Write the generated pages anew."""
    from serverchange.cli.docs import write_pages

    for path in write_pages(_checkout() / "docs"):
        print(path)


@docs_app.command("record", epilog="Example: serverchange docs record session curl")
def record(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Only these transcripts.")] = None,
) -> None:
    """Run the commands of the documents' transcripts and write what they print now; takes three minutes."""
    from serverchange.cli import transcripts

    for path in transcripts.record(_checkout(), frozenset(names or [])):
        print(path)


@schemas_app.command("write", epilog="Example: serverchange schemas write")
def write_contracts() -> None:
    """Write the JSON Schemas, the AsyncAPI and the OpenAPI document anew."""
    from serverchange.cli.schemas import write_schemas

    for path in write_schemas(_checkout() / "schemas" / "generated"):
        print(path)


def _checkout() -> Path:
    """Return the root of the checkout that this code runs from.

    Raises:
        Fault: it runs from an installed wheel, which has no benchmarks and no docs.
    """
    root = Path(__file__).resolve().parents[SOURCE_DEPTH]
    if not (root / "pyproject.toml").is_file() or not (root / "docs").is_dir():
        raise Fault("this command needs a checkout: git clone the repository, and run it there (make docs, make demo)")
    return root
