"""Kafka's jars: only the locked ones are ever run, and a failed download says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serverchange.embedded.cache import first_writable, jar_cache_candidates
from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.jars import (
    LOCK_FILE,
    REPOSITORY_ENVIRONMENT,
    LockedJar,
    load_lock,
    locked_kafka_version,
    main,
    missing_jars,
    provide_jars,
    verify_jars,
)
from serverchange.embedded.kafka import EmbeddedKafka
from serverchange.embedded.ports import choose_ports


@pytest.fixture(scope="module")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that all runs share, filled."""
    jars = load_lock()
    first = provide_jars(tmp_path_factory.mktemp("unused"))[0]
    return first.parents[len(jars[0].relative_path.parts) - 1]


@pytest.fixture
def own_cache(user_cache: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    copy = tmp_path / "cache"
    shutil.copytree(user_cache, copy, ignore=shutil.ignore_patterns(".*"))
    return copy


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        pass


@pytest.fixture
def mirror(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven mirror on loopback that serves the copy; the folder that it serves."""
    served = own_cache.rename(tmp_path / "mirror")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(REPOSITORY_ENVIRONMENT, f"http://127.0.0.1:{server.server_port}")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def spoil(jar: LockedJar, cache: Path) -> None:
    """Change one byte in the middle."""
    path = cache / jar.relative_path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_lock_holds_one_sum_a_jar_and_no_address() -> None:
    jars = load_lock()
    assert len({jar.coordinate for jar in jars}) == len(jars)
    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in jars)
    assert "://" not in LOCK_FILE.read_text("utf-8")
    # All of Kafka in one version: a bill of materials once brought clients of another (see write_lock).
    kafka = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    assert kafka == {locked_kafka_version(jars)}


def test_a_changed_jar_is_refused_by_name_and_kafka_does_not_start(own_cache: Path, tmp_path: Path) -> None:
    changed = load_lock()[7]
    spoil(changed, own_cache)
    broker = EmbeddedKafka(tmp_path / "data", jar_cache=own_cache)
    with pytest.raises(EmbeddedError, match="is not the locked jar") as caught:
        broker.start()
    assert str(own_cache / changed.relative_path) in str(caught.value)
    assert changed.sha256 in str(caught.value)
    assert broker.pid is None
    assert main(["verify", "--cache", str(own_cache)]) == 1


def test_a_jar_that_was_cut_off_is_refused(own_cache: Path) -> None:
    jar = load_lock()[0]
    os.truncate(own_cache / jar.relative_path, 1000)
    with pytest.raises(EmbeddedError, match="is not the locked jar"):
        verify_jars(load_lock(), own_cache)


def test_a_first_start_downloads_and_says_how_many_jars(mirror: Path, tmp_path: Path) -> None:
    said: list[str] = []
    jars = load_lock()
    paths = provide_jars(tmp_path, cache=tmp_path / "new", progress=said.append)
    assert f"downloading {len(jars)} of {len(jars)} jars" in said[0]
    assert said[-1] == f"Kafka: {len(jars)}/{len(jars)} jars"
    assert all(path.is_file() for path in paths)
    assert not list((tmp_path / "new").glob(".staging-*"))


def test_only_what_is_missing_is_downloaded(mirror: Path, tmp_path: Path) -> None:
    provide_jars(tmp_path, cache=tmp_path / "new")
    gone = load_lock()[3]
    (tmp_path / "new" / gone.relative_path).unlink()
    said: list[str] = []
    provide_jars(tmp_path, cache=tmp_path / "new", progress=said.append)
    assert f"downloading 1 of {len(load_lock())} jars" in said[0]


def test_a_mirror_that_changes_a_jar_is_refused_and_the_jar_not_kept(mirror: Path, tmp_path: Path) -> None:
    changed = load_lock()[0]
    spoil(changed, mirror)
    with pytest.raises(EmbeddedError, match="the repository delivered another"):
        provide_jars(tmp_path, cache=tmp_path / "new")
    assert changed in missing_jars(load_lock(), tmp_path / "new")


def test_a_mirror_without_a_jar_is_named_as_the_reason(mirror: Path, tmp_path: Path) -> None:
    absent = load_lock()[0]
    (mirror / absent.relative_path).unlink()
    with pytest.raises(EmbeddedError, match=r"cannot download Kafka 4\.3\.\d+: .*not found"):
        provide_jars(tmp_path, cache=tmp_path / "new")


def test_processes_that_start_first_at_once_share_one_download(mirror: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serverchange.embedded.jars", "fetch", "--cache", str(tmp_path / "new")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0]
    assert sum("downloading" in output for output in outputs) == 1


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nobody_listens,) = choose_ports(1)
    monkeypatch.setenv(REPOSITORY_ENVIRONMENT, f"http://127.0.0.1:{nobody_listens}")
    with pytest.raises(EmbeddedError, match=r"cannot download Kafka 4\.3\.\d+") as caught:
        EmbeddedKafka(tmp_path / "data", jar_cache=tmp_path / "cache").start()
    assert "check the network and the proxy settings" in caught.value.todo
    # Nothing of the failed start holds the folder.
    with pytest.raises(EmbeddedError, match="cannot download"):
        EmbeddedKafka(tmp_path / "data", jar_cache=tmp_path / "cache").start()


def test_behind_a_dead_proxy_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nobody_listens,) = choose_ports(1)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{nobody_listens}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(EmbeddedError, match="cannot download Kafka"):
        provide_jars(tmp_path, cache=tmp_path / "cache")


def test_a_home_that_cannot_be_written_falls_back_to_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    monkeypatch.delenv("SERVERCHANGE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(not_a_folder))
    monkeypatch.setattr("tempfile.tempdir", str(not_a_folder))
    assert first_writable(jar_cache_candidates(tmp_path / "data")) == tmp_path / "data" / "jars"


def test_a_complete_cache_serves_even_where_it_cannot_be_written(own_cache: Path, tmp_path: Path) -> None:
    own_cache.chmod(0o555)
    try:
        assert len(provide_jars(tmp_path, cache=own_cache)) == len(load_lock())
        assert not (own_cache / ".lock").exists()
    finally:
        own_cache.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_below_another_users_home_counts_as_missing(own_cache: Path, tmp_path: Path) -> None:
    # `runuser --preserve-environment` keeps HOME=/root, which others cannot even look into.
    tmp_path.chmod(0o700)
    if (child := os.fork()) == 0:
        os.setuid(54321)
        os._exit(0 if len(missing_jars(load_lock(), own_cache)) == len(load_lock()) else 1)
    assert os.waitpid(child, 0)[1] == 0
