"""Whatever ends the process that owns the servers, they end too, and a start on the same data works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.postgres import EmbeddedPostgres
from serverchange.embedded.stack import EmbeddedStack

DEADLINE_S = 60

OWNER = """
import json, os, sys, time
from pathlib import Path
from serverchange.embedded.stack import EmbeddedStack

with EmbeddedStack(Path(sys.argv[1])) as stack:
    print(json.dumps({"kafka": stack.kafka.pid, "postgres": stack.postgres.pid}), flush=True)
    if "fork" in sys.argv and os.fork() == 0:
        os.close(1)
        sys.stdin.read()  # holds whatever the owner held, until the test ends
        os._exit(0)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        pass
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that runs a stack, with all that it started."""

    process: subprocess.Popen[str]
    servers: list[psutil.Process]
    keepers: list[psutil.Process]


@pytest.fixture
def start_owner(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> Owner:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path / "data"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        mains = [psutil.Process(pids[name]) for name in ("kafka", "postgres")]
        keepers = [parent for main in mains if (parent := main.parent()) is not None]
        servers = [*mains, *(child for main in mains for child in main.children(recursive=True))]
        return Owner(process, servers, keepers)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end_by(how: str, owner: Owner) -> None:
    if how == "kill -9 of all":
        for process in [*owner.keepers, *owner.servers]:
            with suppress(psutil.NoSuchProcess):  # a backend ends by itself when its postmaster does
                process.kill()
        owner.process.kill()
    elif how == "kill -9 of the keepers":
        for process in owner.keepers:
            process.kill()
    elif how == "kill -9 of owner and keepers":
        owner.process.kill()
        for process in owner.keepers:
            process.kill()
    elif how == "Ctrl-C":  # the terminal signals the whole group
        os.killpg(owner.process.pid, signal.SIGINT)
    else:
        owner.process.send_signal(signal.Signals[how])


@pytest.mark.parametrize(
    "how",
    [
        "Ctrl-C",
        "SIGTERM",
        "SIGHUP",
        "SIGKILL",
        "kill -9 of owner and keepers",
        "kill -9 of the keepers",
        "kill -9 of all",
    ],
)
def test_no_process_is_left_after(how: str, start_owner: Callable[..., Owner]) -> None:
    owner = start_owner()
    end_by(how, owner)
    assert psutil.wait_procs(owner.servers, timeout=DEADLINE_S)[1] == []
    if how == "kill -9 of the keepers":  # their owner lives, and has not looked after them yet
        owner.process.kill()
        owner.process.wait()
    assert psutil.wait_procs(owner.keepers, timeout=DEADLINE_S)[1] == []


@pytest.mark.parametrize("how", ["SIGKILL", "kill -9 of all"])
def test_the_data_can_be_used_again_after(how: str, start_owner: Callable[..., Owner], tmp_path: Path) -> None:
    owner = start_owner()
    end_by(how, owner)
    # It ends, yet nobody has waited for it: a zombie still has its pid. Its servers may still be stopping.
    os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)
    with EmbeddedStack(tmp_path / "data") as stack, psycopg.connect(stack.postgres.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open")
def test_a_forked_child_that_outlives_the_owner_keeps_no_server_alive(start_owner: Callable[..., Owner]) -> None:
    owner = start_owner("fork")
    owner.process.kill()
    assert psutil.wait_procs([*owner.servers, *owner.keepers], timeout=DEADLINE_S)[1] == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_owner_ended_while_it_starts_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "data")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    owner = psutil.Process(process.pid)
    while not (children := owner.children(recursive=True)):
        assert process.poll() is None
    process.send_signal(how)
    process.wait()
    assert psutil.wait_procs(children, timeout=DEADLINE_S)[1] == []
    with EmbeddedStack(tmp_path / "data") as stack:
        assert stack.kafka.pid is not None


def test_another_process_is_refused_with_the_pid_of_the_owner(
    start_owner: Callable[..., Owner], tmp_path: Path
) -> None:
    owner = start_owner()
    with pytest.raises(EmbeddedError, match=f"in use by the process with pid {owner.process.pid}"):
        EmbeddedPostgres(tmp_path / "data" / "postgres").start()
    with pytest.raises(EmbeddedError, match=f"in use by the process with pid {owner.process.pid}"):
        EmbeddedStack(tmp_path / "data").start()
    assert all(server.is_running() for server in owner.servers[:2])


def test_if_one_server_cannot_start_the_other_is_stopped_again(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres"):
        stack = EmbeddedStack(tmp_path)
        with pytest.raises(EmbeddedError, match="postgres data folder"):
            stack.start()
    assert stack.kafka.pid is None
    assert stack.postgres.pid is None
