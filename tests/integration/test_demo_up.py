"""`serverchange up`: everything runs, heals, answers the command line, and stops without leaving anything behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from trace_collector import Collected, Collector, collecting

from serverchange.cli.transcripts import DOCUMENTS, Shell, normalised, read_transcripts
from serverchange.topics import ALL_TOPICS

ROOT = Path(__file__).parents[2]
SERVERCHANGE = (sys.executable, "-P", "-m", "serverchange.cli")
TIMEOUT_S = 90.0
CHANNEL = "streamer_000001"

pytestmark = pytest.mark.slow


class Up:
    """A running `serverchange up`."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self.folder = folder
        self.collector = collector
        self._process = subprocess.Popen(
            [*SERVERCHANGE, "up", "--simulator", "--channels", "40", "--data", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "SERVERCHANGE_KAFKA_PARTITIONS": "4",
                "SERVERCHANGE_RECONNECTOR_OVERLAP_S": "1",
                "SERVERCHANGE_PROCESS_TRACE_ENDPOINT": collector.url,
                "OTEL_BSP_SCHEDULE_DELAY": "200",
            },
        )
        assert self._process.stdout is not None
        self.said: list[str] = []
        for line in self._process.stdout:
            self.said.append(line)
            if "serverchange where" in line:
                return
        raise AssertionError("".join(self.said))

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Run a command against it, in a folder and an environment of somebody else's."""
        ended = subprocess.run(
            [*SERVERCHANGE, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**os.environ, "SERVERCHANGE_CONFIG": str(self.folder / "settings.toml")},
        )
        return ended.returncode, ended.stdout

    def family(self) -> list[psutil.Process]:
        """Return all processes below it."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def service(self, name: str) -> psutil.Process:
        """Return the process of a service."""
        return next(child for child in self.family() if child.cmdline()[-1:] == [name])

    def stop(self) -> int:
        """Ask it to stop and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with collecting() as collector:
        running = Up(tmp_path_factory.mktemp("up") / "data", collector)
        yield running
        family = running.family()
        assert running.stop() == 0
        _, alive = psutil.wait_procs(family, timeout=TIMEOUT_S)
    assert alive == []


def wait_settled(up: Up) -> dict[str, object]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        code, answer = up.ask("where", CHANNEL, "--json")
        found = json.loads(answer)["channels"] if answer else []
        if code == 0 and found and found[0]["status"] == "settled":
            return dict(found[0])
    raise AssertionError(f"{CHANNEL} is not settled: {answer}")


def test_a_channel_that_is_added_is_found_and_explained(up: Up) -> None:
    code, written = up.ask("channels", "add", CHANNEL, "--service", "mine", "--label", "partner", "--json")
    assert (code, json.loads(written)[0]["channel"]) == (0, CHANNEL)

    assert wait_settled(up)["services"] == ["mine"]

    code, reasons = up.ask("why", CHANNEL, "--json")
    assert code == 0
    assert json.loads(reasons)["decided"]["decided_by"]["event"]["type"] == "tv.serverchange.cluster.observed.v1"
    lookup = json.loads(reasons)["lookup"]
    assert (lookup["channel"], lookup["poller"]) == (CHANNEL, "poller-1")
    assert lookup["score"] == max(lookup["sources"].values())
    assert f"{CHANNEL}\t" in up.ask("channels", "list", "--label", "partner")[1]
    assert json.loads(up.ask("status", "--json")[1])["ready"] is True
    assert up.ask("topics", "plan")[1].count("keep") == len(ALL_TOPICS)


@pytest.mark.timeout(600)
def test_what_the_documents_show_of_a_session_is_what_is_printed(up: Up) -> None:
    shell = Shell(up.folder / "settings.toml")
    texts = [(ROOT / name).read_text("utf-8") for name in DOCUMENTS if name != "README.md"]
    steps = [step for text in texts for found in read_transcripts(text).values() for step in found]
    assert len(steps) > 5
    for step in steps:
        assert normalised(shell.run(step)) == normalised(step.output), f"{step.command}: run make transcripts"


