"""One running Kafka and PostgreSQL for many processes, e.g. the workers of a test run.

The first process starts a *host*, a process that owns the servers; the last one out makes it stop. Who is in is told by
``flock`` alone, so that a holder that was killed is out at the same moment and no pid is ever trusted:

- ``holders.lock``: each holder has it shared. The host tries to take it alone; once it can, nobody is left.
- ``host.lock``: the host has it alone while its servers run.
- ``gate.lock``: held by a holder while it looks for a host or starts one.

A host always begins with empty data: it serves tests, which make topics and databases of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from serverchange.embedded.errors import TAIL_LINES, EmbeddedError
from serverchange.embedded.postgres import NAME
from serverchange.embedded.server import START_LIMIT_S
from serverchange.embedded.stack import EmbeddedStack

HOLDERS_POLL_S = 0.25
"""How often the host looks whether a holder is left."""
WAIT_POLL_S = 0.05
DOWNLOAD_LIMIT_S = 600.0
"""What a first download may take on top of the start."""
STOPPING_LIMIT_S = 60.0
"""Longest wait for a host that is stopping."""
RUN_PREFIX = "run-"


@dataclass(frozen=True, slots=True)
class SharedKafka:
    """The shared broker, as :class:`EmbeddedKafka` shows itself; it cannot be stopped from here."""

    bootstrap_servers: str
    pid: int


@dataclass(frozen=True, slots=True)
class SharedPostgres:
    """The shared database server, as :class:`EmbeddedPostgres` shows itself."""

    dsn: str
    pid: int

    def dsn_for(self, database: str) -> str:
        """Address of another database of this server."""
        return self.dsn.removesuffix(NAME) + database


@dataclass(frozen=True, slots=True)
class SharedStack:
    """What a holder may use while it is in.

    Attributes:
        kafka: The broker.
        postgres: The database server.
        host_pid: The process that owns both.
        data_dir: Where their data and logs are.
    """

    kafka: SharedKafka
    postgres: SharedPostgres
    host_pid: int
    data_dir: Path


@contextmanager
def shared_stack(
    name: str, *, base_dir: Path | None = None, progress: Callable[[str], None] | None = None
) -> Iterator[SharedStack]:
    """Use the stack of that name together with all other processes of this user that do.

    The servers run at least until the ``with`` block ends, unless somebody kills the host.

    Args:
        name: A plain file name, e.g. that of the checkout.
        base_dir: Folder for all shared stacks; by default one of this user's in the temporary folder.
        progress: Told once if the servers have to be started.

    Raises:
        EmbeddedError: The servers could not be started.
    """
    folder = _private_folder(base_dir or Path(tempfile.gettempdir()) / f"serverchange-shared-{os.getuid()}") / name
    folder.mkdir(exist_ok=True, mode=0o700)
    with FileLock(folder / "gate.lock", timeout=START_LIMIT_S + DOWNLOAD_LIMIT_S + STOPPING_LIMIT_S):
        holding = _hold(folder)
        try:
            stack = _find_or_start(folder, progress)
        except BaseException:
            os.close(holding)
            raise
    try:
        yield stack
    finally:
        os.close(holding)


def _private_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise EmbeddedError(f"{folder} belongs to another user", todo="name another base_dir")
    return folder


def _hold(folder: Path) -> int:
    """Become a holder; waits for a host that is stopping right now."""
    descriptor = os.open(folder / "holders.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + STOPPING_LIMIT_S
    while not _lock(descriptor, fcntl.LOCK_SH):
        if time.monotonic() >= deadline:
            os.close(descriptor)
            raise EmbeddedError(
                f"the shared servers in {folder} have been stopping for more than {STOPPING_LIMIT_S:.0f} s",
                todo=f"look into {folder}/host.log",
            )
        time.sleep(WAIT_POLL_S)
    return descriptor


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _host_lives(folder: Path) -> bool:
    descriptor = os.open(folder / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _read_endpoint(folder: Path) -> SharedStack | None:
    try:
        data = json.loads((folder / "endpoint.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    return SharedStack(
        kafka=SharedKafka(**data["kafka"]),
        postgres=SharedPostgres(**data["postgres"]),
        host_pid=data["host_pid"],
        data_dir=Path(data["data_dir"]),
    )


def _find_or_start(folder: Path, progress: Callable[[str], None] | None) -> SharedStack:
    """Return the running stack, start one, or wait for one whose starter was killed. The caller is in, at the gate."""
    own: subprocess.Popen[bytes] | None = None
    if not _host_lives(folder):
        if progress is not None:
            progress("starting Kafka and PostgreSQL")
        (folder / "endpoint.json").unlink(missing_ok=True)  # of a host that was killed
        own = _spawn_host(folder)
    deadline = time.monotonic() + START_LIMIT_S + DOWNLOAD_LIMIT_S
    while (stack := _read_endpoint(folder)) is None:
        # Ours may have given way to another that a holder had started right before it was killed.
        ended = (own is None or own.poll() is not None) and not _host_lives(folder)
        if ended or time.monotonic() >= deadline:
            raise EmbeddedError(
                f"the shared servers in {folder} {'could not be started' if ended else 'were not ready in time'}",
                todo=f"read the reason below or in {folder}/host.log",
                log_tail=(folder / "host.log").read_text("utf-8", "replace").splitlines()[-TAIL_LINES:],
            )
        time.sleep(WAIT_POLL_S)
    if own is not None and own.poll() is None:
        own.returncode = 0  # it outlives us and is nobody's to wait for: Python would warn of a running process
    return stack


def _spawn_host(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "host.log").open("ab") as log:
        log.truncate(0)
        return subprocess.Popen(  # noqa: S603 - this module
            # -P: nothing in the caller's working folder, perhaps a kafka.py, may stand in for our modules.
            [sys.executable, "-P", "-m", "serverchange.embedded.shared_stack", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for the holders; the host notices that they are out
        )


def host(folder: Path) -> None:
    """Run the servers until no holder is left or SIGTERM arrives; the main function of the host process.

    Raises:
        EmbeddedError: They could not be started, or another host is at work.
    """
    alone = os.open(folder / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _lock(alone, fcntl.LOCK_EX):
        raise EmbeddedError(f"another host runs the shared servers in {folder}", todo="nothing, use those")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    for stale in folder.glob(f"{RUN_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)
    data_dir = Path(tempfile.mkdtemp(prefix=RUN_PREFIX, dir=folder))
    holders = os.open(folder / "holders.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with EmbeddedStack(data_dir, progress=_say) as stack:
            _publish(folder, stack, data_dir)
            while not _lock(holders, fcntl.LOCK_EX):
                _check(stack)
                time.sleep(HOLDERS_POLL_S)
    finally:
        # In this order: whoever is let in next must not meet our endpoint, nor find us still at work.
        (folder / "endpoint.json").unlink(missing_ok=True)
        shutil.rmtree(data_dir, ignore_errors=True)
        os.close(alone)
        os.close(holders)


def _check(stack: EmbeddedStack) -> None:
    """End with a reason if a server has died; holders that come later get new ones."""
    for server in (stack.kafka, stack.postgres):
        if server.pid is None:
            raise EmbeddedError(f"the shared {server.title} has ended", todo="run the tests again")


def _publish(folder: Path, stack: EmbeddedStack, data_dir: Path) -> None:
    if stack.kafka.pid is None or stack.postgres.pid is None:
        raise EmbeddedError("a shared server ended right after its start", todo="start again")
    endpoint = SharedStack(
        kafka=SharedKafka(stack.kafka.bootstrap_servers, stack.kafka.pid),
        postgres=SharedPostgres(stack.postgres.dsn, stack.postgres.pid),
        host_pid=os.getpid(),
        data_dir=data_dir,
    )
    written = folder / "endpoint.json.new"
    written.write_text(json.dumps(asdict(endpoint), default=str), "utf-8")
    written.replace(folder / "endpoint.json")


def _say(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Run a host on the folder that the command line names."""
    try:
        host(Path(arguments[1]))
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
