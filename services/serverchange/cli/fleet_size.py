# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange fleet drain` and `fleet resize`: which shards may have channels.

An order is a row in PostgreSQL that the shard reads every second. No process is started or ended from here: a drained
shard ends by itself, and whoever runs the processes starts more.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverchange.cli.brake import ByOption, load, user
from serverchange.cli.faults import Fault
from serverchange.cli.output import Output, answering, note

if TYPE_CHECKING:
    from serverchange.adapters.postgres.connections import AsyncConnection
    from serverchange.adapters.postgres.fleet import ShardReport
    from serverchange.adapters.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to `serverchange fleet`."""
    app.command(epilog="Example: serverchange fleet drain shard-3")(drain)
    app.command(epilog="Example: serverchange fleet resize 2 --json")(resize)


@dataclass(frozen=True, slots=True)
class Resizing:
    """What `fleet resize` does.

    Attributes:
        drain: shards to be told to drain.
        undrain: shards whose order is taken back.
        running: shards that then have channels, or take some as soon as they see it.
        to_start: processes that are still missing; those of `undrain` that do not run, or end first, are among them.
    """

    drain: tuple[str, ...]
    undrain: tuple[str, ...]
    running: tuple[str, ...]
    to_start: int


def plan_resize(wanted: int, reports: Sequence[ShardReport], ordered: Collection[str]) -> Resizing:
    """Return how a fleet comes to `wanted` shards.

    Too many: those with the highest names go, `shard-10` before `shard-9`. Too few: those that were told to drain come
    back, first those that stand idle, then those that are still giving (they end, and are to be started again), then
    those that do not run.
    """
    fresh = {report.process: report for report in reports if report.fresh}
    active = sorted((name for name in fresh if name not in ordered), key=_in_counting_order)
    if len(active) >= wanted:
        return Resizing(tuple(active[wanted:]), (), tuple(active[:wanted]), 0)

    def rank(name: str) -> tuple[int, tuple[tuple[int, str], ...]]:
        report = fresh.get(name)
        return (2 if report is None else int(report.wanted > 0), _in_counting_order(name))

    back = sorted(ordered, key=rank)[: wanted - len(active)]
    idle = [name for name in back if rank(name)[0] == 0]
    running = sorted([*active, *idle], key=_in_counting_order)
    return Resizing((), tuple(back), tuple(running), wanted - len(running))


def _in_counting_order(name: str) -> tuple[tuple[int, str], ...]:
    """Order by the numbers within names, as people count."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part)


@answering
def drain(
    out: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The shard's process.name.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take the order back.")] = False,
    by: ByOption = None,
) -> None:
    """Tell a shard to give its channels away for good: it leaves the group, hands over, and ends with 0.

    Started again, it stays idle until the order is taken back. One that is still giving goes on after --undo, ends, and
    has channels again once it is started.
    """
    if undo:
        was = asyncio.run(_undrain(load(), name))
        out.fields({"process": name, "ordered": False, "was_ordered": was})
        return
    asyncio.run(_drain(load(), name, user(by)))
    out.fields({"process": name, "ordered": True})


@answering
def resize(
    out: Output,
    shards: Annotated[int, typer.Argument(metavar="N", min=1, help="How many shards are to have channels.")],
    by: ByOption = None,
) -> None:
    """Drain the shards above N, highest names first, or take such orders back; says how many processes are missing."""
    plan = asyncio.run(_resize(load(), shards, user(by)))
    out.fields(describe_resizing(shards, plan))
    if plan.to_start:
        free = [name for name in plan.undrain if name not in plan.running]
        again = f"; free for that again: {', '.join(free)}, unless a supervisor starts them by itself" if free else ""
        note(f"start {plan.to_start} more, each under a name of its own{again}")


def describe_resizing(wanted: int, plan: Resizing) -> dict[str, Any]:
    """Return the plan as `fleet resize` shows it."""
    return {
        "wanted": wanted,
        "running": list(plan.running),
        "drained": list(plan.drain),
        "undrained": list(plan.undrain),
        "to_start": plan.to_start,
    }


async def _drain(settings: Settings, name: str, ordered_by: str) -> None:
    from serverchange.adapters.postgres import fleet
    from serverchange.adapters.postgres.connections import connect

    async with await connect(settings.postgres, application="serverchange fleet") as connection:
        reports, ordered = await _standing(connection)
        refuse_drain(name, reports, ordered)
        await fleet.order_drain(connection, [name], ordered_by=ordered_by)


def refuse_drain(name: str, reports: Sequence[ShardReport], ordered: Collection[str]) -> None:
    """Refuse an order that nobody can obey, or that leaves nobody to take the channels.

    Raises:
        Fault: no shard of that name told anything for a day, or it is the only one.
    """
    if name in ordered:
        return
    known = sorted(report.process for report in reports)
    if name not in known:
        raise Fault(f"no shard {name!r} has told anything for a day; there are: {', '.join(known) or 'none'}")
    if not any(report.fresh and report.process not in {name, *ordered} for report in reports):
        raise Fault(f"{name} is the only shard: nobody could take its channels. Start another one first")


async def _undrain(settings: Settings, name: str) -> bool:
    from serverchange.adapters.postgres import fleet
    from serverchange.adapters.postgres.connections import connect

    async with await connect(settings.postgres, application="serverchange fleet") as connection:
        return name in await fleet.cancel_drain(connection, [name])


async def _resize(settings: Settings, wanted: int, ordered_by: str) -> Resizing:
    from serverchange.adapters.postgres import fleet
    from serverchange.adapters.postgres.connections import connect

    async with await connect(settings.postgres, application="serverchange fleet") as connection:
        plan = plan_resize(wanted, *await _standing(connection))
        await fleet.order_drain(connection, plan.drain, ordered_by=ordered_by)
        await fleet.cancel_drain(connection, plan.undrain)
    return plan


async def _standing(connection: AsyncConnection) -> tuple[list[ShardReport], frozenset[str]]:
    from serverchange.adapters.postgres import fleet

    drains = await fleet.load_drains(connection)
    return await fleet.load_reports(connection), frozenset(order.process for order in drains)
