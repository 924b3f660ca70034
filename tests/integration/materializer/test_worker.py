"""The materializer end to end: what it writes, what it refuses, how it stops and starts again."""

from __future__ import annotations

import signal

import pytest
from kafka import TopicPartition
from materializer_world import eventually, observed

from serverchange.adapters.kafka.clients import make_admin, make_async_producer
from serverchange.adapters.kafka.topics import apply_topics
from serverchange.materializer.holes import NoHoleError, accept_hole

pytestmark = pytest.mark.slow


def test_events_become_rows_history_and_published_changes(world):
    world.start()
    world.track("forsen", "main", "main", "aws")
    world.track("xqc", "event")
    world.wait_folded()
    assert world.rows("SELECT channel, cluster, verified, version FROM channel_state ORDER BY channel") == [
        ("forsen", "aws", False, 2),
        ("xqc", "event", False, 1),
    ]
    eventually(lambda: len(world.published()) == 3)
    published = world.published()
    assert [(one.subject, one.data.version, one.data.cluster) for one in published if one.subject == "forsen"] == [
        ("forsen", 1, "main"),
        ("forsen", 2, "aws"),
    ]
    world.prove()


def test_bad_records_become_dead_letters_with_their_bytes_and_the_stream_goes_on(world):
    world.start()
    world.track("forsen", "main")
    places = [world.append("forsen", None), world.append("forsen", b"poison \0 \xff"), world.append(None, b"{}")]
    world.append("forsen", observed("forsen", "aws", 4))
    world.wait_folded()
    rows = world.rows("SELECT partition, log_offset, key, value, reason FROM dead_letter")
    assert {(row[0], row[1]) for row in rows} == set(places)
    assert {row[3] for row in rows} == {None, b"poison \0 \xff", b"{}"}
    assert world.cluster_of("forsen") == "aws"
    world.prove()


def test_a_record_on_a_partition_that_is_not_its_keys_home_is_a_dead_letter(world):
    world.start()
    home, _ = world.append("forsen", observed("forsen", "main", 0))
    world.track("forsen", "main")
    world.append("forsen", observed("forsen", "aws", 1), partition=(home + 1) % 4)
    world.wait_folded()
    assert world.cluster_of("forsen") == "main"
    assert "belongs on partition" in world.rows("SELECT reason FROM dead_letter")[0][0]
    world.prove()


def test_a_stop_takes_less_than_five_seconds_and_the_next_start_goes_on(world):
    first = world.start()
    world.track("forsen", "main")
    world.wait_folded()
    assert first.stop() == 0
    world.append("forsen", observed("forsen", "aws", 2))
    world.start()
    world.wait_folded()
    assert world.cluster_of("forsen") == "aws"
    world.prove()


def test_two_workers_share_the_partitions_and_one_killed_is_replaced(world):
    first = world.start()
    world.track("a0", "main")
    world.wait_folded()
    second = world.start()
    eventually(lambda: any(0 < len(one["partitions"]) < 4 for one in second.events("partitions.assigned")))
    for number in range(40):
        world.track(f"b{number}", "main", "aws")
    first.signal(signal.SIGKILL)
    for number in range(40):
        world.track(f"c{number}", "main", "aws")
    world.wait_folded()
    world.start()
    for number in range(40):
        world.track(f"d{number}", "main", "aws")
    world.wait_folded()
    world.prove()


async def test_transaction_markers_and_aborted_records_are_passed_and_noted(world):
    worker = world.start()
    world.track("forsen", "main")
    producer = make_async_producer(world.settings.kafka, client_id="test-tx", transactional_id=f"tx-{world.folder}")
    await producer.start()
    home, _ = world.append("forsen", observed("forsen", "main", 2))
    await producer.begin_transaction()
    await producer.send_and_wait(
        world.channel_events, key=b"forsen", value=observed("forsen", "event", 3), partition=home
    )
    await producer.abort_transaction()
    await producer.stop()
    world.append("forsen", observed("forsen", "aws", 3))
    world.wait_folded()
    assert world.cluster_of("forsen") == "aws"
    holes = world.rows("SELECT partition, first_offset, next_offset, kind FROM log_hole")
    assert sum(behind - first for _, first, behind, _ in holes) == 2
    assert {(one[0], one[3]) for one in holes} == {(home, "markers")}
    assert worker.metric("serverchange_log_holes_total") == 2
    world.prove()


def test_a_marker_at_the_very_end_counts_as_caught_up(world):
    world.start()
    world.track("forsen", "main")
    world.wait_folded()
    eventually(lambda: all(row[0] is not None for row in world.rows("SELECT caught_up_at FROM log_position")))


