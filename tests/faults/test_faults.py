"""A short run under a nemesis must end without a violation; each planted bug must be found.

`make faults SECONDS=7200` runs long. Each test prints its seed; a seed that failed becomes a test.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from fault_arena import Arena, Load, _event
from fault_checker import Sampler, check, take_sample, wait_caught_up
from fault_run import run

from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.events import KAFKA_HEADERS, ChannelTracked, ClusterObserved, parse_change
from serverchange.materializer.fault_points import FAULT_POINTS
from serverchange.materializer.verify import read_topic
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES

FAULTS = 20
"""Of the short run; it takes one to three minutes."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_under_a_nemesis_everything_is_exact(tmp_path: Path):
    seed = time.time_ns() % 1_000_000
    sys.stdout.write(f"seed {seed}\n")
    verdict = run(tmp_path, seed, 200, faults=FAULTS, between_s=(0.5, 4.0), pause_s=(1.0, 12.0))
    sys.stdout.write(f"{verdict}\n")
    assert not verdict.violations
    assert sum(verdict.faults.values()) >= FAULTS


@pytest.mark.parametrize(
    "bug", ["stale-rule-off", "notice-without-known-after", "poison-swallowed", "commit-before-write", "hole-accepted"]
)
def test_a_bug_that_makes_tables_wrong_is_found(tmp_path: Path, bug: str):
    """Some need no fault at all: the samples and the fold tell."""
    verdict = run(tmp_path, 1, 12, workers=1, bugs=[bug], only=("cut",), catch_up_s=30)
    sys.stdout.write(f"{verdict}\n")
    assert verdict.violations


def test_lost_fetches_do_no_harm(tmp_path: Path):
    """What the planted `hole-accepted` rests on: losing messages between broker and agent is no violation."""
    verdict = run(tmp_path, 1, 12, workers=1, bugs=["lossy"], only=("cut",))
    assert not verdict.violations, str(verdict)


def test_a_seek_too_far_is_found_as_standing_still(tmp_path: Path):
    verdict = run(tmp_path, 1, 5, workers=1, bugs=["seek-one-too-far"], only=("cut",), catch_up_s=15)
    assert any("no progress" in violation for violation in verdict.violations)


def test_publishing_from_memory_is_found_when_a_worker_dies_before_it_publishes(tmp_path: Path):
    assert any("published" in violation for violation in _killed_at(tmp_path, "after-commit", ["publish-from-memory"]))


def test_publishing_before_the_commit_is_found_when_a_worker_dies_in_between(tmp_path: Path):
    violations = _killed_at(tmp_path, "before-commit", ["publish-before-commit"])
    assert any("published versions" in violation for violation in violations)


@pytest.mark.parametrize("bugs", [[], ["no-fence"], ["read-before-fence"]], ids=["sound", "no-fence", "read-first"])
def test_a_worker_that_was_paused_while_publishing_is_refused(tmp_path: Path, bugs: list[str]):
    """Random faults do not find a missing fence. A reads what to publish and is paused; B takes over and publishes it
    and something newer; A wakes, deaf to the loss of its partitions: fenced it is refused, unfenced its old version is
    the newest record."""
    arena = Arena(tmp_path, 1)
    try:
        paused = arena.add_worker(fault_point="outbox-read:1:pause", bugs=[*bugs, "deaf"])
        _append(arena, ("forsen", "main", 1), track=True)
        _wait(lambda: _is_stopped(paused.popen.pid))
        successor = arena.add_worker(bugs=[bug for bug in bugs if bug == "no-fence"])
        _append(arena, ("forsen", "aws", 2))
        _append(arena, ("forsen", "event", 3))
        _wait(lambda: _versions(arena) == [1, 2, 3])
        arena.signal(paused, signal.SIGCONT)
        _wait(lambda: _has_had_its_say(arena, paused))
        arena.retire(paused)
        _append(arena, ("xqc", "main", 1), track=True)
        assert wait_caught_up(arena, 60) is None
        violations = check(arena, [take_sample(arena)])
        sys.stdout.write(f"{violations}\n")
        assert bool(violations) == bool(bugs)
        assert successor.starts == 1
    finally:
        arena.close()


def _versions(arena: Arena) -> list[int]:
    records = read_topic(arena.settings.kafka, CLUSTER_CHANGES, None)
    return [parse_change(record.key, record.value).data.version for record in records]


def _has_had_its_say(arena: Arena, woken) -> bool:
    """The woken worker was refused, gave up, or published."""
    log = (arena.folder / f"worker-{woken.number}.log").read_text("utf-8", "replace")
    refused = any(event in log for event in ("outbox.fenced", "kafka.lost", "process.failed"))
    return refused or woken.starts > 1 or len(_versions(arena)) > 3


def _killed_at(folder: Path, point: str, bugs: list[str]) -> list[str]:
    """Load a worker that is killed at a named point the third time; return the violations once it has caught up."""
    arena = Arena(folder, 1, bugs=bugs)
    try:
        load, sampler = Load(arena, 300), Sampler(arena)
        armed = arena.add_worker(fault_point=f"{point}:3:kill")
        load.start()
        sampler.start()
        _wait(lambda: armed.starts > 1)
        load.stop()
        behind = wait_caught_up(arena, 20 if bugs else 60)
        sampler.stop()
        return [*([behind] if behind else []), *check(arena, sampler.samples)]
    finally:
        arena.close()


@pytest.mark.parametrize("point", [point for point in FAULT_POINTS if point != "seek"])
def test_a_kill_at_each_named_point_is_survived(tmp_path: Path, point: str):
    assert _killed_at(tmp_path, point, []) == []


def _append(arena: Arena, *observations: tuple[str, str, int], track: bool = False) -> None:
    producer = make_producer(arena.settings.kafka, client_id="test")
    topic = topic_name(arena.settings.kafka, CHANNEL_EVENTS)
    moment = "2026-05-01T00:00:00Z"
    for channel, cluster, asked_after in observations:
        if track:
            value = _event(ChannelTracked, channel, service="test")
            producer.send(topic, key=channel.encode(), value=value, headers=list(KAFKA_HEADERS))
        value = _event(
            ClusterObserved,
            channel,
            cluster=cluster,
            asked_after=asked_after,
            asked_at=moment,
            answered_at=moment,
            via="servers",
        )
        producer.send(topic, key=channel.encode(), value=value, headers=list(KAFKA_HEADERS))
    producer.flush()
    producer.close()


def _is_stopped(pid: int) -> bool:
    """Whether the process is stopped by SIGSTOP (Linux's state T in /proc)."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def _wait(look, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
