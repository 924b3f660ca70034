"""Wires the listener: nameless links, the followers, and the brokers' word on what shards hold."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from kafka.errors import KafkaError

from serverchange.adapters.fleet_account import NAMELESS, FleetAccount
from serverchange.adapters.fleet_process import FleetProcess
from serverchange.adapters.hearsay import Hearsay
from serverchange.adapters.kafka.group_assignments import assigned_partitions
from serverchange.adapters.kafka.group_follower import Membership
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.leased_budget import BudgetLedger, LeasedBudget
from serverchange.adapters.link_fleet import FleetRules, LinkFleet
from serverchange.adapters.link_setup import ANONYMOUS_ACCOUNT, make_link_rules, make_logins
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.process import Process, run_process
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.adapters.settings import Settings
from serverchange.irc_listener.listener import Listener
from serverchange.topics import CHANNEL_LIVE, CLUSTER_CHANGES, CLUSTERS
from serverchange.tracker.handover import HandoverLimits

_log = get_logger("irc_listener")

GROUP: Final = "listeners"
SHARDS_GROUP: Final = "reconnectors"

HELD_INTERVAL_S: Final = 3.0
"""How often the brokers are asked what shards hold; each answer costs one small request."""

STOP_S: Final = 1.5


def main(settings: Settings) -> None:
    """Run the listener until a signal stops it."""

    async def listen(process: Process) -> None:
        await run_listener(settings, process)

    run_process("irc_listener", settings.process, listen)


async def run_listener(settings: Settings, process: Process) -> None:
    """Run until `process.stopping` is set; a part that fails for good ends the process."""
    name, wanted = settings.process.name, settings.listener
    link_rules = make_link_rules(settings.platform)
    directory = ServerDirectory(link_rules.hosts, settings.platform.transport, settings.platform.seeds)
    ledger = BudgetLedger(settings.postgres, holder=f"irc_listener {name}", readiness=process.readiness)
    budget = LeasedBudget(
        ledger,
        account=ANONYMOUS_ACCOUNT,
        limits=settings.platform.limits(wanted.account_class),
    )
    async with contextlib.AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(EventPublisher(settings.kafka, client_id=f"irc_listener-{name}"))
        hearsay = await stack.enter_async_context(
            Hearsay(publisher, source=f"irc_listener/{name}", known=lambda: directory.clusters)
        )
        listener = Listener(hearsay=hearsay, directory=directory)
        await stack.enter_async_context(ledger)
        await stack.enter_async_context(budget.running())
        listener.fleet = await stack.enter_async_context(
            LinkFleet(
                FleetRules(wanted.channels_per_link, HandoverLimits(), reads_lines=False),
                link_rules=link_rules,
                accounts={NAMELESS: FleetAccount(make_logins("", None), budget)},
                servers=directory,
                hearer=listener,
            )
        )
        following = FleetProcess(
            settings.kafka,
            process,
            Membership(CLUSTER_CHANGES, GROUP, f"irc_listener-{name}", instance=name),
            tables=(CLUSTERS, CHANNEL_LIVE),
            owner=listener,
        )
        async with following.running() as tasks:
            asking = tasks.create_task(_ask_what_is_held(settings, listener), name="held")
            await process.stopping.wait()
            await asyncio.to_thread(following.stop_following, STOP_S)
            asking.cancel()


async def _ask_what_is_held(settings: Settings, listener: Listener) -> None:
    while True:
        try:
            held = await asyncio.to_thread(
                assigned_partitions,
                settings.kafka,
                group=SHARDS_GROUP,
                topic=CLUSTER_CHANGES,
                client_id=f"irc_listener-{settings.process.name}-admin",
            )
        except (KafkaError, OSError) as error:
            # No information: what we hear stays as it is.
            _log.warning(LogEvent.KAFKA_LOST, reason=f"{type(error).__name__}: {error}")
        else:
            listener.note_held(held)
        await asyncio.sleep(HELD_INTERVAL_S)