def test_deleted_records_stop_the_partition_and_only_the_operator_gets_past_them(world):
    world.track("forsen", "main", "aws")
    home, offset = world.append("forsen", observed("forsen", "aws", 3))
    world.make_tables()
    world.database.execute("UPDATE log_position SET position = 0, last_sha256 = NULL, last_offset = NULL")
    world.database.execute("TRUNCATE channel_state, cluster_change")
    admin = make_admin(world.settings.kafka, client_id="test")
    admin.delete_records({TopicPartition(world.channel_events, home): offset})
    admin.close()
    worker = world.start()
    eventually(lambda: f"log/{home}" in str(worker.ready()))
    status, answer = worker.ready()
    assert status == 503
    assert "were deleted before they were folded" in answer["missing"][f"log/{home}"]
    assert world.positions()[home] == 0
    hole = accept_hole(world.settings, home)
    assert (hole.first_offset, hole.next_offset) == (0, offset)
    world.wait_folded()
    eventually(lambda: worker.ready()[0] == 200)
    with pytest.raises(NoHoleError):
        accept_hole(world.settings, home)


def test_a_topic_made_anew_is_refused_also_under_a_running_worker(world):
    worker = world.start()
    world.track("forsen", "main")
    world.wait_folded()
    admin = make_admin(world.settings.kafka, client_id="test")
    admin.delete_topics([world.channel_events])
    eventually(lambda: world.channel_events not in admin.list_topics())
    admin.close()
    apply_topics(world.settings.kafka)
    world.producer.close()
    world.__post_init__()
    world.track("forsen", "event")
    before = world.rows("SELECT * FROM channel_state")
    eventually(lambda: "made anew" in str(worker.ready()))
    assert worker.ready()[0] == 503
    assert world.rows("SELECT * FROM channel_state") == before
    worker.stop()
    again = world.start()
    eventually(lambda: "made anew" in str(again.ready()))
    assert world.rows("SELECT * FROM channel_state") == before


def test_a_log_that_ends_below_the_position_or_holds_another_record_is_refused(world):
    world.make_tables()
    world.track("forsen", "main")
    world.database.execute("UPDATE log_position SET position = 1000, last_offset = 999, last_sha256 = 'x'")
    worker = world.start()
    eventually(lambda: "truncated or restored" in str(worker.ready()))
    worker.stop()
    world.database.execute("UPDATE log_position SET position = 0, last_offset = NULL, last_sha256 = NULL")
    world.database.execute(
        "UPDATE log_position SET position = 1, last_offset = 0, last_sha256 = 'x' WHERE partition = %s", [_home(world)]
    )
    again = world.start()
    eventually(lambda: "is not the one that was folded" in str(again.ready()))
    assert world.cluster_of("forsen") is None


def test_what_postgres_refuses_becomes_a_dead_letter_and_the_rest_is_applied(world):
    world.make_tables()
    world.database.execute("ALTER TABLE channel_state ADD CHECK (cluster <> 'cursed')")
    for number in range(20):
        world.track(f"c{number}", "main", "cursed" if number == 7 else "aws")
    world.start()
    world.wait_folded()
    rows = world.rows("SELECT sqlstate, key, reason FROM dead_letter")
    assert [(row[0], bytes(row[1])) for row in rows] == [("23514", b"c7")]
    assert world.cluster_of("c7") == "main"
    assert {world.cluster_of(f"c{number}") for number in range(20) if number != 7} == {"aws"}
    world.prove()


def test_tables_of_other_rules_and_other_partitions_are_refused(world):
    world.make_tables()
    world.database.execute("UPDATE log_position SET rules_version = rules_version + 1")
    assert world.start().popen.wait(30) == 78
    world.database.execute("UPDATE log_position SET rules_version = rules_version - 1")
    world.database.execute("DELETE FROM log_position WHERE partition = 3")
    refused = world.start()
    assert refused.popen.wait(30) == 78
    assert "topics copy" in refused.events("process.failed")[-1]["reason"]


def _home(world) -> int:
    return next(partition for partition, end in world.ends().items() if end)


def test_tables_restored_from_an_old_backup_catch_up_and_nothing_is_published_twice(world):
    worker = world.start()
    for number in range(20):
        world.track(f"c{number}", "main")
    world.wait_folded()
    eventually(lambda: len(world.published()) == 20)
    assert worker.stop() == 0
    world.back_up()
    later = world.start()
    for number in range(20):
        world.append(f"c{number}", observed(f"c{number}", "aws", 2))
    world.wait_folded()
    eventually(lambda: len(world.published()) == 40)
    assert later.stop() == 0
    world.restore()
    assert world.cluster_of("c7") == "main"
    world.start()
    world.append("c7", observed("c7", "event", 3))
    world.wait_folded()
    world.prove()
    eventually(lambda: len(world.published()) == 41)
    versions = [one.data.version for one in world.published() if one.subject == "c7"]
    assert versions == [1, 2, 3]
    world.prove()
