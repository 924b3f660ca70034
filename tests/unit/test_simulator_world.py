"""The world of channels: seeded, in order, at any scale; the migration script's promises."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from serverchange.events import Channel, ChannelKind, Cluster
from serverchange.simulator.migration import DEFAULT_SCRIPT, Cohort
from serverchange.simulator.settings import DAY_S, SimulatorSettings
from serverchange.simulator.world import (
    Happening,
    LaggingView,
    Moved,
    OrderRefusedError,
    WentLive,
    WentOffline,
    World,
    stream_on_day,
)

TWO_WEEKS_S = 14 * DAY_S
AWS, MAIN, EVENT = Cluster("aws"), Cluster("main"), Cluster("event")


def story(**changes: object) -> tuple[World, list[Happening]]:
    world = World(SimulatorSettings.model_validate({"channels": 200, "seed": 7, **changes}))
    return world, list(world.advance(TWO_WEEKS_S))


def quiet_world(*names: str) -> World:
    return World(
        SimulatorSettings(channels=len(names), names=names, script=False, habits=False, event_channels=0)  # type: ignore[arg-type]
    )


def moves_of(happenings: list[Happening]) -> list[Moved]:
    return [happening for happening in happenings if isinstance(happening, Moved)]


def test_the_same_seed_tells_the_same_story() -> None:
    assert story()[1] == story()[1]


def test_another_seed_tells_another_story() -> None:
    assert story(seed=1)[1] != story(seed=2)[1]


def test_the_story_is_the_same_in_small_steps_and_in_one() -> None:
    world = World(SimulatorSettings(channels=200, seed=7))
    stepped = [happening for step in range(1, 1401) for happening in world.advance(step * TWO_WEEKS_S / 1400)]
    assert stepped == story()[1]


def test_happenings_come_in_the_order_of_time() -> None:
    times = [happening.at_s for happening in story()[1]]
    assert times == sorted(times)


def test_a_channel_moves_only_while_it_does_not_stream() -> None:
    _, happenings = story()
    live: set[Channel] = set()
    for happening in happenings:
        match happening:
            case WentLive(_, channel):
                assert channel not in live
                live.add(channel)
            case WentOffline(_, channel):
                live.remove(channel)
            case Moved(_, channel):
                assert channel not in live


def test_after_two_weeks_every_channel_but_the_group_rooms_is_on_aws() -> None:
    world, _ = story()
    assert world.script.done
    for channel, cluster in world.cluster_of.items():
        assert cluster == (Cluster("group") if world.profiles[channel].kind is ChannelKind.GROUP else AWS)


def test_group_rooms_never_move() -> None:
    world, happenings = story()
    assert not [move for move in moves_of(happenings) if world.profiles[move.channel].kind is ChannelKind.GROUP]


def test_everyone_who_had_moved_moves_back_once_and_then_again() -> None:
    world, happenings = story()
    partners = {channel for channel, cohort in world.cohort_of.items() if cohort is Cohort.PARTNER}
    ways = {channel: [move.cluster for move in moves_of(happenings) if move.channel == channel] for channel in partners}
    assert partners
    assert set(map(tuple, ways.values())) == {(AWS, MAIN, AWS)}


def test_the_event_cluster_is_merged() -> None:
    world, happenings = story()
    event = [channel for channel, profile in world.profiles.items() if profile.home == EVENT]
    assert event
    assert [(move.previous, move.step) for move in moves_of(happenings) if move.channel in event] == [
        (EVENT, "event merged")
    ] * len(event)


def test_the_steps_follow_each_other_in_the_forums_order() -> None:
    steps = [move.step for move in moves_of(story()[1])]
    assert list(dict.fromkeys(steps)) == [step.name for step in DEFAULT_SCRIPT]


def test_no_batch_is_larger_than_the_setting() -> None:
    batches = Counter(move.at_s for move in moves_of(story(batch_channels=3)[1]))
    assert max(batches.values()) <= 3


def test_staff_and_opted_in_channels_are_few() -> None:
    cohorts = Counter(World(SimulatorSettings(channels=2000)).cohort_of.values())
    assert cohorts[Cohort.STAFF] == 10
    assert cohorts[Cohort.OPTED_IN] < 50


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 99])
def test_any_number_of_channels_ends_where_it_should(channels: int) -> None:
    world = World(SimulatorSettings(channels=channels))
    list(world.advance(TWO_WEEKS_S))
    assert len(world.profiles) == channels
    assert world.script.done


def test_a_pause_shifts_all_that_is_to_come() -> None:
    world = World(SimulatorSettings(channels=50, habits=False))
    world.script.pause(0.1 * DAY_S)
    assert list(world.advance(3 * DAY_S)) == []
    world.script.start(3 * DAY_S)
    first = next(iter(world.advance(TWO_WEEKS_S)))
    assert first.at_s == pytest.approx((3 + 0.5 - 0.1) * DAY_S)


def test_a_script_that_starts_paused_waits_for_its_start() -> None:
    world = World(SimulatorSettings(channels=50, habits=False, script_starts_paused=True))
    assert list(world.advance(TWO_WEEKS_S)) == []
    world.script.start(TWO_WEEKS_S)
    first = next(iter(world.advance(2 * TWO_WEEKS_S)))
    assert first.at_s == pytest.approx(TWO_WEEKS_S + 0.5 * DAY_S)


@pytest.mark.parametrize(
    ("channel", "cluster", "why"),
    [
        ("nobody", "aws", "no channel"),
        ("forsen", "moon", "no cluster"),
        ("forsen", "main", "already"),
        ("forsen", "group", "group"),
    ],
)
def test_an_impossible_move_is_refused(channel: str, cluster: str, why: str) -> None:
    with pytest.raises(OrderRefusedError, match=why):
        quiet_world("forsen").move(Channel(channel), Cluster(cluster), 0.0)


def test_a_live_channel_moves_only_by_force() -> None:
    world, forsen = quiet_world("forsen"), Channel("forsen")
    world.set_live(forsen, True, 1.0)
    with pytest.raises(OrderRefusedError, match="live"):
        world.move(forsen, AWS, 2.0)
    assert world.move(forsen, AWS, 2.0, force=True).cluster == AWS


def test_a_channel_told_to_stream_heeds_its_habits_no_more() -> None:
    world = World(SimulatorSettings(channels=1, script=False))
    channel = next(iter(world.profiles))
    world.set_live(channel, True, 0.0)
    assert list(world.advance(TWO_WEEKS_S)) == []


def test_streams_of_a_channel_do_not_overlap() -> None:
    _, happenings = story(script=False)
    for channel in {happening.channel for happening in happenings}:
        kinds = [type(happening) for happening in happenings if happening.channel == channel]
        assert all(one is not other for one, other in pairwise(kinds))


def test_a_stream_is_the_same_whoever_asks() -> None:
    days = [stream_on_day(3, Channel("forsen"), day) for day in range(30)]
    assert days == [stream_on_day(3, Channel("forsen"), day) for day in range(30)]
    assert 0 < sum(window is not None for window in days) <= 30


def test_each_replica_shows_a_move_after_a_lag_of_its_own() -> None:
    world, forsen = quiet_world("forsen"), Channel("forsen")
    view = LaggingView(seed=1, replicas=2, mean_s=600.0, max_s=3600.0)
    view.record(world.move(forsen, AWS, 1000.0))
    seconds = [[view.cluster(forsen, AWS, replica, 1000.0 + second) for replica in (0, 1)] for second in range(3601)]
    shown = list(zip(*seconds, strict=True))
    for answers in shown:
        assert answers[0] == MAIN
        assert answers[-1] == AWS
        assert list(answers) == sorted(answers, reverse=True)
    assert shown[0] != shown[1]


def test_without_lag_a_move_shows_at_once() -> None:
    world, forsen = quiet_world("forsen"), Channel("forsen")
    view = LaggingView(seed=1, replicas=2, mean_s=0.0, max_s=0.0)
    view.record(world.move(forsen, AWS, 1000.0))
    assert view.cluster(forsen, AWS, 0, 1000.0) == AWS


def test_a_replica_never_shows_an_older_move_after_a_newer_one() -> None:
    world, forsen = quiet_world("forsen"), Channel("forsen")
    view = LaggingView(seed=5, replicas=1, mean_s=600.0, max_s=3600.0)
    clusters = [AWS, MAIN, AWS, MAIN, AWS]
    for index, cluster in enumerate(clusters):
        view.record(world.move(forsen, cluster, 10.0 * index))
    shown = [view.cluster(forsen, AWS, 0, 41.0 + second) for second in range(3601)]
    assert shown[-1] == AWS
    assert len([1 for one, other in pairwise(shown) if one != other]) <= len(clusters)
