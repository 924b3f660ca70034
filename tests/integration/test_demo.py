"""The demo on real parts: it holds, it holds while parts are killed, and it leaves nothing behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from serverchange.cli.demo.options import DemoOptions
from serverchange.cli.demo.progress import Progress
from serverchange.cli.demo.report import explain, to_json
from serverchange.cli.demo.run import demonstrate
from serverchange.cli.fleet import READY_TIMEOUT_S, Fleet
from serverchange.cli.transcripts import normalised_demo, read_transcripts
from serverchange.embedded.server import EmbeddedServer
from serverchange.simulator.settings import WrongCluster

ROOT = Path(__file__).parents[2]
RESTART_TIMEOUT_S = 60.0
DEMO_TIMEOUT_S = 200.0
SERVERCHANGE = (sys.executable, "-P", "-m", "serverchange.cli")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["serverchange", "clusterchange", "silent"])
def test_a_small_demo_holds_and_cleans_up(mode: str, tmp_path: Path) -> None:
    arguments = ("demo", "--channels", "60", "--seconds", "15", "--seed", "3", "--wrong-cluster", mode, "--json")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    ended = subprocess.run(
        [*SERVERCHANGE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEMO_TIMEOUT_S,
        env=environment,
    )

    assert ended.stdout, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, report["ok"], report["failed"]) == (0, True, []), ended.stderr
    assert report["channels"] == 60
    assert report["chat_sent"] == sum(
        report[part] for part in ("chat_received", "lost_undetected", "lost_in_handover", "lost_otherwise")
    )
    assert list(tmp_path.glob("serverchange-demo-*")) == []
    if mode == WrongCluster.SERVERCHANGE:
        (shown,) = read_transcripts((ROOT / "README.md").read_text("utf-8"))["demo"]
        assert normalised_demo(ended.stderr) == normalised_demo(shown.output), "run make transcripts"


async def kill_everything_once(fleet: Fleet) -> None:
    """Kill with -9, one after the other, all but the shard; wait each time until its successor works."""
    for name in ("poller", "materializer", "irc-listener", "state-api"):
        starts = fleet.supervisor.starts(name)
        fleet.supervisor.kill(name)
        await fleet.supervisor.wait_started(name, starts + 1, timeout_s=RESTART_TIMEOUT_S)
        await fleet.supervisor.wait_ready([name], timeout_s=READY_TIMEOUT_S)
    for server in (fleet.stack.postgres, fleet.stack.kafka):
        await _kill_server(fleet, server)
    await fleet.supervisor.wait_ready(
        [name for name in fleet.supervisor.names if name != "simulator"], timeout_s=READY_TIMEOUT_S
    )


async def _kill_server(fleet: Fleet, server: EmbeddedServer) -> None:
    restarts, pid = fleet.server_restarts, server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await fleet.wait_server_restarts(restarts + 1, timeout_s=RESTART_TIMEOUT_S)


async def test_the_demo_holds_while_every_part_is_killed(tmp_path: Path) -> None:
    options = DemoOptions(
        channels=60, seed=5, seconds=60.0, wrong_cluster=WrongCluster.SERVERCHANGE, data_dir=tmp_path / "demo"
    )
    with Progress(Console(stderr=True), options.seconds) as progress:
        outcome = await demonstrate(options, progress, kill_everything_once)

    assert outcome.good, (to_json(outcome.findings, outcome.checks, options), explain(outcome.findings))
    assert outcome.findings.moves > 60


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_ended_leaves_no_process_behind(signum: int, code: int, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*SERVERCHANGE, "demo", "--channels", "20", "--seconds", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert demo.stderr is not None
        assert any("all joined" in line for line in demo.stderr), "it ended before the script began"
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) >= 8
        demo.send_signal(signum)
        assert demo.wait(RESTART_TIMEOUT_S) == code
    finally:
        demo.kill()
        demo.wait()

    _, alive = psutil.wait_procs(family, timeout=RESTART_TIMEOUT_S)
    assert alive == []
    if signum != signal.SIGKILL:
        assert list(tmp_path.glob("serverchange-demo-*")) == []


async def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "something").touch()
    ended = await asyncio.create_subprocess_exec(
        *SERVERCHANGE, "demo", "--data", str(folder), stderr=subprocess.PIPE, cwd=tempfile.gettempdir()
    )
    _, error = await ended.communicate()
    assert ended.returncode == 2
    assert b"is not empty" in error