def test_an_unknown_channel_is_an_exit_code_of_one(up: Up) -> None:
    assert up.ask("where", "nobody_at_all")[0] == 1


def test_a_pin_wins_and_its_history_is_kept(up: Up) -> None:
    up.ask("channels", "add", CHANNEL, "--service", "mine", "--label", "partner")
    wait_settled(up)

    up.ask("channels", "pin", CHANNEL, "aws")

    deadline = time.monotonic() + TIMEOUT_S
    while (newest := json.loads(up.ask("history", CHANNEL, "--json")[1])[0])["cluster"] != "aws":
        assert time.monotonic() < deadline
    assert newest["what"] == "moved"


def test_one_trace_leads_from_the_notice_to_the_end_of_the_handover(up: Up) -> None:
    other = "streamer_000002"
    control = json.loads((up.folder / "simulator" / "addresses.json").read_text())["control_url"]
    up.ask("channels", "add", other, "--service", "mine")
    up.collector.wait_for(
        lambda spans: [one for one in spans if (one.name, one.channel) == ("handover", other)], TIMEOUT_S
    )

    httpx.post(f"{control}/control/api-lag", json={"mean_minutes": 0, "max_minutes": 0}).raise_for_status()
    httpx.post(f"{control}/control/live", json={"channel": other, "live": False}).raise_for_status()
    here = json.loads(up.ask("where", other, "--json")[1])["channels"][0]["cluster"]
    target = "aws" if here != "aws" else "main"
    httpx.post(f"{control}/control/move", json={"channel": other, "cluster": target}).raise_for_status()

    def whole(spans: list[Collected]) -> list[Collected] | None:
        heard = [one.trace_id for one in spans if one.name == "notice.heard" and one.channel == other]
        traces = [[one for one in spans if one.trace_id == trace_id] for trace_id in heard]
        return next((trace for trace in traces if any(one.name == "handover" for one in trace)), None)

    trace = up.collector.wait_for(whole, TIMEOUT_S)
    by_name = {one.name: one for one in sorted(trace, key=lambda one: -one.started_ns)}
    notice, lookup, handover = by_name["notice.heard"], by_name["lookup"], by_name["handover"]
    assert (notice.service, notice.parent_id) == ("reconnector", "")
    assert (lookup.service, lookup.parent_id) == ("poller", notice.span_id)
    assert {by_name[name].service for name in ("fold", "publish")} == {"materializer"}
    assert {by_name[name].parent_id for name in ("fold", "publish")} == {lookup.span_id}
    assert (handover.service, handover.parent_id) == ("reconnector", lookup.span_id)
    assert notice.started_ns <= lookup.started_ns <= lookup.ended_ns <= handover.ended_ns


def test_the_tables_are_the_fold_of_the_log(up: Up) -> None:
    code, report = up.ask("verify", "--json")
    assert (code, json.loads(report)["ok"]) == (0, True)
    code, report = up.ask("rebuild", "--json")
    assert (code, json.loads(report)["swapped"], json.loads(report)["altered"]) == (0, True, 0)
    assert up.ask("log", "accept-hole", "--partition", "0")[0] == 2


def test_a_killed_service_is_started_again(up: Up) -> None:
    before = up.service("state-api")
    before.kill()

    deadline = time.monotonic() + TIMEOUT_S
    while up.ask("status")[0] != 0:
        assert time.monotonic() < deadline
    assert up.service("state-api").pid != before.pid


def test_secrets_stand_in_no_process_list_and_in_no_log(up: Up) -> None:
    token = (up.folder / "api-token").read_text()
    shown = [" ".join(child.cmdline()) for child in up.family()]
    assert [line for line in shown if token in line or "simulated-token" in line] == []
    logs = [log for log in (up.folder / "logs").glob("*.log") if log.stem != "simulator"]
    assert len(logs) == 5
    assert [log for log in logs if token in log.read_text() or "simulated-token" in log.read_text()] == []
