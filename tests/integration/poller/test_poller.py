"""The poller on a real Kafka and PostgreSQL, against a platform that each test scripts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from poller_fleet import (
    DEADLINE_S,
    attributes,
    channels,
    followed_log,
    notice,
    now_ms,
    poller_process,
    records_until,
    running_poller,
    tracked,
    with_platform,
)
from psycopg import sql
from scripted_platform import Answer, scripted_platform

from serverchange.adapters.kafka.log_identity import home_partition
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.freshness import Fresh, load_freshness, store_freshness
from serverchange.adapters.postgres.projection import create_positions, store_positions, store_states
from serverchange.adapters.postgres.request_budget import LEASE_EXPIRES_S
from serverchange.adapters.process import Process
from serverchange.adapters.settings import Settings
from serverchange.events import Channel, ChannelPinned, ChannelUntracked, Cluster, PinnedData, UntrackedData
from serverchange.poller.loading import topic_id
from serverchange.topics import CHANNEL_LIVE, CLUSTERS
from serverchange.tracker.channel_state import RULES_VERSION, ChannelState, Status, Wanting


async def until(process: Process, reached: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """Return what the process still waits for once it is as expected; a readiness can only be looked at."""
    async with asyncio.timeout(DEADLINE_S):
        while not reached(process.readiness.missing):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return dict(process.readiness.missing)


async def store_projection(settings: Settings, state: ChannelState, position: int) -> None:
    """Put one channel's row and its partition's position where a materializer would have."""
    partition = home_partition(state.channel.encode(), settings.kafka.partitions)
    async with await connect(settings.postgres, application="test") as connection, connection.transaction():
        await create_positions(
            connection, [partition], topic_id=topic_id(settings, "test"), rules_version=RULES_VERSION
        )
        await store_states(connection, [(partition, state)])
        await store_positions(connection, [(partition, position, None, None, now_ms())])


def settled(channel: Channel, cluster: str, **options: object) -> ChannelState:
    given = {"seq": 7, "known_after": 5, "version": 3, "verified": True, **options}
    return ChannelState(
        channel,
        status=Status.SETTLED,
        cluster=Cluster(cluster),
        wanting=(Wanting("test"),),
        **given,  # type: ignore[arg-type]
    )


async def test_a_tracked_channel_is_looked_up_published_and_verified(settings: Settings) -> None:
    async with scripted_platform(clusters={"forsen": "main"}) as platform, followed_log(settings) as log:
        async with running_poller(with_platform(settings, platform.url)):
            await log.write([tracked("forsen")])
            await log.settled(forsen="main")
        first, second = log.observed("forsen")
        assert (first.data.asked_after, second.data.asked_after) == (1, 2)
        assert first.data.asked_at <= first.data.answered_at
        assert log.refused == 0


async def test_a_notice_is_settled_by_lookups(settings: Settings) -> None:
    async with scripted_platform(clusters={"forsen": "main"}) as platform, followed_log(settings) as log:
        async with running_poller(with_platform(settings, platform.url)):
            await log.write([tracked("forsen")])
            await log.settled(forsen="main")
            platform.clusters["forsen"] = "aws"
            await log.write([notice("forsen", heard_on="main", version=log.states["forsen"].version)])
            await log.settled(forsen="aws")
        assert log.states["forsen"].version == 2


async def test_an_answer_that_agrees_is_no_event_but_makes_the_channel_fresh(settings: Settings) -> None:
    forsen = Channel("forsen")
    partition = home_partition(b"forsen", settings.kafka.partitions)
    await store_projection(settings, settled(forsen, "main"), position=0)
    before = datetime.now(UTC)
    async with (
        scripted_platform(clusters={"forsen": "main"}, live={"forsen"}) as platform,
        followed_log(settings) as log,
        await connect(settings.postgres, application="test") as connection,
        running_poller(with_platform(settings, platform.url)),
        asyncio.timeout(DEADLINE_S),
    ):
        while not (fresh := await load_freshness(connection, partition)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert before <= fresh[forsen]
        assert log.observed("forsen") == []


async def test_a_verification_of_another_version_makes_nothing_fresh(settings: Settings) -> None:
    forsen = Channel("forsen")
    partition = home_partition(b"forsen", settings.kafka.partitions)
    await store_projection(settings, settled(forsen, "main"), position=0)
    async with await connect(settings.postgres, application="test") as connection:
        now = datetime.now(UTC)
        assert (
            await store_freshness(connection, [Fresh(forsen, 2, now), Fresh(Channel("nobody"), 1, now)]) == frozenset()
        )
        assert await load_freshness(connection, partition) == {}
        assert await store_freshness(connection, [Fresh(forsen, 3, now)]) == {forsen}
        assert await store_freshness(connection, [Fresh(forsen, 3, now - timedelta(hours=1))]) == {forsen}
        assert await load_freshness(connection, partition) == {forsen: now}


async def test_a_poller_goes_on_where_the_projection_stands(settings: Settings) -> None:
    async with scripted_platform(clusters={"forsen": "aws"}) as platform, followed_log(settings) as log:
        await log.write([tracked("forsen", "staff"), tracked("forsen", "partner")])
        await log.wait_for(lambda: len(log.events) == 2)
        await store_projection(settings, settled(Channel("forsen"), "main", seq=40, verified=False), position=1)
        async with running_poller(with_platform(settings, platform.url)):
            await log.wait_for(lambda: len(log.observed("forsen")) >= 1)
    assert log.observed("forsen")[0].data.asked_after == 41, "the row's 40 records and the one behind the position"


async def test_nobody_asks_before_the_log_is_caught_up(settings: Settings) -> None:
    names = channels(30)
    async with (
        scripted_platform(clusters=dict.fromkeys(names, "main")) as platform,
        followed_log(settings) as log,
    ):
        await log.write([tracked(name) for name in names])
        data = UntrackedData(service="test")
        await log.write([ChannelUntracked(**attributes(name), data=data) for name in names[1:]])
        async with running_poller(with_platform(settings, platform.url)):
            await log.settled(**{names[0]: "main"})
        assert set(platform.lookups) == {names[0]}


async def test_a_pinned_channel_is_left_alone(settings: Settings) -> None:
    async with (
        scripted_platform(clusters={"forsen": "main", "other": "main"}) as platform,
        followed_log(settings) as log,
    ):
        pin = ChannelPinned(**attributes("forsen"), data=PinnedData(cluster=Cluster("aws")))
        await log.write([tracked("forsen"), pin])
        async with running_poller(with_platform(settings, platform.url)):
            await log.write([tracked("other")])
            await log.settled(other="main")
        assert platform.count("forsen") == 0


async def test_failures_change_nothing_and_lose_nobody(settings: Settings) -> None:
    names = channels(12)
    failing: list[Answer] = [
        (500, {}, {}),
        (404, {"error": "Not Found"}, {}),
        (200, [], {}),
        (200, {"cluster": "", "servers": []}, {}),
        (302, {}, {"location": "http://10.0.0.1/"}),
    ]

    def script(route: str, channel: str) -> Answer | None:
        times = platform.count(channel)
        return (
            failing[(times + names.index(Channel(channel))) % len(failing)]
            if route == "/servers" and times < 3
            else None
        )

    async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform, followed_log(settings) as log:
        platform.script = script
        async with running_poller(with_platform(settings, platform.url)):
            await log.write([tracked(name) for name in names])
            await log.settled(**dict.fromkeys(names, "main"))
        assert all(len(log.observed(name)) == 2 for name in names)


async def test_a_429_is_honoured_by_everybody_and_loses_nobody(settings: Settings) -> None:
    names = channels(8)
    told: list[float] = []
    asked: list[float] = []
    loop = asyncio.get_running_loop()

    def script(route: str, _channel: str) -> Answer | None:
        asked.append(loop.time())
        if not told and route == "/servers":
            told.append(loop.time())
            return 429, {}, {"retry-after": "4"}
        return None

    async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform, followed_log(settings) as log:
        platform.script = script
        one = with_platform(settings, platform.url, name="one", concurrency=1)
        two = with_platform(settings, platform.url, name="two", concurrency=1)
        async with running_poller(one) as first, running_poller(two) as second:
            await asyncio.gather(*(until(process, lambda missing: not missing) for process in (first, second)))
            await log.write([tracked(name) for name in names])
            await log.settled(**dict.fromkeys(names, "main"))
    # What the other poller had leased before the answer it may use for another second.
    assert [moment for moment in asked if told[0] + LEASE_EXPIRES_S + 0.5 < moment < told[0] + 3.9] == []


async def test_servers_and_live_channels_are_told_when_they_change(settings: Settings) -> None:
    names = channels(3)
    async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform, followed_log(settings) as log:
        platform.live = {names[0]}
        async with running_poller(with_platform(settings, platform.url)):
            await log.write([tracked(name) for name in names])
            live = await records_until(settings, CHANNEL_LIVE, lambda found: len(found) == 1)
            assert live[names[0]][0]["live"] is True
            platform.live = {names[1]}
            live = await records_until(
                settings, CHANNEL_LIVE, lambda found: len(found) == 2 and len(found[names[0]]) == 2
            )
            assert [data["live"] for data in live[names[0]]] == [True, False]
            assert [data["live"] for data in live[names[1]]] == [True]
            await log.settled(**dict.fromkeys(names, "main"))
            platform.servers["main"] = ["irc.other.example:6667"]
            servers = await records_until(settings, CLUSTERS, lambda found: len(found.get("main", [])) == 2)
        assert [data["servers"] for data in servers["main"]] == [["irc.main.example:6667"], ["irc.other.example:6667"]]


async def test_who_went_offline_while_no_poller_ran_is_told(settings: Settings) -> None:
    names = channels(2)
    async with scripted_platform(clusters=dict.fromkeys(names, "main"), live=set(names)) as platform:
        async with followed_log(settings) as log, running_poller(with_platform(settings, platform.url)):
            await log.write([tracked(name) for name in names])
            await records_until(settings, CHANNEL_LIVE, lambda found: len(found) == 2)
        platform.live = {names[0]}
        async with running_poller(with_platform(settings, platform.url, name="two")):
            live = await records_until(settings, CHANNEL_LIVE, lambda found: len(found.get(names[1], [])) == 2)
    assert [data["live"] for data in live[names[1]]] == [True, False]
    assert [data["live"] for data in live[names[0]]] == [True]


async def test_a_log_that_does_not_hold_the_position_is_refused(settings: Settings) -> None:
    await store_projection(settings, settled(Channel("forsen"), "main"), position=5)
    async with scripted_platform(clusters={"forsen": "aws"}) as platform:
        async with running_poller(with_platform(settings, platform.url)) as process:
            partition = home_partition(b"forsen", settings.kafka.partitions)
            missing = await until(process, lambda missing: f"log/{partition}" in missing)
            assert "the topic holds 0 to 0" in missing[f"log/{partition}"]
        assert platform.lookups == []


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("topic_id", "another", "the tables were folded from topic another"),
        ("rules_version", 0, "serverchange rebuild"),
    ],
)
async def test_tables_of_another_log_or_other_rules_are_refused(
    settings: Settings, column: str, value: object, reason: str
) -> None:
    await store_projection(settings, settled(Channel("forsen"), "main", verified=False), position=1)
    partition = home_partition(b"forsen", settings.kafka.partitions)
    async with await connect(settings.postgres, application="test") as connection:
        update = sql.SQL("UPDATE log_position SET {} = %s").format(sql.Identifier(column))
        await connection.execute(update, [value])
    async with scripted_platform(clusters={"forsen": "aws"}) as platform:
        async with running_poller(with_platform(settings, platform.url)) as process:
            missing = await until(process, lambda missing: f"log/{partition}" in missing)
            assert reason in missing[f"log/{partition}"]
        assert platform.lookups == []


async def test_a_killed_poller_is_replaced_and_sigterm_is_a_clean_stop(settings: Settings) -> None:
    names = channels(20)
    async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform, followed_log(settings) as log:
        first, second = (with_platform(settings, platform.url, name=name) for name in ("one", "two"))
        async with poller_process(first) as one, poller_process(second) as two:
            await log.write([tracked(name) for name in names])
            await log.settled(**dict.fromkeys(names, "main"))
            one.kill()
            await one.wait()
            for name in names:
                platform.clusters[name] = "aws"
            await log.write([notice(name, heard_on="main", version=1) for name in names])
            await log.settled(**dict.fromkeys(names, "aws"))
            two.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                assert await two.wait() == 0
        assert log.refused == 0
