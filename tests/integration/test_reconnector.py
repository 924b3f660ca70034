"""Whole shards in this process, on real Kafka and PostgreSQL, against the simulated platform."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from kafka import TopicPartition

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.group_assignments import member_partitions
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.postgres import fleet
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.postgres.fleet import ShardReport
from serverchange.adapters.process import Process, Readiness
from serverchange.adapters.settings import KafkaSettings, PlatformSettings, ReconnectorSettings, Settings
from serverchange.events import (
    ChangedData,
    ChangeKind,
    Channel,
    ChatLine,
    Cluster,
    ClusterChanged,
    HandoverEnded,
    change_id,
)
from serverchange.reconnector.main import run_shard
from serverchange.simulator.ledger import EntryKind
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator
from serverchange.topics import CHANNEL_EVENTS, CHAT_LINES, CLUSTER_CHANGES, HANDOVERS, SHARD_HOLDINGS, Topic

WAIT_S = 40
LOOK_S = 0.1
MAIN, AWS = Cluster("main"), Cluster("aws")
CHANNELS = tuple(Channel(f"channel{number:02}") for number in range(12))


def changed(
    channel: Channel,
    cluster: Cluster,
    version: int,
    what: ChangeKind = ChangeKind.MOVED,
    *,
    account: str | None = None,
) -> tuple[str, bytes]:
    now = datetime.now(UTC)
    data = ChangedData(what=what, cluster=cluster, generation=1, version=version, since=now, account=account)
    event = ClusterChanged(
        id=change_id(channel, 1, version),
        source="test",
        time=now,
        subject=channel,
        data=data,
    )
    return channel, event.to_record()


class Reader:
    """Reads a topic from its beginning as anyone could."""

    def __init__(self, settings: KafkaSettings, topic: Topic) -> None:
        self._consumer = make_consumer(settings, client_id="reader", group=None)
        name = topic_name(settings, topic)
        self._consumer.assign([TopicPartition(name, number) for number in self._consumer.partitions_for_topic(name)])
        self._consumer.seek_to_beginning()
        self.values: list[bytes] = []

    async def until(self, condition: Callable[[list[bytes]], bool]) -> list[bytes]:
        async with asyncio.timeout(WAIT_S):
            while not condition(self.values):
                polled = await asyncio.to_thread(self._consumer.poll, timeout_ms=200)
                self.values += [record.value for records in polled.values() for record in records]
        return self.values

    def close(self) -> None:
        self._consumer.close()


def lines_of(values: Iterable[bytes], channel: Channel) -> list[int]:
    """The numbered lines of a channel that readers got."""
    numbers = []
    for value in values:
        event = ChatLine.model_validate_json(value)
        if event.subject == channel and event.data.line and (found := re.search(r" :#(\d+) ", event.data.line)):
            numbers.append(int(found[1]))
    return numbers


@asynccontextmanager
async def simulated(**changes: object) -> AsyncIterator[Simulator]:
    quiet = {
        "channels": len(CHANNELS),
        "names": CHANNELS,
        "event_channels": 0,
        "group_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 0,
        "clearchat_share": 0,
    }
    async with Simulator(SimulatorSettings.model_validate({**quiet, **changes})) as simulator:
        yield simulator


def shard_settings(settings: Settings, simulator: Simulator, name: str, **changes: Any) -> Settings:
    account = simulator.settings.accounts[0]
    return settings.model_copy(
        update={
            "process": settings.process.model_copy(update={"name": name}),
            "platform": PlatformSettings(
                transport="plain",
                seeds={cluster: (ports.plain,) for cluster, ports in simulator.addresses.clusters.items()},
                allowed_networks=("127.0.0.0/8",),
                plaintext_token_hosts=("127.0.0.1",),
            ),
            "reconnector": ReconnectorSettings.model_validate(
                {
                    "account": account.login,
                    "token": account.token,
                    "account_class": "verified",
                    "overlap_s": 0.5,
                    "confirm_timeout_s": 2,
                    **changes,
                }
            ),
        }
    )


class RunningShard:
    """One shard as a task; `stop` is its SIGTERM."""

    def __init__(self, settings: Settings) -> None:
        self.process = Process("reconnector", settings.process, asyncio.Event(), Readiness())
        self.task = asyncio.get_running_loop().create_task(run_shard(settings, self.process))

    def stop(self) -> None:
        self.process.stopping.set()

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def ready(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self.process.readiness.ready and not self.task.done():  # noqa: ASYNC110  (as /readyz is)
                await asyncio.sleep(LOOK_S)
        if self.task.done():
            self.task.result()


@asynccontextmanager
async def shards(*settings: Settings) -> AsyncIterator[list[RunningShard]]:
    running = [RunningShard(one) for one in settings]
    try:
        for one in running:
            await one.ready()
        yield running
    finally:
        for one in running:
            await one.kill()


async def platform_has(simulator: Simulator, condition: Callable[[dict[Channel, list[Cluster]]], bool]) -> None:
    """Wait until the platform's own view of who is joined where is as wanted."""
    async with asyncio.timeout(WAIT_S):
        while not condition(joined(simulator)):  # noqa: ASYNC110  (another process's view, in production)
            await asyncio.sleep(LOOK_S)


