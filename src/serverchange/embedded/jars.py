"""Kafka's jars: which ones (a lock file), where from (Maven, through jgo), and that they are the locked ones.

``kafka.lock.toml`` is jgo's own lock format: coordinates, versions and SHA-256 sums, no addresses. jgo downloads and
resolves; the comparison with the lock is ours, because jgo 3.2 only warns when a sum differs (``jgo.maven._resolver``).
A jar reaches the cache by an atomic rename after its sum was found right, so whatever differs there was changed later.

    python -m serverchange.embedded.jars lock     resolve anew and rewrite the lock file
    python -m serverchange.embedded.jars fetch    download what is missing (to warm an image or a CI cache)
    python -m serverchange.embedded.jars verify   compare the cache with the lock file
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from serverchange.embedded.cache import CACHE_ENVIRONMENT, first_writable, jar_cache_candidates
from serverchange.embedded.errors import EmbeddedError

LOCK_FILE = Path(__file__).with_name("kafka.lock.toml")
KAFKA = "org.apache.kafka:kafka_2.13:4.3.1"
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl"
"""Binds SLF4J 1.7, which Kafka logs through, to log4j-core; Kafka's POM leaves that choice to its distribution."""
REPOSITORY_ENVIRONMENT = "SERVERCHANGE_MAVEN_REPOSITORY"
"""A mirror to ask instead of Maven Central."""
DOWNLOADS_AT_ONCE = 6
DOWNLOAD_TIMEOUT_S = 20
"""Longest silence of the repository; 45 MB in 46 files take 2 s on a fast line, and no file is over 7 MB."""
CACHE_LOCK_POLL_S = 1.0
CACHE_LOCK_WAITS = 600
"""How often to wait that long for another process that downloads into the same cache, perhaps on a slow line."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LockedJar:
    """One jar of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        """Maven coordinate, ``group:artifact:version``."""
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def relative_path(self) -> Path:
        """Path below the cache, in the layout of a Maven repository."""
        return Path(*self.group.split("."), self.artifact, self.version, f"{self.artifact}-{self.version}.jar")


def load_lock(path: Path = LOCK_FILE) -> tuple[LockedJar, ...]:
    """Read the lock file: all jars in class path order."""
    data = tomllib.loads(path.read_text("utf-8"))
    return tuple(
        LockedJar(jar["groupId"], jar["artifactId"], jar["version"], jar["sha256"]) for jar in data["dependencies"]
    )


def locked_kafka_version(jars: Sequence[LockedJar]) -> str:
    """Kafka's version according to the lock, e.g. ``4.3.1``."""
    return next(jar.version for jar in jars if jar.artifact.startswith("kafka_"))


def missing_jars(jars: Sequence[LockedJar], cache: Path) -> list[LockedJar]:
    """Jars of the lock that the cache does not hold, or that we may not read there."""
    return [jar for jar in jars if not os.access(cache / jar.relative_path, os.R_OK)]


def verify_jars(jars: Sequence[LockedJar], cache: Path) -> None:
    """Compare every jar in the cache with the lock; 45 MB take about 0.1 s, so each start can afford it.

    Raises:
        EmbeddedError: A jar is missing or is not the locked one; it names the file and both sums.
    """
    for jar in jars:
        path = cache / jar.relative_path
        if not os.access(path, os.R_OK):
            raise EmbeddedError(
                f"Kafka's jar {jar.coordinate} is missing from {cache}",
                todo="run `python -m serverchange.embedded.jars fetch` where the network can be reached",
            )
        found = _sha256(path)
        if found != jar.sha256:
            raise EmbeddedError(
                f"{path} is not the locked jar {jar.coordinate}: SHA-256 is {found}, must be {jar.sha256}",
                todo="find out who changed it; then delete the file and start again, it is downloaded anew",
            )


def provide_jars(
    data_dir: Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    jars: Sequence[LockedJar] | None = None,
) -> tuple[Path, ...]:
    """Return the paths of all jars, downloaded if need be and verified.

    Args:
        data_dir: Folder of the instance, the last resort for a cache.
        cache: Folder to use instead of the user's cache.
        progress: Told how many jars there are and how far the download is. Called from this thread.
        cancelled: Asked between two jars; once true, the download ends with an error.
        jars: What to provide; by default all of the lock file.

    Raises:
        EmbeddedError: No network, a repository that does not know a jar, or a jar that is not the locked one.
    """
    jars = load_lock() if jars is None else jars
    candidates = [cache] if cache is not None else list(jar_cache_candidates(data_dir))
    # A complete cache serves even where it cannot be written: an image may bring it, owned by root.
    complete = next((folder for folder in candidates if not missing_jars(jars, folder)), None)
    if complete is None:
        complete = _writable_cache(candidates)
        _fill(jars, complete, progress or _silent, cancelled)
    verify_jars(jars, complete)
    return tuple(complete / jar.relative_path for jar in jars)


def _writable_cache(candidates: list[Path]) -> Path:
    try:
        return first_writable(iter(candidates))
    except PermissionError as error:
        raise EmbeddedError(
            f"cannot store Kafka's jars: {error}", todo=f"set {CACHE_ENVIRONMENT} to a folder that you can write"
        ) from error


