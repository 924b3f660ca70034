"""What a poller remembers of clusters' servers and of live channels; its bell; its clock."""

import asyncio
from datetime import UTC, datetime

from serverchange.adapters.platform_api import ClusterAnswer
from serverchange.events import Channel, Cluster, LookupSource
from serverchange.poller.bell import Bell
from serverchange.poller.cluster_servers import CHANGE_INTERVAL_S, CLUSTERS_MAX, ClusterServersBoard
from serverchange.poller.live_board import LiveBoard
from serverchange.poller.platform_clock import PlatformClock

A, B, C = Channel("a"), Channel("b"), Channel("c")


def answer(*servers: str, cluster: str = "aws", websocket: tuple[str, ...] = ()) -> ClusterAnswer:
    return ClusterAnswer(Cluster(cluster), servers, websocket, LookupSource.SERVERS)


def test_a_list_is_told_once_and_again_after_the_interval() -> None:
    board = ClusterServersBoard(interval_s=60.0)
    first = answer("one:6667", "two:6667")
    assert board.is_due(first, 0.0)
    board.note(first, 0.0)
    assert not board.is_due(first, 59.9)
    assert not board.is_due(answer("two:6667", "one:6667"), 30.0), "the API turns lists to spread clients"
    assert board.is_due(first, 60.0)


def test_a_changed_list_is_told_at_once_and_a_storm_is_not() -> None:
    board = ClusterServersBoard(interval_s=60.0)
    board.note(answer("one:6667"), 0.0)
    assert board.is_due(answer("two:6667"), CHANGE_INTERVAL_S)
    assert board.is_due(answer("one:6667", websocket=("ws:80",)), CHANGE_INTERVAL_S)
    assert not board.is_due(answer("two:6667"), CHANGE_INTERVAL_S / 2)


def test_a_list_without_servers_is_no_information() -> None:
    assert not ClusterServersBoard(interval_s=60.0).is_due(answer(), 0.0)


def test_an_api_gone_mad_fills_nothing() -> None:
    board = ClusterServersBoard(interval_s=60.0)
    for number in range(CLUSTERS_MAX):
        board.note(answer("one:6667", cluster=f"c{number}"), 0.0)
    assert not board.is_due(answer("one:6667", cluster="another"), 10.0)
    assert board.is_due(answer("two:6667", cluster="c0"), 10.0)


def test_only_who_changed_is_told() -> None:
    board = LiveBoard()
    board.load([A, B])
    assert board.changes([A, B, C], {B, C}) == {A: False, C: True}
    board.note({A: False, C: True})
    assert board.changes([A, B, C], {B, C}) == {}
    board.forget([B])
    assert B not in board
    assert len(board) == 1


async def test_the_bell_tells_whether_it_was_urgent() -> None:
    bell = Bell()
    bell.ring()
    assert not await bell.wait(10.0)
    bell.ring(urgent=True)
    bell.ring()
    assert await bell.wait(10.0), "an urgent word stays urgent until it is heard"
    assert not await bell.wait(0.0)
    waiting = asyncio.create_task(bell.wait(10.0))
    await asyncio.sleep(0)
    bell.ring(urgent=True)
    assert await waiting


def test_the_platform_s_clock_runs_at_its_scale() -> None:
    clock = PlatformClock(100.0)
    moment = datetime(2016, 2, 13, tzinfo=UTC)
    assert clock.at_s(moment) == moment.timestamp() * 100.0
    assert clock.platform_s(2.0) == 200.0
    assert clock.real_s(200.0) == 2.0
    before = clock.now_s()
    assert clock.now_s() >= before
    assert abs(clock.now_s() / 100.0 - datetime.now(UTC).timestamp()) < 60.0
