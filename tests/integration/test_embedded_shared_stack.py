"""Several processes share one Kafka and PostgreSQL; whoever of them is killed, the rest go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from serverchange.embedded.shared_stack import shared_stack

DEADLINE_S = 60

HOLDER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from serverchange.embedded.shared_stack import shared_stack

with shared_stack("tests", base_dir=Path(sys.argv[1])) as stack:
    print(json.dumps(asdict(stack), default=str), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Holder:
    process: subprocess.Popen[str]

    def endpoint(self) -> dict[str, object]:
        """Wait until it is in; what it was given."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def leave(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Callable[[], Holder]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> Holder:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return Holder(process)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def processes_of(endpoint: dict[str, object]) -> list[psutil.Process]:
    """The host and all below it."""
    host = psutil.Process(endpoint["host_pid"])  # type: ignore[arg-type]
    return [host, *host.children(recursive=True)]


def assert_serves(endpoint: dict[str, object]) -> None:
    with psycopg.connect(endpoint["postgres"]["dsn"]) as connection:  # type: ignore[index]
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert psutil.pid_exists(endpoint["kafka"]["pid"])  # type: ignore[index]


def test_all_that_enter_share_and_the_last_one_out_stops(enter: Callable[[], Holder]) -> None:
    holders = [enter() for _ in range(3)]
    endpoints = [holder.endpoint() for holder in holders]
    assert endpoints[0] == endpoints[1] == endpoints[2]
    running = processes_of(endpoints[0])

    holders[0].leave()
    holders[1].leave()
    assert_serves(endpoints[2])
    holders[2].leave()
    assert psutil.wait_procs(running, timeout=DEADLINE_S)[1] == []


def test_a_killed_holder_takes_nobody_along_and_leaves_nothing(enter: Callable[[], Holder]) -> None:
    first = enter()
    endpoint = first.endpoint()
    second = enter()
    assert second.endpoint() == endpoint
    running = processes_of(endpoint)

    first.process.kill()  # the one that started them
    first.process.wait()
    assert_serves(endpoint)
    third = enter()
    assert third.endpoint() == endpoint
    second.process.kill()
    third.process.kill()
    assert psutil.wait_procs(running, timeout=DEADLINE_S)[1] == []


def test_after_the_host_was_killed_the_next_one_in_gets_new_servers(enter: Callable[[], Holder]) -> None:
    stays = enter()
    old = stays.endpoint()
    running = processes_of(old)
    running[0].kill()  # a zombie until the holder that started it ends: nobody waits for it before
    assert psutil.wait_procs(running[1:], timeout=DEADLINE_S)[1] == []

    new = enter().endpoint()
    assert new["host_pid"] != old["host_pid"]
    assert_serves(new)


def test_a_holder_killed_while_the_servers_start_leaves_them_to_the_next(
    enter: Callable[[], Holder], tmp_path: Path
) -> None:
    first = enter()
    while not (tmp_path / "tests" / "host.log").exists():
        assert first.process.poll() is None
    first.process.kill()
    first.process.wait()
    assert_serves(enter().endpoint())


def test_who_enters_while_the_last_one_leaves_is_served(enter: Callable[[], Holder]) -> None:
    for _ in range(2):
        holder = enter()
        holder.endpoint()
        holder.leave()
    late = enter()
    assert_serves(late.endpoint())


def test_within_a_process_the_addresses_are_values(tmp_path: Path) -> None:
    with shared_stack("tests", base_dir=tmp_path) as stack:
        assert stack.kafka.bootstrap_servers.startswith("127.0.0.1:")
        assert stack.postgres.dsn_for("other") == stack.postgres.dsn.removesuffix("serverchange") + "other"
        assert stack.host_pid != os.getpid()
        running = [psutil.Process(stack.host_pid), *psutil.Process(stack.host_pid).children(recursive=True)]
        assert (stack.data_dir / "kafka" / "kafka.log").is_file()
    assert psutil.wait_procs(running, timeout=DEADLINE_S)[1] == []
    assert not stack.data_dir.exists()