def _fill(jars: Sequence[LockedJar], cache: Path, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Download what the cache lacks; one process at a time, the others find the work done."""
    with _exclusive(cache, cancelled):
        for stale in cache.glob(".staging-*"):
            shutil.rmtree(stale, ignore_errors=True)  # of a process that was killed
        wanted = missing_jars(jars, cache)
        if not wanted:
            return
        version = locked_kafka_version(load_lock())
        progress(f"Kafka {version}: downloading {len(wanted)} of {len(jars)} jars (first start only) to {cache}")
        # Staged inside the cache so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=cache) as staging:
            try:
                _download(wanted, Path(staging), cache, progress, cancelled)
            except (OSError, RuntimeError) as error:
                if isinstance(error, EmbeddedError):
                    raise
                raise EmbeddedError(
                    f"cannot download Kafka {version}: {_reason(error)}",
                    todo=(
                        "check the network and the proxy settings (HTTPS_PROXY), or name a Maven mirror in "
                        f"{REPOSITORY_ENVIRONMENT}, or copy the folder {cache} from a machine that has it"
                    ),
                ) from error


@contextmanager
def _exclusive(cache: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the cache's lock; a wait for another process's download can be cancelled."""
    lock = FileLock(cache / ".lock", timeout=CACHE_LOCK_POLL_S)
    for _second in range(CACHE_LOCK_WAITS):
        if cancelled():
            raise EmbeddedError("the wait for the download of Kafka was interrupted", todo="start again")
        with suppress(Timeout):
            lock.acquire()
            break
    else:
        raise EmbeddedError(
            f"another process has been downloading Kafka into {cache} for {CACHE_LOCK_WAITS * CACHE_LOCK_POLL_S:.0f} s",
            todo="wait for it or end it, then start again",
        )
    try:
        yield
    finally:
        lock.release()


def _download(
    wanted: Sequence[LockedJar], staging: Path, cache: Path, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    context = _maven(staging)
    pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="serverchange-jars")
    try:
        futures = {pool.submit(_fetch, context, jar): jar for jar in wanted}
        for done, future in enumerate(as_completed(futures), 1):
            _admit(futures[future], future.result(), cache)
            if done % 10 == 0 or done == len(wanted):
                progress(f"Kafka: {done}/{len(wanted)} jars")
            if cancelled():
                raise EmbeddedError("the download of Kafka was interrupted", todo="start again, it goes on from there")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch(context: Any, jar: LockedJar) -> Path:
    path: Path = context.create_dependency(jar.coordinate).artifact.resolve()
    return path


def _admit(jar: LockedJar, downloaded: Path, cache: Path) -> None:
    """Move a downloaded jar into the cache if it is the locked one."""
    found = _sha256(downloaded)
    if found != jar.sha256:
        raise EmbeddedError(
            f"the repository delivered another {jar.coordinate} than the locked one: "
            f"SHA-256 is {found}, must be {jar.sha256}",
            todo="try again; if it stays, do not use this mirror or proxy, it changes files",
        )
    target = cache / jar.relative_path
    target.parent.mkdir(parents=True, exist_ok=True)
    downloaded.replace(target)


def write_lock(path: Path = LOCK_FILE) -> int:
    """Resolve Kafka's dependencies anew, write the lock file and return the number of jars."""
    from jgo.env._lockfile import LockFile  # noqa: PLC0415 - slow, and needed by maintainers only

    with tempfile.TemporaryDirectory(prefix="serverchange-lock-") as scratch:
        context = _maven(Path(scratch))
        inputs, transitive = context.resolver.resolve([context.create_dependency(KAFKA)])
        # Not resolved together with Kafka: jgo takes each input's POM for a bill of materials, and log4j's pins
        # other versions of Kafka's own clients and of Jackson.
        log4j = next(jar.version for jar in transitive if jar.artifactId == "log4j-core")
        binding = context.create_dependency(f"{LOG_BINDING}:{log4j}")
        lock = LockFile.from_resolved_dependencies([*inputs, *transitive, binding], environment_name="kafka")
        lock.save(path)
    return len(lock.dependencies)


def _maven(repository_cache: Path) -> Any:
    """Return jgo's context that stores below ``repository_cache``; the user's own Maven settings play no part."""
    from jgo.maven import MavenContext  # noqa: PLC0415 - slow, and needed for a first start only

    mirror = os.environ.get(REPOSITORY_ENVIRONMENT)
    return MavenContext(
        repo_cache=repository_cache,
        local_repos=[],
        remote_repos={"mirror": mirror.rstrip("/")} if mirror else None,
        timeout=DOWNLOAD_TIMEOUT_S,
    )


def _reason(error: BaseException) -> str:
    """The innermost reason in one line; requests wraps it three deep."""
    text = str(error)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _silent(_message: str) -> None:
    """Take the place of a progress callback that nobody gave."""


def _say(message: str) -> None:
    sys.stdout.write(f"{message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lock``, ``fetch`` or ``verify`` from the command line; 1 if the jars are not as locked."""
    parser = argparse.ArgumentParser(prog="python -m serverchange.embedded.jars", description="Kafka's jars")
    parser.add_argument("command", choices=("lock", "fetch", "verify"))
    parser.add_argument("--cache", type=Path, help="folder of the jars (default: the user's cache)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "lock":
            _say(f"{write_lock()} jars locked in {LOCK_FILE}")
        elif options.command == "fetch":
            paths = provide_jars(Path.cwd(), cache=options.cache, progress=_say)
            _say(f"{len(paths)} jars are there and as locked")
        else:
            jars = load_lock()
            cache = options.cache or next(iter(jar_cache_candidates(Path.cwd())))
            verify_jars(jars, cache)
            _say(f"{len(jars)} jars in {cache} are as locked")
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
