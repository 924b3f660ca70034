"""The Node.js subscriber, which knows the JSON Schema of the event alone, reads what we write."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest
from filelock import FileLock

from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CLUSTER_CHANGES

sys.path.insert(0, str(Path(__file__).parents[2] / "peers"))

from node_packages import NODE, RegistryUnreachableError, npm_ci

from .conftest import Topics, moved

ROOT: Final = Path(__file__).parents[3]
EXAMPLE: Final = ROOT / "examples" / "nodejs"
SCHEMA: Final = Path("schemas/generated/cluster.changed.v1.schema.json")


@pytest.fixture(scope="session")
def program() -> Path:
    """A copy of the example with its locked packages, installed once for all runs of this checkout."""
    digest = hashlib.sha256((EXAMPLE / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = ROOT / ".cache" / f"nodejs-{digest}"
    folder = cache / "examples" / "nodejs"
    folder.mkdir(parents=True, exist_ok=True)
    (cache / SCHEMA).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "install.lock"):
        shutil.copy(ROOT / SCHEMA, cache / SCHEMA)
        for name in ("package.json", "package-lock.json", "read_changes.mjs"):
            shutil.copy(EXAMPLE / name, folder)
        if not (cache / "installed").exists():
            _install(folder)
            (cache / "installed").touch()
    return folder / "read_changes.mjs"


def _install(folder: Path) -> None:
    try:
        npm_ci(folder, wanted="Node.js subscriber to run")
    except RegistryUnreachableError as error:
        pytest.skip(str(error))


async def test_a_subscriber_in_nodejs(kafka: KafkaSettings, topics: Topics, program: Path) -> None:
    await topics.change(moved("forsen", "main", 1, what="first-seen", previous=None))
    running = await asyncio.create_subprocess_exec(
        NODE,
        program,
        kafka.bootstrap_servers,
        topic_name(kafka, CLUSTER_CHANGES),
        stdout=asyncio.subprocess.PIPE,
        cwd=program.parent,
    )
    assert running.stdout is not None
    try:
        async with asyncio.timeout(90):
            assert (await running.stdout.readline()).decode() == "forsen: first-seen, - -> main\n"
            await topics.change(moved("forsen", "main", 1), moved("forsen", "aws", 2))
            assert (await running.stdout.readline()).decode() == "forsen: moved, main -> aws\n"
    finally:
        running.kill()
        await running.wait()
