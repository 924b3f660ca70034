"""The AsyncAPI project's own parser accepts the generated document, and would not accept any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serverchange.topics import ALL_TOPICS

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "schemas" / "generated" / "asyncapi.json"
UNREACHABLE = 77


def check(document: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "asyncapi" / "check.py"), str(document)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    if finished.returncode == UNREACHABLE:
        pytest.skip(finished.stderr.strip())
    return finished


@pytest.mark.timeout(600)
def test_the_parser_accepts_the_document() -> None:
    finished = check(DOCUMENT)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"accepted: {len(ALL_TOPICS)} channels, " in finished.stdout


@pytest.mark.timeout(600)
def test_the_parser_refuses_a_message_that_is_not_there(tmp_path: Path) -> None:
    document = json.loads(DOCUMENT.read_text("utf-8"))
    del document["components"]["messages"]["cluster.changed.v1"]
    broken = tmp_path / "asyncapi.json"
    broken.write_text(json.dumps(document))
    assert check(broken).returncode == 1
