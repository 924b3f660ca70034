"""Two weeks of a migration, nobody told by a notice: the poller alone ends where the platform is."""

from __future__ import annotations

import asyncio

from poller_fleet import followed_log, running_poller, tracked, with_platform

from serverchange.adapters.settings import PlatformSettings, Settings
from serverchange.events import ChannelKind
from serverchange.simulator.migration import DAY_S
from serverchange.simulator.settings import SimulatorSettings, WrongCluster
from serverchange.simulator.simulator import Simulator

CHANNELS = 60
SECONDS = 20.0
TIME_SCALE = 16 * DAY_S / SECONDS
REST_S = 60.0


async def test_polling_alone_follows_a_whole_migration(settings: Settings) -> None:
    platform = SimulatorSettings(
        channels=CHANNELS,
        time_scale=TIME_SCALE,
        wrong_cluster=WrongCluster.SILENT,
        script_starts_paused=True,
        lines_per_second=0.0,
    )
    async with Simulator(platform) as simulator, followed_log(settings) as log:
        profiles = simulator.world.profiles.values()
        chat = {str(profile.name): profile for profile in profiles if profile.kind is ChannelKind.CHAT}
        ours = with_platform(
            settings, simulator.addresses.api_url, time_scale=TIME_SCALE, repeat_after_s=(0.25, 0.5, 1.0)
        ).model_copy(
            update={"platform": PlatformSettings(api_url=simulator.addresses.api_url, requests_per_second=150.0)}
        )
        async with running_poller(ours):
            await log.write([tracked(name, *profile.labels) for name, profile in chat.items()])
            await log.settled(**{name: str(simulator.world.cluster_of[profile.name]) for name, profile in chat.items()})
            simulator.start_script()
            async with asyncio.timeout(SECONDS + REST_S):
                while not simulator.world.script.done:  # noqa: ASYNC110  (the script has no event)
                    await asyncio.sleep(0.1)
            truth = {name: str(simulator.world.cluster_of[profile.name]) for name, profile in chat.items()}
            await log.settled(**truth)
        assert simulator.world.moves >= CHANNELS
        assert log.refused == 0
