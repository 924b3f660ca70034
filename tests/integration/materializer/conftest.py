"""Lets the tests of this folder import what they share, and gives each its own world."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from materializer_world import World

from serverchange.adapters.settings import Settings


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Iterator[World]:
    """Servers, topics and a database of this test's own; its processes are ended."""
    made = World(settings, tmp_path)
    yield made
    made.close()
