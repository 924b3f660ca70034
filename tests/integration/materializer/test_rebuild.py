"""Rebuild, verify and copying the log: the same records give the same rows, and a difference is told and published."""

from __future__ import annotations

import pytest
from materializer_world import World, eventually, observed

from serverchange.adapters.kafka.topics import apply_topics
from serverchange.adapters.postgres.connections import connect
from serverchange.materializer import copy_topic, rebuild, verify
from serverchange.materializer.comparison import compare_partition

pytestmark = pytest.mark.slow

ROWS = (
    "SELECT channel, seq, known_after, status, cluster, left_cluster, verified, doubts, version, since_ms, labels,"
    " penalty, penalty_at_ms, evidence FROM channel_state ORDER BY channel"
)
HISTORY = (
    "SELECT channel, version, what, previous, cluster, since_ms, evidence, traceparent FROM cluster_change"
    " ORDER BY channel, version"
)


def fill(world: World, channels: int = 30) -> None:
    for number in range(channels):
        world.track(f"c{number}", "main", "main", "aws", *(["event"] if number % 3 else []))
    world.append("c1", b"poison")
    world.wait_folded()


def test_a_rebuild_equals_the_live_tables_and_swapping_it_in_changes_nothing(world):
    worker = world.start()
    fill(world)
    rows, history = world.rows(ROWS), world.rows(HISTORY)
    assert all(row[-1] is not None for row in history), "the trace of the event that decided goes with the change"
    told: list[tuple[int, int]] = []
    report = rebuild.run(world.settings, compare=True, progress=lambda done, total: told.append((done, total)))
    assert report.differences == []
    assert told[-1][0] == told[-1][1] == report.records == sum(world.ends().values())
    swapped = rebuild.run(world.settings, swap=True)
    assert (swapped.records, swapped.swapped, swapped.altered, swapped.generation) == (0, True, 0, 1)
    assert (world.rows(ROWS), world.rows(HISTORY)) == (rows, history)
    world.append("c0", observed("c0", "event", 4))
    world.wait_folded()
    assert world.cluster_of("c0") == "event", "the live worker goes on with the new tables"
    assert worker.popen.poll() is None
    world.prove()


def test_a_difference_is_told_and_a_swap_that_alters_rows_publishes_them_again(world):
    world.start()
    fill(world)
    eventually(lambda: verify.run(world.settings).ok)
    world.database.execute("UPDATE channel_state SET cluster = 'wrong' WHERE channel = 'c4'")
    world.database.execute("UPDATE cluster_change SET cluster = 'wrong' WHERE channel = 'c4' AND version = 3")
    assert not verify.run(world.settings).ok
    report = rebuild.run(world.settings, compare=True)
    assert report.differences is not None
    assert {(one.table, one.key) for one in report.differences} == {("channels", "c4"), ("changes", "c4/3")}
    swapped = rebuild.run(world.settings, swap=True)
    assert (swapped.swapped, swapped.generation) == (True, 2)
    eventually(lambda: [one.order for one in world.published() if one.subject == "c4"][-1] == (2, 3))
    assert [one.subject for one in world.published() if one.order[0] == 2] == ["c4"]
    world.append("c4", observed("c4", "aws2", 5))
    world.wait_folded()
    eventually(lambda: [one.order for one in world.published() if one.subject == "c4"][-1] == (2, 4))
    world.prove()


def test_an_interrupted_rebuild_goes_on_where_it_stopped(world):
    world.start()
    fill(world)
    rebuild.run(world.settings)
    for number in range(10):
        world.track(f"d{number}", "main")
    world.wait_folded()
    again = rebuild.run(world.settings, compare=True)
    assert again.records == 20
    assert again.differences == []


def test_copied_into_more_partitions_the_log_gives_the_same_rows(world, tmp_path):
    world.start()
    fill(world)
    world.processes[0].stop()
    rows, history = world.rows(ROWS), world.rows(HISTORY)
    prefix = world.settings.kafka.topic_prefix + "v2."
    report = copy_topic.run(world.settings.kafka, to_prefix=prefix, partitions=7)
    assert (report.partitions, report.records, report.misplaced) == (7, sum(world.ends().values()), 0)
    kafka = world.settings.kafka.model_copy(update={"topic_prefix": prefix, "partitions": 7})
    apply_topics(kafka)
    copied = World(world.settings.model_copy(update={"kafka": kafka}), tmp_path / "..")
    try:
        swapped = rebuild.run(copied.settings, swap=True)
        assert (swapped.swapped, swapped.altered) == (True, 0)
        assert (copied.rows(ROWS), copied.rows(HISTORY)) == (rows, history)
        copied.start()
        copied.append("c0", observed("c0", "event", 4))
        copied.wait_folded()
        eventually(lambda: verify.run(copied.settings).ok)
    finally:
        copied.close()


def test_verify_tells_a_lost_publication_and_a_wrong_dead_letter(world):
    world.start()
    fill(world, 5)
    world.prove()
    world.database.execute("DELETE FROM dead_letter")
    report = verify.run(world.settings)
    assert [("no dead letter" in fault) for fault in report.faults] == [True]
    assert report.as_json()["ok"] is False


async def test_a_record_missing_on_cluster_changes_is_found_and_published_again(world):
    world.start()
    fill(world, 6)
    eventually(lambda: verify.run(world.settings).ok)
    published = world.published()
    # A database that knows of more than the topic: as after a broker lost what it had acknowledged.
    world.database.execute("UPDATE cluster_change SET generation = 2 WHERE channel = 'c4'")
    world.database.execute("UPDATE log_position SET generation = 2")
    partition = world.rows("SELECT partition FROM channel_state WHERE channel = 'c4'")[0][0]
    async with await connect(world.settings.postgres, application="test") as connection:
        assert await compare_partition(world.settings, connection, partition) == ["c4"]
        eventually(lambda: len(world.published()) > len(published))
        assert await compare_partition(world.settings, connection, partition) == []
    assert [one.order for one in world.published() if one.subject == "c4"][-1] == (2, 3)
