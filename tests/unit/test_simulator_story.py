"""Laws of the simulated story, for any seed, size and pace."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from serverchange.events import ChannelKind
from serverchange.simulator.settings import DAY_S, SimulatorSettings
from serverchange.simulator.world import Moved, WentLive, WentOffline, World

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 60)
BATCHES = st.integers(1, 20)
PACES = st.lists(st.floats(1.0, 2 * DAY_S), max_size=20)
THREE_WEEKS_S = 21 * DAY_S


@settings(max_examples=40, deadline=None)
@example(seed=11095, channels=6, batch=4, steps_s=[])  # A batch with one streamer waited for days, not minutes.
@given(seed=SEEDS, channels=SIZES, batch=BATCHES, steps_s=PACES)
def test_however_time_passes_the_story_holds_its_rules(
    seed: int, channels: int, batch: int, steps_s: list[float]
) -> None:
    world = World(SimulatorSettings(seed=seed, channels=channels, batch_channels=batch))
    where = dict(world.cluster_of)
    live: set[str] = set()
    now_s = 0.0
    for step_s in [*steps_s, THREE_WEEKS_S]:
        now_s += step_s
        for happening in world.advance(now_s):
            assert happening.at_s <= now_s
            match happening:
                case WentLive(_, channel):
                    live.add(channel)
                case WentOffline(_, channel):
                    live.remove(channel)
                case Moved(_, channel, previous, cluster):
                    assert channel not in live
                    assert world.profiles[channel].kind is ChannelKind.CHAT
                    assert where[channel] == previous != cluster
                    where[channel] = cluster
        assert where == world.cluster_of
        assert live == set(world.live)
    assert world.script.done
    assert {where[name] for name, profile in world.profiles.items() if profile.kind is ChannelKind.CHAT} <= {"aws"}
