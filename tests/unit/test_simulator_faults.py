"""Faults strike where they were asked for, as often as they were asked for; decisions follow from the seed."""

from __future__ import annotations

import uuid

from serverchange.events import Channel, Cluster
from serverchange.irc.line import parse_line
from serverchange.simulator.chat_lines import ChatWriter
from serverchange.simulator.clock import ScaledClock
from serverchange.simulator.draw import draw, draw_exponential, shuffle
from serverchange.simulator.faults import ApiFault, ApiFaultKind, FaultPlan, Faults, JoinSwallowed
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.world import make_profiles

FORSEN, MAIN, AWS = Channel("forsen"), Cluster("main"), Cluster("aws")


def plan(*, chance: float = 0.0, **faults: object) -> FaultPlan:
    made = FaultPlan(lambda: chance)
    made.replace(Faults.model_validate(faults))
    return made


def test_nothing_fails_unless_asked_for() -> None:
    calm = FaultPlan(lambda: 0.0)
    assert calm.api("servers", "forsen") is None
    assert not calm.swallows_join(FORSEN, 1, MAIN, "bot")
    assert not calm.closes_before_welcome(MAIN)


def test_a_fault_with_a_number_of_times_is_gone_after_them() -> None:
    made = plan(api=[ApiFault(kind=ApiFaultKind.TOO_MANY, times=2)])
    assert [made.api("servers", None) is not None for _ in range(3)] == [True, True, False]


def test_the_first_fault_that_matches_strikes() -> None:
    made = plan(api=[{"kind": "404", "channel": "nymn"}, {"kind": "500", "route": "streams"}, {"kind": "html"}])
    struck = [made.api(*asked) for asked in (("servers", "nymn"), ("streams", None), ("servers", "forsen"))]
    assert [fault.kind for fault in struck if fault] == ["404", "500", "html"]


def test_a_fault_with_a_probability_strikes_by_chance() -> None:
    assert plan(chance=0.4, api=[{"kind": "404", "probability": 0.5}]).api("servers", None) is not None
    assert plan(chance=0.6, api=[{"kind": "404", "probability": 0.5}]).api("servers", None) is None


def test_a_swallowed_join_matches_every_field_that_is_given() -> None:
    made = plan(joins_swallowed=[JoinSwallowed(channel=FORSEN, link=3)])
    assert made.swallows_join(FORSEN, 3, MAIN, "bot")
    assert not made.swallows_join(FORSEN, 4, MAIN, "bot")
    assert not made.swallows_join(Channel("nymn"), 3, MAIN, "bot")


def test_logins_fail_on_the_named_cluster_only() -> None:
    made = plan(closed_before_welcome=[{"cluster": "aws", "times": 1}])
    assert not made.closes_before_welcome(MAIN)
    assert made.closes_before_welcome(AWS)
    assert not made.closes_before_welcome(AWS)


def test_a_draw_depends_on_the_seed_and_on_what_it_is_about() -> None:
    assert draw(1, "lag", 2) == draw(1, "lag", 2)
    assert len({draw(1, "lag", 2), draw(2, "lag", 2), draw(1, "lag", 3), draw(1, "lost", 2)}) == 4


def test_draws_are_spread_evenly() -> None:
    draws = [draw(1, index) for index in range(10_000)]
    assert 0.49 < sum(draws) / len(draws) < 0.51
    assert 590 < sum(draw_exponential(600, 1, index) for index in range(10_000)) / 10_000 < 610


def test_a_shuffle_keeps_everything() -> None:
    items = list(range(100))
    shuffle(items, 1)
    assert items != list(range(100))
    assert sorted(items) == list(range(100))


def test_time_goes_on_from_where_it_is_when_the_scale_changes() -> None:
    real_s = 50.0
    clock = ScaledClock(lambda: real_s, 10.0)
    real_s = 52.0
    clock.set_scale(1000.0)
    assert clock.now_s() == 20.0
    real_s = 53.0
    assert clock.now_s() == 1020.0


def test_numbered_lines_say_their_number_and_have_an_id_each() -> None:
    profile = make_profiles(SimulatorSettings(channels=1, names=(FORSEN,)))[0]
    writer = ChatWriter(uuid.UUID(int=7))
    lines = [parse_line(writer.numbered(profile, number, 1.5).tagged.rstrip()) for number in (1, 2)]
    assert [line.params[1].split(" ")[:2] for line in lines] == [["#1", "forsen"], ["#2", "forsen"]]
    assert len({str(uuid.UUID(line.tags["id"])) for line in lines}) == 2
    assert {uuid.UUID(line.tags["id"]).version for line in lines} == {4}
    assert {line.tags["room-id"] for line in lines} == {profile.room_id}
    assert {line.tags["tmi-sent-ts"] for line in lines} == {"1500"}


def test_ids_differ_between_two_runs() -> None:
    profile = make_profiles(SimulatorSettings(channels=1))[0]
    one, other = (ChatWriter(uuid.uuid4()).numbered(profile, 1, 1.5) for _ in range(2))
    assert one.plain == other.plain
    assert one.tagged != other.tagged


def test_clearchat_carries_no_id() -> None:
    profile = make_profiles(SimulatorSettings(channels=1, names=(FORSEN,)))[0]
    line = parse_line(ChatWriter(uuid.uuid4()).clearchat(profile, "viewer_001", 1.5).tagged.rstrip())
    assert line.command == "CLEARCHAT"
    assert line.params == ("#forsen", "viewer_001")
    assert set(line.tags) == {"room-id", "target-user-id", "tmi-sent-ts"}
