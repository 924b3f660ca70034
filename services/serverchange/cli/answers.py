# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""Commands that ask the state API: `where`, `history`, `why`, `watch`, `status`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from serverchange.cli.channels import parse_names
from serverchange.cli.faults import CheckFault, Fault
from serverchange.cli.handovers import watch_handovers
from serverchange.cli.output import ApiOption, NameArgument, Output, answering, note, print_fields, print_rows
from serverchange.cli.where import where
from serverchange.cli.why import why

_COLOURS: Final = {"moved": "cyan", "first-seen": "green", "untracked": "yellow"}
HISTORY_COLUMNS: Final = ("version", "since", "what", "previous", "cluster", "evidence")


def register(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to the application."""
    for command, example in (
        (where, "serverchange where forsen caedrel, or serverchange where --stdin --output ndjson < names.txt"),
        (history, "serverchange history forsen --limit 5"),
        (why, "serverchange why forsen"),
        (watch, "serverchange watch --label partner, or serverchange watch handovers --cluster aws"),
        (status, "serverchange status --json"),
    ):
        app.command(rich_help_panel=panel, epilog=f"Example: {example}")(command)


@answering
def history(
    out: Output,
    name: NameArgument,
    limit: Annotated[int, typer.Option(min=1, help="Changes at most, the newest first.")] = 50,
    api: ApiOption = None,
) -> None:
    """Show every published change of a channel, the newest first."""
    from serverchange.cli.api import Api

    (channel,) = parse_names([name])
    changes = list(itertools.islice(Api(api).pages(f"/channels/{channel}/history", "changes"), limit))
    out.answer(
        changes,
        entries=changes,
        show=lambda: print_rows(HISTORY_COLUMNS, [[one[name] for name in HISTORY_COLUMNS] for one in changes]),
    )


class Watched(StrEnum):
    """What `watch` follows."""

    CHANGES = "changes"
    HANDOVERS = "handovers"


@answering
def watch(
    out: Output,
    what: Annotated[
        Watched, typer.Argument(help="What the tables decide, or what the shards report.")
    ] = Watched.CHANGES,
    channel: Annotated[str | None, typer.Option(help="Only this channel.")] = None,
    label: Annotated[str | None, typer.Option(help="Only channels with this label; of changes.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Only what goes from or to this cluster.")] = None,
    api: ApiOption = None,
) -> None:
    """Print changes (by the state API), or handovers that ended (from Kafka), as they happen, until Ctrl-C.

    A broken connection goes on where it broke.
    """
    only = parse_names([channel])[0] if channel is not None else None
    if what is Watched.HANDOVERS:
        if label is not None:
            raise Fault("a report of a handover has no labels: leave --label out")
        watch_handovers(out, channel=only, cluster=cluster)
    else:
        _watch_changes(out, api, channel=only, label=label, cluster=cluster)


def _watch_changes(
    out: Output, api: str | None, *, channel: str | None, label: str | None, cluster: str | None
) -> None:
    from serverchange.cli.api import Api

    for event, data in Api(api).stream("/changes", channel=channel, label=label, cluster=cluster):
        if event == "reset":
            note("changes were missed; the present state: serverchange channels list")
        elif event == "change":
            change = json.loads(data)
            out.line(change, describe(change))


def describe(change: Mapping[str, Any]) -> str:
    """Return a change (the event `cluster.changed`) in one line, with colours."""
    data = change["data"]
    way = f"{data.get('previous') or '-'} -> {typer.style(data.get('cluster') or '-', bold=True)}"
    what = typer.style(f"{data['what']:<10}", fg=_COLOURS.get(data["what"]))
    labels = f"  [{', '.join(data['labels'])}]" if data.get("labels") else ""
    return f"{data['since']}  {change['subject']:<25} {what} {way}  version {data['version']}{labels}"


@answering
def status(out: Output, api: ApiOption = None) -> None:
    """Say whether the API is ready, how fresh its tables are, and which clusters have servers."""
    from serverchange.cli.api import Api

    asked = Api(api)
    ready, missing = asked.readiness()
    clusters = asked.get("/clusters")
    answer = {
        "api": asked.url,
        "ready": ready,
        "missing": missing,
        "as_of": clusters["as_of"],
        "behind_records": clusters["behind_records"],
        "clusters": {one["cluster"]: len(one["servers"]) for one in clusters["clusters"]},
    }
    clusters_told = [f"{name} ({count} servers)" for name, count in answer["clusters"].items()]
    out.answer(answer, show=lambda: print_fields({**answer, "missing": list(missing), "clusters": clusters_told}))
    if not ready:
        raise CheckFault(f"the API is not ready: {'; '.join(f'{part}: {why}' for part, why in missing.items())}")
