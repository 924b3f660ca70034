"""The supervisor keeps real processes running, gives hopeless ones up, and leaves none behind."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serverchange.cli import supervisor as supervision
from serverchange.cli.faults import UnavailableFault
from serverchange.cli.supervisor import Happening, ProcessSpec, Report, Supervisor, backoff_s, rotate_log

DEADLINE_S = 30.0

WATCHED = "from serverchange.cli.supervised import end_with_supervisor; end_with_supervisor();"


def running(code: str, name: str = "worker", *, ready_url: str | None = None) -> ProcessSpec:
    return ProcessSpec(name, (), dict(os.environ), ready_url, command=(sys.executable, "-c", code))


SLEEPER = running("import time; print('up', flush=True); time.sleep(600)")


class Told:
    """What the supervisor told, awaitable."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._more = asyncio.Event()

    def __call__(self, report: Report) -> None:
        self.reports.append(report)
        self._more.set()

    async def wait(self, happening: Happening, count: int = 1) -> Report:
        async with asyncio.timeout(DEADLINE_S):
            while len(found := [one for one in self.reports if one.happening is happening]) < count:
                self._more.clear()
                await self._more.wait()
        return found[count - 1]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def supervisor(tmp_path: Path, told: Told) -> AsyncIterator[Supervisor]:
    async with Supervisor(tmp_path / "logs", tell=told) as supervisor:
        yield supervisor


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], DEADLINE_S)[0])
    finally:
        os.close(descriptor)


async def test_a_killed_process_is_started_again(supervisor: Supervisor, told: Told) -> None:
    supervisor.start(SLEEPER)
    first = await told.wait(Happening.STARTED)

    supervisor.kill("worker")

    second = await told.wait(Happening.STARTED, count=2)
    exited = await told.wait(Happening.EXITED)
    assert exited.code == -signal.SIGKILL
    assert first.pid != second.pid
    assert supervisor.starts("worker") == 2


async def test_a_process_whose_settings_are_wrong_is_given_up_at_once(supervisor: Supervisor, told: Told) -> None:
    supervisor.start(running("import sys; print('set SERVERCHANGE_X', file=sys.stderr); sys.exit(78)"))

    await told.wait(Happening.GIVEN_UP)

    assert supervisor.failed.is_set()
    assert supervisor.failure is not None
    assert "set SERVERCHANGE_X" in supervisor.failure
    with pytest.raises(UnavailableFault, match="given up"):
        await supervisor.wait_ready(timeout_s=DEADLINE_S)


async def test_a_process_that_never_lasts_is_given_up(
    supervisor: Supervisor, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(supervision, "RESTARTS_MAX", 2)

    supervisor.start(running("import sys; sys.exit(70)"))

    await told.wait(Happening.GIVEN_UP)
    assert supervisor.starts("worker") == 3


def test_the_back_off_doubles_up_to_its_limit() -> None:
    assert [backoff_s(ends) for ends in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert backoff_s(500) == supervision.BACKOFF_MAX_S


async def test_a_stop_ends_even_a_process_that_ignores_sigterm_and_its_children(
    supervisor: Supervisor, told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervision, "STOP_TIMEOUT_S", 0.4)
    grandchild = tmp_path / "grandchild"
    os.mkfifo(grandchild)
    stubborn = (
        "import signal, subprocess, sys, time, pathlib;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"pathlib.Path({str(grandchild)!r}).write_text(str(child.pid));"
        "time.sleep(600)"
    )
    supervisor.start(running(stubborn))
    started = await told.wait(Happening.STARTED)
    grandchild_pid = int(await asyncio.to_thread(grandchild.read_text))

    await supervisor.stop()

    assert started.pid is not None
    assert not is_alive(started.pid)
    assert await asyncio.to_thread(wait_gone, grandchild_pid)
    assert supervisor.names == ()


async def test_a_stop_does_not_wait_for_the_next_start(supervisor: Supervisor, told: Told) -> None:
    supervisor.start(running("import sys; sys.exit(70)"))
    await told.wait(Happening.EXITED)

    async with asyncio.timeout(DEADLINE_S):
        await supervisor.stop()

    assert supervisor.names == ()


async def test_output_goes_to_the_process_own_log(supervisor: Supervisor, told: Told) -> None:
    supervisor.start(running("import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(78)"))

    await told.wait(Happening.GIVEN_UP)

    assert supervisor.log("worker").read_text().split() == ["out", "err"]


async def test_waiting_for_readiness_says_what_the_process_waits_for(supervisor: Supervisor) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"kafka is away"
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        supervisor.start(running("import time; time.sleep(600)", ready_url=f"http://127.0.0.1:{port}/readyz"))

        with pytest.raises(UnavailableFault, match="worker waits: kafka is away"):
            await supervisor.wait_ready(timeout_s=1.0)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_supervisor_that_is_killed(signum: signal.Signals, tmp_path: Path) -> None:
    child = f"{WATCHED} import time; print('up', flush=True); time.sleep(600)"
    parent = f"""
import asyncio, os, sys
from pathlib import Path
from serverchange.cli.supervisor import ProcessSpec, Supervisor

async def main():
    async with Supervisor(Path({str(tmp_path)!r}), tell=lambda report: print(report.pid, flush=True)) as supervisor:
        supervisor.start(ProcessSpec("worker", (), dict(os.environ), command=(sys.executable, "-c", {child!r})))
        await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as supervising:
        assert supervising.stdout is not None
        pid = int(supervising.stdout.readline())
        log = tmp_path / "worker.log"
        deadline = time.monotonic() + DEADLINE_S
        while "up" not in log.read_text():
            assert time.monotonic() < deadline
        supervising.send_signal(signum)
        supervising.wait()

    assert wait_gone(pid)


def test_a_long_log_is_set_aside_while_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LOG_BYTES_MAX", 10)
    log = tmp_path / "poller.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a longer line\n")
        rotate_log(log)
        writer.write(b"next\n")

    assert log.read_bytes() == b"next\n"
    assert (tmp_path / "poller.log.1").read_bytes() == b"a longer line\n"
