"""The benchmark's world and judge can be trusted, and a small migration shows what the large one is run for."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import exposure
import exposure_play
from exposure_policies import make_policy
from exposure_world import DAY_S, HOUR_S, Scenario, build_world

SMALL = Scenario(channels=600, requests_per_s=0.06)


def test_the_same_seed_gives_the_same_world_and_another_another() -> None:
    first, again, other = (build_world(SMALL, seed) for seed in (1, 1, 2))
    assert first.moves == again.moves
    assert first.streams == again.streams
    assert first.moves != other.moves


@pytest.mark.parametrize("deferral", ["at-end", "sweep", "stragglers"])
def test_channels_move_only_while_they_do_not_stream(deferral: str) -> None:
    world = build_world(replace(SMALL, deferral=deferral), 3)
    assert world.moves
    assert not any(world.is_live(move.channel, move.at_s) for move in world.moves)


def test_everybody_ends_on_the_new_cluster_but_for_the_last_stragglers() -> None:
    world = build_world(SMALL, 3)
    last = {move.channel: move.cluster for move in world.moves}
    assert len(last) > 0.98 * len(world.names)
    assert set(last.values()) == {"aws"}


def test_a_bad_weekend_sends_moved_channels_back() -> None:
    world = build_world(replace(SMALL, rollbacks=(0.4, 0.75)), 3)
    back = [move for move in world.moves if move.cluster == "main"]
    assert len(back) > 100


def test_exposure_is_counted_only_while_live_and_wrong() -> None:
    streams = [1 * HOUR_S, 3 * HOUR_S, 5 * HOUR_S, 6 * HOUR_S]
    world = build_world(replace(SMALL, moving=False), 1)
    world.streams[0][:] = type(world.streams[0])("d", streams)
    hours = [0.0] * int(world.end_s / HOUR_S + 1)
    seconds = exposure_play._live_within(world, 0, 2 * HOUR_S, 5.5 * HOUR_S, hours)
    assert seconds == 1.5 * HOUR_S
    assert (hours[2], hours[3], hours[5]) == (60.0, 0.0, 30.0)


def test_beliefs_are_wrong_from_the_move_until_it_is_known() -> None:
    truth = [(10.0, "aws"), (50.0, "main"), (70.0, "aws")]
    believed = [(20.0, "aws"), (80.0, "aws")]
    spells = list(exposure_play._wrong_spells("main", truth, believed, 100.0))
    assert spells == [(10.0, 20.0), (50.0, 70.0)]


def test_a_world_without_moves_exposes_nobody() -> None:
    world = build_world(replace(SMALL, moving=False, days=2.0), 1)
    outcome = exposure_play.play(world, make_policy("ours", world), "ours")
    assert outcome.exposure_min == 0.0
    assert outcome.lookups + outcome.scans + outcome.waits == pytest.approx(2 * DAY_S * 0.06, abs=2)


def test_the_schedule_saves_exposure_in_a_small_migration() -> None:
    report = exposure.run(
        channels=1_000,
        requests_per_second=0.1,
        seeds=1,
        policies=("round-robin", "live-first", "ours"),
        jobs=1,
        with_losses=False,
    )
    assert report["round_robin_ratio"][0] > 15
    assert report["live_first_ratio"][0] > 4
    spent = {row["policy"]: row["lookups"] + row["scans"] + row["waits"] for row in report["outcomes"]}
    assert len(set(spent.values())) == 1
