# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange budget`: who has what of the JOIN and login budgets, who waits, and how long joining would take."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from serverchange.cli.faults import Fault
from serverchange.cli.output import Output, answering, print_rows, quiet_logs

if TYPE_CHECKING:
    from serverchange.adapters.postgres.fleet import ShardReport
    from serverchange.adapters.postgres.join_budget import LedgerBudget
    from serverchange.adapters.settings import AccountClassName, PlatformSettings, Settings
    from serverchange.tracker.budget import Limit

CHANNELS_MAX: Final = 1_000_000_000
_QUESTION: Final = re.compile(
    r"(?P<channels>[0-9]{1,12}) channels?, *(?P<account_class>ordinary|known|verified)"
    r"(, *(?P<accounts>[0-9]{1,12}) accounts?)?",
    re.ASCII,
)
_COLUMNS: Final = ("account", "kind", "limit", "used", "leased", "free", "waiting", "done_in_s", "holders")


def register(app: typer.Typer, *, panel: str) -> None:
    """Add the command to the application."""
    app.command(rich_help_panel=panel, epilog='Example: serverchange budget --what-if "200000 channels, verified"')(
        budget
    )


@answering
def budget(
    out: Output,
    question: Annotated[
        str | None,
        typer.Option(
            "--what-if",
            help='Compute how long joining takes, without connecting: "N channels, CLASS" or "N channels, CLASS, N '
            'accounts"; a class is ordinary, known or verified.',
            metavar="QUESTION",
        ),
    ] = None,
    channels_per_link: Annotated[int, typer.Option(min=1, max=1000, help="For --what-if.")] = 90,
) -> None:
    """Show the ledger of JOINs and logins: of each account, what is used in the window, who leased what, what waits."""
    from serverchange.adapters.settings import load_settings

    if question is not None:
        out.fields(answer_what_if(question, channels_per_link, load_settings().platform))
        return
    quiet_logs()
    rows = asyncio.run(_load(load_settings()))
    out.answer(rows, entries=rows, show=lambda: _print(rows))


def _print(rows: list[dict[str, Any]]) -> None:
    print_rows(_COLUMNS, [[_holders(row) if name == "holders" else row[name] for name in _COLUMNS] for row in rows])


def answer_what_if(question: str, channels_per_link: int, platform: PlatformSettings) -> dict[str, Any]:
    """Return the arithmetic for a question such as `200000 channels, verified`.

    Raises:
        Fault: it is no such question.
    """
    from serverchange.tracker.budget import what_if

    asked = _QUESTION.fullmatch(question.strip())
    channels, accounts = (int(asked["channels"]), int(asked["accounts"] or 1)) if asked else (0, 0)
    if asked is None or not 0 < channels <= CHANNELS_MAX or not 0 < accounts <= channels:
        raise Fault(f'{question!r} is no question; ask for example: --what-if "200000 channels, verified"')
    each = -(-channels // accounts)  # the account with most decides
    answer = what_if(each, platform.limits(cast("AccountClassName", asked["account_class"])), channels_per_link)
    return {
        "channels": channels,
        "account_class": asked["account_class"],
        "accounts": accounts,
        "links": answer.links * accounts,
        "join_s": round(answer.join_s, 1),
        "login_s": round(answer.login_s, 1),
        "paced_s": round(answer.paced_s, 1),
        "paced": in_words(answer.paced_s),
    }


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


async def _load(settings: Settings) -> list[dict[str, Any]]:
    from serverchange.adapters.postgres.connections import connect
    from serverchange.adapters.postgres.fleet import load_reports
    from serverchange.adapters.postgres.join_budget import load_ledger

    async with await connect(settings.postgres, application="serverchange budget") as connection:
        budgets = await load_ledger(connection)
        reports = await load_reports(connection)
    window_s = settings.platform.rate_window_s
    return [describe_budget(one, known_limit(settings, one), reports, window_s) for one in budgets]


def known_limit(settings: Settings, budget: LedgerBudget) -> Limit | None:
    """Return the budget's limit, as far as this machine's settings name the account's class."""
    from serverchange.adapters.link_setup import ANONYMOUS_ACCOUNT

    shard = settings.reconnector
    classes = {one.login: one.account_class for one in shard.joining_accounts} or {
        ANONYMOUS_ACCOUNT: shard.account_class
    }
    if (name := classes.get(budget.account)) is not None:
        return settings.platform.limits(name)[budget.kind]
    if budget.account == ANONYMOUS_ACCOUNT:
        return settings.platform.limits(settings.listener.account_class)[budget.kind]
    return None


def describe_budget(
    budget: LedgerBudget, limit: Limit | None, reports: list[ShardReport], window_s: float
) -> dict[str, Any]:
    """Return one row of the answer; what needs an unknown limit is None."""
    from serverchange.adapters.budget_standing import standing
    from serverchange.tracker.budget import paced_s

    now = standing(budget, reports, window_s)
    used, leased, total = now.used, now.leased, now.waiting_total
    return {
        "account": budget.account,
        "kind": budget.kind.value,
        "limit": None if limit is None else limit.count,
        "window_s": now.window_s,
        "used": used,
        "leased": leased,
        "free": None if limit is None else limit.count - used - leased,
        "waiting": total,
        "done_in_s": None if limit is None else round(paced_s(used + leased + total, limit), 1),
        "holders": [{"holder": name, "used": one.used, "leased": one.leased} for name, one in now.usages.items()],
        "waiters": [{"process": name, "waiting": count} for name, count in now.waiting.items() if count],
    }


def _holders(row: dict[str, Any]) -> list[str]:
    return [f"{one['holder']} {one['used']}+{one['leased']}" for one in row["holders"]]