def joined(simulator: Simulator) -> dict[Channel, list[Cluster]]:
    return {
        channel: [link.cluster for link in simulator.links() if channel in link.dialogue.joined] for channel in CHANNELS
    }


async def test_a_shard_joins_what_the_snapshot_says_and_moves_with_a_change(settings: Settings) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, MAIN, 1) for channel in CHANNELS])
        async with shards(shard_settings(settings, simulator, "one")):
            await platform_has(simulator, lambda has: all(has[channel] == [MAIN] for channel in CHANNELS))
            simulator.say(CHANNELS[0], 2)
            simulator.move(CHANNELS[0], AWS)
            await publisher.publish_all(CLUSTER_CHANGES, [changed(CHANNELS[0], AWS, 2)])
            await platform_has(simulator, lambda has: has[CHANNELS[0]] == [AWS])
            simulator.say(CHANNELS[0], 2)
            reader = Reader(settings.kafka, CHAT_LINES)
            await reader.until(lambda values: len(lines_of(values, CHANNELS[0])) == 4)
            assert lines_of(reader.values, CHANNELS[0]) == [1, 2, 3, 4]
            reader.close()
            reader = Reader(settings.kafka, HANDOVERS)
            (value,) = await reader.until(bool)  # of twelve first joins nothing is reported
            report = HandoverEnded.model_validate_json(value)
            assert (report.subject, report.data.cause, report.data.outcome) == (CHANNELS[0], "moved", "done")
            assert (report.data.source, report.data.target, report.data.shard) == (MAIN, AWS, "one")
            reader.close()


async def test_a_pushed_notice_reaches_the_log(settings: Settings) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(CHANNELS[0], MAIN, 3)])
        async with shards(shard_settings(settings, simulator, "one")):
            await platform_has(simulator, lambda has: has[CHANNELS[0]] == [MAIN])
            simulator.move(CHANNELS[0], AWS)
            reader = Reader(settings.kafka, CHANNEL_EVENTS)
            (value,) = await reader.until(bool)
            data = json.loads(value)["data"]
            assert (data["heard_on"], data["believed_version"], data["reason"]) == (MAIN, 3, "moved")
            reader.close()


async def test_an_untracked_channel_is_left(settings: Settings) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, MAIN, 1) for channel in CHANNELS])
        async with shards(shard_settings(settings, simulator, "one")):
            await platform_has(simulator, lambda has: all(has.values()))
            gone = changed(CHANNELS[0], MAIN, 2, ChangeKind.UNTRACKED)
            await publisher.publish_all(CLUSTER_CHANGES, [gone])
            await platform_has(simulator, lambda has: has[CHANNELS[0]] == [] and all(list(has.values())[1:]))


