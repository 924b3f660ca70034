"""Wires a shard: its links, its followers, its budget, and a drain that leaves no channel unread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Final

import psycopg

from serverchange.adapters import metrics
from serverchange.adapters.account_token import AccountToken, TokenBudget, TokenFile, token_file
from serverchange.adapters.first_of import first_of
from serverchange.adapters.fleet_account import NAMELESS, FleetAccount
from serverchange.adapters.fleet_process import FleetProcess
from serverchange.adapters.hearsay import Hearsay
from serverchange.adapters.kafka.group_follower import Membership
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.leased_budget import BudgetLedger, LeasedBudget
from serverchange.adapters.link_fleet import FleetRules, LinkFleet
from serverchange.adapters.link_setup import ANONYMOUS_ACCOUNT, make_link_rules, make_logins
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.doubts import settled_doubts
from serverchange.adapters.process import Process, Readiness, run_process
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.adapters.settings import AccountClassName, ReconnectorSettings, Settings
from serverchange.reconnector.account_places import AccountPlaces
from serverchange.reconnector.brake import follow_brake
from serverchange.reconnector.chat_writer import ChatWriter
from serverchange.reconnector.drain import PART, REASON, report_drained, wait_undrained
from serverchange.reconnector.handover_reports import HandoverReports
from serverchange.reconnector.shard import Shard
from serverchange.topics import CHANNEL_LIVE, CLUSTER_CHANGES, CLUSTERS, SHARD_HOLDINGS
from serverchange.tracker.budget import what_if
from serverchange.tracker.handover import HandoverLimits

_log = get_logger("reconnector")

GROUP: Final = "reconnectors"

DOUBTS_INTERVAL_S: Final = 2.0
DRAIN_FACTOR: Final = 1.2
SUCCESSOR_S: Final = 30.0
"""How long a stopping shard stays a member of the group, for a successor of the same name to take its place: then
nothing is rebalanced, and each channel is joined once more, not twice. A process starts within 5 s, much slower on a
host that starts many at once."""

OTHERS_S: Final = 30.0
"""Without a successor: the session (8 s) after which the group gives the partitions to others, and their rebalance."""

LEAVE_S: Final = 10.0
"""What ending the thread and leaving the group may take; the session's end does the same, later."""

STOP_S: Final = 3.0
"""What the stop itself may take behind a drain: flush, leave, close."""

STOP_MARGIN_S: Final = 4.5


def main(settings: Settings) -> None:
    """Run the shard until it was told to stop and has given its channels away."""
    files = {account.login: token_file(account.login) for account in settings.reconnector.joining_accounts}

    async def shard(process: Process) -> None:
        await run_shard(settings, process, token_files=files)

    run_process("reconnector", settings.process, shard)


async def run_shard(
    settings: Settings, process: Process, *, token_files: Mapping[str, TokenFile | None] | None = None
) -> None:
    """Run until `process.stopping` is set, or an operator orders a drain, and the drain is over.

    A part that fails for good ends the process. A shard that was ordered to drain before does not begin.

    `token_files` are read again when the platform refuses an account's token.
    """
    if not await wait_undrained(settings, process):
        return
    name, wanted = settings.process.name, settings.reconnector
    link_rules = make_link_rules(settings.platform)
    directory = ServerDirectory(link_rules.hosts, settings.platform.transport, settings.platform.seeds)
    async with contextlib.AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(EventPublisher(settings.kafka, client_id=f"reconnector-{name}"))
        chat = ChatWriter(publisher, shard=name)
        reports = HandoverReports(settings.kafka, publisher, shard=name)
        hearsay = await stack.enter_async_context(
            Hearsay(
                publisher,
                source=f"reconnector/{name}",
                known=lambda: directory.clusters,
                on_doubt=lambda *place: shard.doubt_published(*place),  # noqa: PLW0108  (the shard comes next)
            )
        )
        accounts = await _enter_accounts(stack, settings, process.readiness, token_files or {})
        shard = Shard(
            name,
            places=functools.partial(AccountPlaces, settings.postgres, list(accounts), wanted.channels_per_account),
            publisher=publisher,
            hearsay=hearsay,
            chat=chat,
            reports=reports,
            directory=directory,
        )
        shard.fleet = await stack.enter_async_context(
            LinkFleet(
                FleetRules(wanted.channels_per_link, _handover_limits(wanted), lines_per_link=wanted.lines_per_link),
                link_rules=link_rules,
                accounts=accounts,
                servers=directory,
                hearer=shard,
            )
        )
        await _work(settings, process, shard, chat, reports)


async def _enter_accounts(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    readiness: Readiness,
    token_files: Mapping[str, TokenFile | None],
) -> dict[str, FleetAccount]:
    """Return who joins, by login: nameless readers, or the accounts, each while its token is not refused."""
    ledger = BudgetLedger(settings.postgres, holder=f"reconnector {settings.process.name}", readiness=readiness)
    await stack.enter_async_context(ledger)

    async def enter_budget(account: str, account_class: AccountClassName) -> LeasedBudget:
        limits = settings.platform.limits(account_class)
        return await stack.enter_async_context(LeasedBudget(ledger, account=account, limits=limits).running())

    accounts: dict[str, FleetAccount] = {}
    for known in settings.reconnector.joining_accounts:
        token = AccountToken(
            settings.platform,
            account=known.login,
            token=known.token,
            file=token_files.get(known.login),
            readiness=readiness,
        )
        await stack.enter_async_context(token.running())
        budget = TokenBudget(await enter_budget(known.login, known.account_class), token)
        accounts[known.login] = FleetAccount(token.login, budget, token.check_soon)
    if not accounts:
        budget_of_address = await enter_budget(ANONYMOUS_ACCOUNT, settings.reconnector.account_class)
        accounts[NAMELESS] = FleetAccount(make_logins("", None), budget_of_address)
    return accounts


