"""`serverchange why` finds the poller that holds a channel, among several real ones, and tells what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from poller_fleet import (
    DEADLINE_S,
    attributes,
    channels,
    followed_log,
    poller_process,
    tracked,
    with_platform,
)
from scripted_platform import scripted_platform

from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.poller_address import KEPT_S, load_addresses, tell_address
from serverchange.adapters.settings import Settings
from serverchange.cli.why import ask_pollers
from serverchange.events import Channel, ChannelPinned, Cluster, PinnedData
from serverchange.views import LookupPlan


async def addresses_of(settings: Settings) -> dict[str, str]:
    async with await connect(settings.postgres, application="test") as connection:
        return await load_addresses(connection)


async def plans_of(settings: Settings, names: Sequence[Channel]) -> dict[Channel, LookupPlan | None]:
    """Return what the pollers say once every one of them told where it answers and holds all its partitions."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            addresses = await addresses_of(settings)
            plans = {name: await ask_pollers(addresses, name) for name in names}
            if all(plans.values()) and {plan.poller for plan in plans.values() if plan} == {"one", "two"}:
                return plans
            await asyncio.sleep(0.1)  # what pollers of their own process hold can only be asked


async def test_the_poller_that_holds_a_channel_says_when_it_is_asked_next(settings: Settings) -> None:
    names = channels(16)
    async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform, followed_log(settings) as log:
        one, two = (with_platform(settings, platform.url, name=name) for name in ("one", "two"))
        async with poller_process(one), poller_process(two):
            await log.write([tracked(name, "partner") for name in names])
            await log.settled(**dict.fromkeys(names, "main"))
            plans = await plans_of(settings, names)
            for name, plan in plans.items():
                assert plan is not None
                assert (plan.channel, plan.score) == (name, max(plan.sources.values()))
                assert plan.reason

            pinned = ChannelPinned(**attributes(names[0]), data=PinnedData(cluster=Cluster("aws")))
            await log.write([pinned])
            async with asyncio.timeout(DEADLINE_S):
                while (plan := await ask_pollers(await addresses_of(settings), names[0])) is None or plan.score:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert "pinned" in plan.reason
            assert await ask_pollers(await addresses_of(settings), Channel("nobody")) is None


async def test_pollers_that_are_gone_have_no_say_and_are_forgotten(settings: Settings) -> None:
    assert await ask_pollers({"gone": "http://127.0.0.1:1", "nonsense": "no url"}, Channel("forsen")) is None
    async with await connect(settings.postgres, application="test") as connection:
        await tell_address(connection, "gone", "http://127.0.0.1:1")
        assert await load_addresses(connection) == {"gone": "http://127.0.0.1:1"}
        cursor = await connection.execute("SELECT clock_timestamp() + make_interval(secs => %s)", [KEPT_S + 5])
        row = await cursor.fetchone()
        assert row is not None
        assert await load_addresses(connection, now=row[0]) == {}
        await tell_address(connection, "one", "http://127.0.0.1:2", now=row[0])
        assert await load_addresses(connection, now=row[0]) == {"one": "http://127.0.0.1:2"}