async def test_the_brake_holds_moves_until_it_is_released(settings: Settings) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, MAIN, 1) for channel in CHANNELS[1:]])
        async with (
            shards(shard_settings(settings, simulator, "one")),
            await connect(settings.postgres, application="test") as connection,
        ):
            await platform_has(simulator, lambda has: all(has[channel] for channel in CHANNELS[1:]))
            await fleet.hold(connection, held_by="me", reason="test")
            await reported(connection, lambda one: one.wanted == len(CHANNELS) - 1)
            simulator.move(CHANNELS[1], AWS)
            await publisher.publish_all(CLUSTER_CHANGES, [changed(CHANNELS[1], AWS, 2), changed(CHANNELS[0], MAIN, 1)])
            await platform_has(simulator, lambda has: has[CHANNELS[0]] == [MAIN])
            await reported(connection, lambda one: one.moves_held == 1)
            assert joined(simulator)[CHANNELS[1]] == [MAIN]
            await held_are(settings, {"reconnector-one": frozenset(range(settings.kafka.partitions))})
            await fleet.resume(connection)
            await platform_has(simulator, lambda has: has[CHANNELS[1]] == [AWS])


async def held_are(settings: Settings, wanted: dict[str, frozenset[int]]) -> None:
    """Wait until the brokers name exactly these holders; during a rebalance they name none."""
    async with asyncio.timeout(WAIT_S):
        while wanted != await asyncio.to_thread(  # noqa: ASYNC110  (as a person would)
            member_partitions, settings.kafka, group="reconnectors", topic=CLUSTER_CHANGES, client_id="test"
        ):
            await asyncio.sleep(LOOK_S)


async def reported(connection: AsyncConnection, condition: Callable[[ShardReport], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not any(map(condition, await fleet.load_reports(connection))):  # noqa: ASYNC110  (as a person would)
            await asyncio.sleep(LOOK_S)


async def test_a_channel_that_asks_for_another_account_is_left_to_it(settings: Settings) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        own, strange, free = CHANNELS[:3]
        ours = simulator.settings.accounts[0].login
        await publisher.publish_all(
            CLUSTER_CHANGES,
            [changed(own, MAIN, 1, account=ours), changed(strange, MAIN, 1, account="x"), changed(free, MAIN, 1)],
        )
        async with (
            shards(shard_settings(settings, simulator, "one")),
            await connect(settings.postgres, application="test") as connection,
        ):
            await platform_has(simulator, lambda has: bool(has[own]) and bool(has[free]))
            await reported(connection, lambda one: (one.foreign_count, one.wanted) == (1, 2))
            assert joined(simulator)[strange] == []
            labelled = ChangeKind.LABELLED
            await publisher.publish_all(
                CLUSTER_CHANGES, [changed(own, MAIN, 2, labelled, account="x"), changed(strange, MAIN, 2, labelled)]
            )
            await platform_has(simulator, lambda has: has[own] == [] and has[strange] == [MAIN])


async def test_a_second_shard_takes_half_and_no_channel_is_left_meanwhile(settings: Settings) -> None:
    async with simulated() as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, MAIN, 1) for channel in CHANNELS])
        async with shards(shard_settings(settings, simulator, "one")):
            await platform_has(simulator, lambda has: all(has.values()))
            async with shards(shard_settings(settings, simulator, "two")):
                left = [channel for channel, where in joined(simulator).items() if not where]
                assert left == []

                def shared() -> bool:
                    assert all(joined(simulator).values()), "a channel was left"
                    links = [link.dialogue.joined for link in simulator.links() if link.dialogue.joined]
                    return len(links) == 2 and sum(map(len, links)) == len(CHANNELS)

                await platform_has(simulator, lambda _: shared())


async def test_a_rolling_deploy_loses_and_repeats_no_line(settings: Settings) -> None:
    async with (
        simulated(lines_per_second=100, chat_in_offline_channels=True) as simulator,
        EventPublisher(settings.kafka, client_id="test") as publisher,
    ):
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, MAIN, 1) for channel in CHANNELS])
        before = shard_settings(settings, simulator, "one", drain_timeout_s=60)
        async with shards(before) as (predecessor,):
            await platform_has(simulator, lambda has: all(has.values()))
            first = {channel: simulator.say(channel)[0] for channel in CHANNELS}
            predecessor.stop()
            async with shards(before):
                async with asyncio.timeout(WAIT_S):
                    await predecessor.task
                simulator.lines_per_second = 0
                last = {channel: simulator.say(channel)[0] for channel in CHANNELS}
                reader = Reader(settings.kafka, CHAT_LINES)
                await reader.until(
                    lambda values: all(last[channel] in lines_of(values, channel) for channel in CHANNELS)
                )
                for channel in CHANNELS:
                    numbers = set(lines_of(reader.values, channel))
                    assert set(range(first[channel], last[channel] + 1)) <= numbers, channel
                reader.close()
        holdings = Reader(settings.kafka, SHARD_HOLDINGS)
        await holdings.until(lambda values: any(b'"released"' in value for value in values))
        holdings.close()


