"""The wheel without extras in somebody else's project: nothing but `serverchange.*`, and the SDK works with it alone.

The project has a `schemas.py` and a `services/` of its own, the very names of our source roots.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import KAFKA_HEADERS, ChangedData, ChangeKind, Channel, Cluster, ClusterChanged
from serverchange.topics import CLUSTER_CHANGES

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 50.0
BASE = {"serverchange", "pydantic", "pydantic-core", "kafka-python", "httpx"}
WITH_EXTRAS = {"psycopg", "faust-streaming", "aiokafka", "fastapi", "typer", "structlog", "prometheus-client", "jgo"}
UNREACHABLE = (
    "NewConnectionError",
    "Temporary failure in name resolution",
    "Connection refused",
    "Read timed out",
    "ConnectTimeoutError",
    "ProxyError",
    "SSLError",
    "from versions: none",
)

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Project:
    """A foreign project and its virtual environment."""

    folder: Path
    python: Path
    wheel: Path

    def run(self, *arguments: str) -> str:
        """Run its Python in its folder, as its user would, and return what it prints."""
        ended = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run pip on its environment."""
        return subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * TIMEOUT_S,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Ours without what points at our own checkout or environment."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("somebody")
    wheel = _build(folder / "dist")
    made = Project(folder / "project", folder / "venv" / "bin" / "python", wheel)
    (made.folder / "services").mkdir(parents=True)
    (made.folder / "schemas.py").write_text("OWNER = 'somebody'\n")
    (made.folder / "services" / "__init__.py").write_text("")
    (made.folder / "services" / "billing.py").write_text("OWNER = 'somebody'\n")
    # Our own pip works on its environment from outside: to install one there takes longer than all the rest.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=TIMEOUT_S)
    _install(made, wheel)
    return made


def _build(folder: Path) -> Path:
    return Path(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))))


def _install(project: Project, wheel: Path) -> None:
    options = ["--no-compile", "--retries", "1", "--timeout", "10", "--constraint", str(ROOT / "constraints.txt")]
    ended = project.pip("install", *options, str(wheel))
    if ended.returncode and any(sign in ended.stderr for sign in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {ended.stderr.strip().splitlines()[-1]}")
    assert ended.returncode == 0, ended.stderr


def test_the_wheel_installs_nothing_but_the_namespace(project: Project) -> None:
    names = zipfile.ZipFile(project.wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"serverchange"}
    assert "serverchange/__init__.py" not in names
    assert "serverchange/py.typed" in names
    assert any(name.endswith(".sql") for name in names)
    assert "serverchange/embedded/kafka.lock.toml" in names


def test_the_base_install_is_whole_and_has_none_of_the_extras(project: Project) -> None:
    assert project.pip("check").stdout.strip() == "No broken requirements found."
    listed = project.pip("list", "--format", "freeze").stdout
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in listed.splitlines()}
    assert installed >= BASE
    assert installed & WITH_EXTRAS == set()


def test_contracts_and_sdk_import_beside_a_projects_own_schemas_and_services(project: Project) -> None:
    said = project.run(
        "-c",
        "import schemas, services.billing\n"
        "import serverchange.events, serverchange.topics, serverchange.views, serverchange.platform\n"
        "import serverchange.client\n"
        "from serverchange.client import ChannelMap, Changes, ChatLines, StateClient\n"
        "print(schemas.OWNER, services.billing.OWNER, serverchange.events.__file__)",
    )
    ours, theirs, where = said.split(" ", 2)
    assert (ours, theirs) == ("somebody", "somebody")
    assert str(project.python.parents[1]) in where


def test_the_command_says_which_extra_it_needs(project: Project) -> None:
    ended = subprocess.run(
        [project.python.with_name("serverchange"), "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env=project.environment,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: the command needs more than the SDK: pip install 'serverchange[services]'\n"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_needs_the_base_install_alone(project: Project, example: Path) -> None:
    project.run("-c", f"import runpy; runpy.run_path({str(example)!r}, run_name='example')")


@pytest.fixture
def moved(kafka: KafkaSettings) -> KafkaSettings:
    """A fleet's topics with one decision: forsen is on aws."""
    producer = make_producer(kafka, client_id="test")
    try:
        event = _change(1, None, "aws")
        topic = topic_name(kafka, CLUSTER_CHANGES)
        producer.send(topic, key=b"forsen", value=event.to_record(), headers=list(KAFKA_HEADERS)).get(timeout=30)
    finally:
        producer.close()
    return kafka


def _change(version: int, previous: str | None, cluster: str) -> ClusterChanged:
    now = datetime.now(UTC)
    data = ChangedData(
        what=ChangeKind.MOVED if previous else ChangeKind.FIRST_SEEN,
        previous=Cluster(previous) if previous else None,
        cluster=Cluster(cluster),
        generation=1,
        version=version,
        since=now,
    )
    return ClusterChanged(
        id=f"00000000-0000-5000-8000-{version:012}",
        source="serverchange/materializer/test",
        time=now,
        subject=Channel("forsen"),
        data=data,
    )


def test_a_channel_map_reads_a_real_topic_from_the_base_install(project: Project, moved: KafkaSettings) -> None:
    script = project.folder / "whereis.py"
    script.write_text(
        "import asyncio, sys\n"
        "import schemas, services.billing\n"
        "from serverchange.client import ChannelMap\n"
        "async def main():\n"
        "    async with ChannelMap(sys.argv[1], topic_prefix=sys.argv[2]) as channels:\n"
        "        await channels.ready()\n"
        "        print(channels['#Forsen'].cluster)\n"
        "asyncio.run(main())\n"
    )
    assert project.run("whereis.py", moved.bootstrap_servers, moved.topic_prefix) == "aws"


@pytest.mark.parametrize(
    ("example", "topic_argument", "said"),
    [
        ("read_changes.py", ["{topic}"], "forsen: first-seen, None -> aws"),
        ("alert_on_words.py", ["giveaway", "{prefix}"], "listening"),
    ],
)
def test_an_example_runs_from_the_base_install(
    project: Project, moved: KafkaSettings, example: str, topic_argument: list[str], said: str
) -> None:
    names = {"topic": topic_name(moved, CLUSTER_CHANGES), "prefix": moved.topic_prefix}
    arguments = [moved.bootstrap_servers, *(one.format(**names) for one in topic_argument)]
    lines = _first_lines(project, str(ROOT / "examples" / example), *arguments)
    assert next(lines) == said
    lines.close()


def _first_lines(project: Project, *arguments: str) -> Iterator[str]:
    """Yield a program's lines as they come; it is killed at the end, or when it has said nothing for too long."""
    with subprocess.Popen(
        [project.python, *arguments],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        watchdog = threading.Timer(TIMEOUT_S, running.kill)
        watchdog.start()
        try:
            assert running.stdout is not None
            for line in running.stdout:
                yield line.strip()
        finally:
            watchdog.cancel()
            running.kill()