async def _work(settings: Settings, process: Process, shard: Shard, chat: ChatWriter, reports: HandoverReports) -> None:
    def watch() -> None:
        shard.look_for_silence()
        metrics.CHANNELS_FOREIGN.set(shard.foreign_count)
        metrics.CHANNELS_WITHOUT_ACCOUNT.set(shard.unplaced_count)
        metrics.MOVES_HELD.set(shard.fleet.moves_held)
        process.stop_timeout_s = drain_s(settings, shard.channel_count) + STOP_MARGIN_S

    name, ordered = settings.process.name, asyncio.Event()
    following = FleetProcess(
        settings.kafka,
        process,
        Membership(CLUSTER_CHANGES, GROUP, f"reconnector-{name}", instance=name),
        tables=(CLUSTERS, CHANNEL_LIVE, SHARD_HOLDINGS),
        owner=shard,
        on_watch=watch,
    )
    async with following.running() as tasks:
        working = [
            tasks.create_task(shard.write_holdings(), name="holdings"),
            tasks.create_task(shard.places.run(), name="accounts"),
            tasks.create_task(chat.run(), name="chat"),
            tasks.create_task(reports.run(), name="handover reports"),
            tasks.create_task(_settle_doubts(settings, shard), name="doubts"),
            tasks.create_task(follow_brake(settings, shard, ordered.set), name="brake"),
        ]
        await first_of({"stopped": process.stopping.wait(), "ordered to drain": ordered.wait()})
        if ordered.is_set() and not process.stopping.is_set():
            await _obey_order(settings, process, shard, following)
        if process.stopping.is_set():
            drain_ends_at = asyncio.get_running_loop().time() + drain_s(settings, shard.channel_count)
            await _wait(SUCCESSOR_S, shard, lambda: not shard.partitions_held)
            await asyncio.to_thread(following.stop_following, STOP_S)
            await _drain(shard, drain_ends_at - asyncio.get_running_loop().time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S / 2):
                await chat.flush()
        for task in working:
            task.cancel()


def _handover_limits(settings: ReconnectorSettings) -> HandoverLimits:
    return HandoverLimits(overlap_s=settings.overlap_s, confirm_timeout_s=settings.confirm_timeout_s)


def drain_s(settings: Settings, channels: int) -> float:
    """Seconds that a stopping shard keeps its links at most, for others to take its channels.

    What a successor's start and joining the channels take, and a fifth of the latter. It ends sooner where all are
    taken, or where a second SIGTERM comes.
    """
    wanted = settings.reconnector
    if wanted.drain_timeout_s:
        return wanted.drain_timeout_s
    classes = [one.account_class for one in wanted.joining_accounts] or [wanted.account_class]
    each = -(-channels // len(classes))
    answers = [what_if(each, settings.platform.limits(name), wanted.channels_per_link) for name in set(classes)]
    return SUCCESSOR_S + OTHERS_S + DRAIN_FACTOR * max(max(answer.join_s, answer.paced_s) for answer in answers)


async def _settle_doubts(settings: Settings, shard: Shard) -> None:
    """Ask PostgreSQL which doubts a lookup has answered; there are none most of the time."""
    while True:
        await asyncio.sleep(DOUBTS_INTERVAL_S)
        doubts = shard.open_doubts()
        if not doubts:
            continue
        try:
            async with await connect(settings.postgres, application="reconnector doubts") as connection:
                for channel in await settled_doubts(connection, doubts):
                    shard.fleet.lookup_agreed(channel)
        except psycopg.Error as error:
            _log.warning(LogEvent.POSTGRES_LOST, reason=str(error).strip())


async def _obey_order(settings: Settings, process: Process, shard: Shard, following: FleetProcess) -> None:
    """Leave the group, and keep the links until others have all our channels, however long, or a signal comes."""
    process.readiness.wait_for(PART, REASON)
    _log.info(LogEvent.DRAIN_ORDERED, shard=settings.process.name, channels=shard.channel_count)
    await asyncio.to_thread(following.stop_following, LEAVE_S, leave=True)
    await first_of({"drain": _drain(shard, None), "stopped": process.stopping.wait()})
    if shard.is_empty:
        await report_drained(settings)


async def _drain(shard: Shard, timeout_s: float | None) -> None:
    """Keep the links until others have all our channels, or the time is over."""
    at_most_s = None if timeout_s is None else round(timeout_s, 1)
    _log.info(LogEvent.DRAIN_STARTED, channels=shard.channel_count, at_most_s=at_most_s)
    await _wait(timeout_s, shard, lambda: shard.is_empty)
    _log.info(LogEvent.DRAIN_ENDED, channels_left=shard.channel_count)


async def _wait(timeout_s: float | None, shard: Shard, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; it is looked at again whenever the shard's holdings or channels change."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():
                shard.changed.clear()
                await shard.changed.wait()