BOTS = tuple(f"bot_{letter}" for letter in "abc")


def joiners(simulator: Simulator) -> dict[Channel, set[str]]:
    """Who is in each channel, as the platform sees it."""
    found: dict[Channel, set[str]] = {channel: set() for channel in CHANNELS}
    for link in simulator.links():
        assert link.budget is not None
        for channel in link.dialogue.joined:
            found[channel].add(link.budget.name)
    return found


async def test_two_shards_share_accounts_that_may_be_in_so_many_channels(settings: Settings) -> None:
    """Twelve channels, three accounts of four channels each: every place is needed, through a move and a deploy."""
    accounts = [{"login": name, "token": f"{name}-token", "tier": "verified"} for name in BOTS]
    several = {
        "account": "",
        "token": None,
        "accounts": [{"login": name, "token": f"{name}-token", "account_class": "verified"} for name in BOTS],
        "channels_per_account": 4,
    }
    async with (
        simulated(accounts=accounts, channel_limit=4) as simulator,
        EventPublisher(settings.kafka, client_id="test") as publisher,
    ):
        await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, MAIN, 1) for channel in CHANNELS])
        both = [shard_settings(settings, simulator, name, **several) for name in ("one", "two")]
        async with shards(*both) as running:
            await platform_has(simulator, lambda has: all(has[channel] == [MAIN] for channel in CHANNELS))
            before = joiners(simulator)
            assert Counter(name for names in before.values() for name in names) == dict.fromkeys(BOTS, 4)
            for channel in CHANNELS:
                simulator.move(channel, AWS)
            await publisher.publish_all(CLUSTER_CHANGES, [changed(channel, AWS, 2) for channel in CHANNELS])
            await platform_has(simulator, lambda has: all(has[channel] == [AWS] for channel in CHANNELS))
            running[0].stop()
            await asyncio.wait_for(running[0].task, 2 * WAIT_S)
            await platform_has(simulator, lambda has: all(has[channel] == [AWS] for channel in CHANNELS))
            assert joiners(simulator) == before
        refused = [entry for entry in simulator.ledger.entries if entry.kind is EntryKind.VIOLATION]
        assert refused == []


async def test_a_channel_that_asks_for_another_account_of_the_shard_is_handed_over_to_it(settings: Settings) -> None:
    accounts = [{"login": name, "token": f"{name}-token", "tier": "verified"} for name in BOTS[:2]]
    several = {
        "account": "",
        "token": None,
        "accounts": [{"login": name, "token": f"{name}-token", "account_class": "verified"} for name in BOTS[:2]],
    }
    labelled = ChangeKind.LABELLED
    async with simulated(accounts=accounts) as simulator, EventPublisher(settings.kafka, client_id="test") as publisher:
        await publisher.publish_all(CLUSTER_CHANGES, [changed(CHANNELS[0], MAIN, 1, account=BOTS[1])])
        async with shards(shard_settings(settings, simulator, "one", **several)):
            await platform_has(simulator, lambda has: has[CHANNELS[0]] == [MAIN])
            assert joiners(simulator)[CHANNELS[0]] == {BOTS[1]}
            simulator.say(CHANNELS[0], 1)
            await publisher.publish_all(CLUSTER_CHANGES, [changed(CHANNELS[0], MAIN, 2, labelled, account=BOTS[0])])
            await platform_has(simulator, lambda _: joiners(simulator)[CHANNELS[0]] == {BOTS[0]})
            simulator.say(CHANNELS[0], 1)
            reader = Reader(settings.kafka, CHAT_LINES)
            await reader.until(lambda values: len(lines_of(values, CHANNELS[0])) == 2)
            assert lines_of(reader.values, CHANNELS[0]) == [1, 2]
            reader.close()
