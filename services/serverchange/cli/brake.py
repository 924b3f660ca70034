# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange fleet`: the brake on moves, and what the shards do."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from serverchange.cli.output import Output, answering, note, print_fields, print_rows, quiet_logs

if TYPE_CHECKING:
    from serverchange.adapters.postgres.fleet import Brake, DrainOrder, ShardReport
    from serverchange.adapters.settings import Settings

app = typer.Typer(help="Hold the fleet's moves, drain shards, and see what they do.", no_args_is_help=True)

TEXT_MAX: Final = 200

ByOption = Annotated[str | None, typer.Option("--by", help="Who says so; by default your user name.")]

_COLUMNS: Final = (
    "process", "state", "account", "partitions", "wanted", "confirmed", "links", "joins_waiting", "moves_held",
    "foreign", "told_s_ago",
)  # fmt: skip


@app.command(epilog='Example: serverchange fleet hold --reason "the platform answers nonsense"')
@answering
def hold(
    out: Output,
    reason: Annotated[str, typer.Option(help="Why, for those who find it held.")] = "",
    by: ByOption = None,
) -> None:
    """Stop moves, never joins: shards keep the old side; first joins, RECONNECTs and lost links go on."""
    brake = asyncio.run(_hold(load(), user(by), reason[:TEXT_MAX]))
    out.fields(describe_brake(brake))


@app.command(epilog="Example: serverchange fleet resume")
@answering
def resume(out: Output) -> None:
    """Release the brake: shards start every move that was decided meanwhile."""
    was = asyncio.run(_resume(load()))
    out.fields(describe_brake(None) | {"was_held": was is not None})


@app.command(epilog="Example: serverchange fleet status --json")
@answering
def status(out: Output) -> None:
    """Show whether moves are held, since when and by whom; which shard holds how much, and what it has joined.

    The state of a shard that was told to drain is `draining` while it has channels or partitions, then `drained`.
    """
    settings = load()
    brake, reports, drains = asyncio.run(_load(settings))
    told = describe_fleet(brake, reports, drains, _members(settings), settings.kafka.partitions)
    out.answer(told, show=lambda: _print(told))


def _print(told: dict[str, Any]) -> None:
    print_fields({name: value for name, value in told.items() if name != "shards"})
    print_rows(_COLUMNS, [[shard[name] for name in _COLUMNS] for shard in told["shards"]])


def describe_brake(brake: Brake | None) -> dict[str, Any]:
    """Return the brake as the commands show it."""
    return {
        "held": brake is not None,
        "held_since": None if brake is None else brake.held_at.isoformat(timespec="seconds"),
        "held_by": None if brake is None else brake.held_by,
        "reason": None if brake is None else brake.reason,
    }


def describe_fleet(
    brake: Brake | None,
    reports: Sequence[ShardReport],
    drains: Sequence[DrainOrder],
    members: dict[str, frozenset[int]] | None,
    partitions: int,
) -> dict[str, Any]:
    """Return the whole answer. `members` is what Kafka's group says, None where Kafka did not answer.

    A shard that the group does not know, and that has told nothing for half a minute, is left out, unless it was told
    to drain.
    """
    held = members or {}
    ordered = {order.process for order in drains}
    known = {report.process: report for report in reports if report.fresh or report.process in held}
    names = sorted(known.keys() | held.keys() | ordered)
    shards = [
        {"process": name, "state": _state(known.get(name), held.get(name), ordered=name in ordered)}
        | _describe_shard(known.get(name), held.get(name))
        for name in names
    ]
    fresh = [report for report in known.values() if report.fresh]
    owned = len(frozenset().union(*held.values()))
    return describe_brake(brake) | {
        "moves_held": sum(report.moves_held for report in fresh),
        "wanted": sum(report.wanted for report in fresh),
        "confirmed": sum(report.confirmed for report in fresh),
        "partitions_unowned": None if members is None else partitions - owned,
        "shards": shards,
    }


def _state(report: ShardReport | None, held: frozenset[int] | None, *, ordered: bool) -> str:
    if not ordered:
        return "running"
    return "draining" if held or (report is not None and report.wanted) else "drained"


def _describe_shard(report: ShardReport | None, held: frozenset[int] | None) -> dict[str, Any]:
    return {
        "account": report and report.account,
        "partitions": None if held is None else len(held),
        "wanted": report and report.wanted,
        "confirmed": report and report.confirmed,
        "links": report and report.links,
        "joins_waiting": report and report.joins_waiting,
        "moves_held": report and report.moves_held,
        "foreign": report and report.foreign_count,
        "told_s_ago": report and round(report.age_s),
    }


def user(by: str | None) -> str:
    """Return who gives an order."""
    return (by or getpass.getuser())[:TEXT_MAX]


def load() -> Settings:
    """Return the settings of a command that talks to people: log lines below a warning go nowhere."""
    from serverchange.adapters.settings import load_settings

    quiet_logs()
    return load_settings()


async def _hold(settings: Settings, held_by: str, reason: str) -> Brake:
    from serverchange.adapters.postgres import fleet
    from serverchange.adapters.postgres.connections import connect

    async with await connect(settings.postgres, application="serverchange fleet") as connection:
        return await fleet.hold(connection, held_by=held_by, reason=reason)


async def _resume(settings: Settings) -> Brake | None:
    from serverchange.adapters.postgres import fleet
    from serverchange.adapters.postgres.connections import connect

    async with await connect(settings.postgres, application="serverchange fleet") as connection:
        return await fleet.resume(connection)


async def _load(settings: Settings) -> tuple[Brake | None, list[ShardReport], list[DrainOrder]]:
    from serverchange.adapters.postgres import fleet
    from serverchange.adapters.postgres.connections import connect

    async with await connect(settings.postgres, application="serverchange fleet") as connection:
        return (
            await fleet.load_brake(connection),
            await fleet.load_reports(connection),
            await fleet.load_drains(connection),
        )


def _members(settings: Settings) -> dict[str, frozenset[int]] | None:
    from kafka.errors import KafkaError

    from serverchange.adapters.kafka.group_assignments import member_partitions
    from serverchange.cli.reach import refusals
    from serverchange.topics import CLUSTER_CHANGES

    if reasons := refusals(settings.kafka):
        note(f"Kafka does not answer ({'; '.join(reasons)}): who holds which partition is not known")
        return None
    try:
        held = member_partitions(
            settings.kafka, group="reconnectors", topic=CLUSTER_CHANGES, client_id="serverchange-fleet"
        )
    except KafkaError as error:
        note(f"Kafka: {error}: who holds which partition is not known")
        return None
    return {name.removeprefix("reconnector-"): partitions for name, partitions in held.items()}
