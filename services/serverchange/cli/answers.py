# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""Commands that ask the state API: `where`, `history`, `why`, `watch`, `status`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from serverchange.cli.faults import CheckFault, Fault
from serverchange.cli.output import ApiOption, JsonOption, NameArgument, note, print_fields, print_json, print_rows
from serverchange.cli.why import why

if TYPE_CHECKING:
    from serverchange.cli.api import Api

WHERE_COLUMNS: Final = ("channel", "cluster", "status", "since", "verified_at", "version", "labels")
HISTORY_COLUMNS: Final = ("version", "since", "what", "previous", "cluster", "evidence")


def register(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to the application."""
    for command, example in (
        (where, "serverchange where forsen caedrel --json"),
        (history, "serverchange history forsen --limit 5"),
        (why, "serverchange why forsen"),
        (watch, "serverchange watch --label partner"),
        (status, "serverchange status --json"),
    ):
        app.command(rich_help_panel=panel, epilog=f"Example: {example}")(command)


def where(
    names: Annotated[list[str], typer.Argument(metavar="CHANNEL...", help="With or without #.")],
    at: Annotated[str | None, typer.Option(help="As of then, e.g. 2016-02-14T12:00:00Z; for one channel.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Say where channels are, and how sure that is. Exits with 1 if one of them is not known."""
    channels = _parse_names(names)
    if at is not None:
        _where_at(channels, at, as_json=as_json, api=_open(api))
        return
    answer = _open(api).send("POST", "/channels:lookup", {"channels": channels})
    if as_json:
        print_json(answer)
    else:
        found = sorted(answer["channels"], key=lambda one: channels.index(one["channel"]))
        print_rows(WHERE_COLUMNS, [[one[column] for column in WHERE_COLUMNS] for one in found])
        _print_freshness(answer)
    if answer["unknown"]:
        unknown = answer["unknown"]
        raise CheckFault(
            f"nobody ever tracked {', '.join(unknown)}. Track them: serverchange channels add {' '.join(unknown)}"
        )


def _where_at(channels: Sequence[str], at: str, *, as_json: bool, api: Api) -> None:
    if len(channels) != 1:
        raise Fault("--at answers for one channel at a time")
    answer = api.get(f"/channels/{channels[0]}", at=at)
    print_json(answer) if as_json else print_fields(answer)


def history(
    name: NameArgument,
    limit: Annotated[int, typer.Option(min=1, help="Changes at most, the newest first.")] = 50,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Show every published change of a channel, the newest first."""
    (channel,) = _parse_names([name])
    changes = list(itertools.islice(_open(api).pages(f"/channels/{channel}/history", "changes"), limit))
    if as_json:
        print_json(changes)
    else:
        print_rows(HISTORY_COLUMNS, [[change[column] for column in HISTORY_COLUMNS] for change in changes])


def watch(
    channel: Annotated[str | None, typer.Option(help="Only this channel.")] = None,
    label: Annotated[str | None, typer.Option(help="Only channels with this label.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Only changes from or to this cluster.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
) -> None:
    """Print changes as they happen, until Ctrl-C; a broken connection goes on where it broke."""
    only = _parse_names([channel])[0] if channel is not None else None
    for event, data in _open(api).stream("/changes", channel=only, label=label, cluster=cluster):
        if event == "reset":
            note("changes were missed; the present state: serverchange channels list")
        elif event == "change":
            change = json.loads(data)
            print_json(change) if as_json else print(describe(change), flush=True)


def describe(change: Mapping[str, Any]) -> str:
    """Return a change (the event `cluster.changed`) in one line."""
    data = change["data"]
    way = f"{data.get('previous') or '-'} -> {data.get('cluster') or '-'}"
    labels = f"  [{', '.join(data['labels'])}]" if data.get("labels") else ""
    return f"{data['since']}  {change['subject']:<25} {data['what']:<10} {way}  version {data['version']}{labels}"


def status(as_json: JsonOption = False, api: ApiOption = None) -> None:
    """Say whether the API is ready, how fresh its tables are, and which clusters have servers."""
    asked = _open(api)
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
    if as_json:
        print_json(answer)
    else:
        clusters_told = [f"{name} ({count} servers)" for name, count in answer["clusters"].items()]
        print_fields({**answer, "missing": list(missing), "clusters": clusters_told})
    if not ready:
        raise CheckFault(f"the API is not ready: {'; '.join(f'{part}: {why}' for part, why in missing.items())}")


def _print_freshness(answer: Mapping[str, Any]) -> None:
    behind = answer["behind_records"]
    lag = "Kafka is away" if behind is None else f"{behind} records behind"
    note(f"as of {answer['as_of'] or 'never yet'}, {lag}")


def _open(url: str | None) -> Api:
    from serverchange.cli.api import Api

    return Api(url)


def _parse_names(names: Sequence[str]) -> list[str]:
    from serverchange.cli.channels import parse_names

    return [str(channel) for channel in parse_names(names)]
