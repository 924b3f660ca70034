"""Every running service exposes what dashboards and alerts ask for, where Prometheus looks for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serverchange.adapters.settings import Settings
from serverchange.cli.processes import SERVICES
from serverchange.cli.supervised import SUPERVISOR_FD_VARIABLE
from serverchange.embedded.ports import choose_ports

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
OWNED, _OWNER = os.pipe()
"""Processes that hold the reading end stop when this one is gone, however it went."""
SERIES = re.compile(r"\b(?:serverchange|process)_\w+")

pytestmark = pytest.mark.slow


def asked_series() -> set[str]:
    """Return the names of all series that a panel, an annotation or an alert asks for."""
    expressions = [
        rule["expr"]
        for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    for path in (ROOT / "deploy/grafana/dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            expressions += [target["expr"] for target in panel.get("targets", [])]
    return set(SERIES.findall(" ".join(expressions)))


@pytest.fixture
def exposed(settings: Settings, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run every service, each with nothing but its settings, and return what each exposes; the API on both ports."""
    ports = choose_ports(len(SERVICES) + 1)
    places = dict(zip((*(one.command for one in SERVICES), "state-api, own port"), ports, strict=True))
    processes = [_start(settings, one.command, places, tmp_path) for one in SERVICES]
    try:
        yield {name: _metrics(port, processes) for name, port in places.items()}
    finally:
        for process in processes:
            process.terminate()
        _, alive = psutil.wait_procs([psutil.Process(one.pid) for one in processes if one.poll() is None], 10)
        for process in alive:
            process.kill()


def _start(settings: Settings, name: str, ports: dict[str, int], folder: Path) -> subprocess.Popen[bytes]:
    own = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": settings.kafka.topic_prefix,
        "KAFKA_PARTITIONS": str(settings.kafka.partitions),
        "POSTGRES_DSN": settings.postgres.dsn.get_secret_value(),
        "PLATFORM_API_URL": "http://127.0.0.1:1",
        "PROCESS_HEALTH_PORT": str(ports[name]),
        "PROCESS_STATE_DIR": str(folder / name),
        "API_PORT": str(ports["state-api, own port"]),
    }
    (folder / name).mkdir()
    log = (folder / f"{name}.log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "serverchange.cli", name],
        stdout=log,
        stderr=log,
        env={
            **os.environ,
            **{f"SERVERCHANGE_{key}": value for key, value in own.items()},
            SUPERVISOR_FD_VARIABLE: str(OWNED),
        },
        pass_fds=[OWNED],
    )


def _metrics(port: int, processes: list[subprocess.Popen[bytes]]) -> str:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        assert [one.returncode for one in processes if one.poll() is not None] == []
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.2)  # another process's port: nothing here can be awaited
        else:
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            return answer.text


def test_every_series_of_panels_and_alerts_is_exposed_by_every_running_service(exposed: dict[str, str]) -> None:
    asked = asked_series()
    assert len(asked) > 20
    for name, text in exposed.items():
        assert sorted(asked - _names(text)) == [], name


def _names(text: str) -> set[str]:
    """Return the names of the series in a text, with or without a sample: TYPE lines name those that wait for one."""
    names = set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE))
    for base, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        names |= {f"{base}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {base}
    return names
