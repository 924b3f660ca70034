"""The layout's own rules: one namespace, no stray packages, every process says what it does."""

import importlib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
ROOTS = ("schemas", "services", "src")
PROCESSES = ("poller", "irc_listener", "materializer", "reconnector", "state_api")


@pytest.mark.parametrize("root", ROOTS)
def test_no_root_of_the_namespace_has_an_init_file(root: str) -> None:
    assert (ROOT / root / "serverchange").is_dir()
    assert not (ROOT / root / "serverchange" / "__init__.py").exists(), "it would hide the other two roots"


def test_no_file_stands_beside_the_rooms() -> None:
    outside = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "serverchange").glob("*.py")}
    assert outside == set()


@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_says_what_it_reads_decides_and_writes(process: str) -> None:
    docstring = importlib.import_module(f"serverchange.{process}").__doc__ or ""
    assert {"Reads", "Decides", "Writes"} <= {word.strip(":,.") for word in docstring.split()}


def test_the_wheel_installs_nothing_but_the_namespace(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"serverchange", next(top for top in tops if top.endswith(".dist-info"))}
    assert "serverchange/events.py" in names
    assert "serverchange/adapters/postgres/migrations/0001_projection.sql" in names
