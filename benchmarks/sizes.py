"""How many bytes does a channel take: in the log, in the tables, in the memory of each process?

`serverchange bench sizes --channels 100000 --json`. One embedded Kafka and PostgreSQL; every channel is tracked and
seen twice, folded by a rebuild and published by a real materializer; a real poller loads all of it. `docs/scale.md`
rests on these figures. Memory is measured twice, without a channel and with all of them: the difference is theirs. A
rebuild is measured in seconds of its own processor time, which a busy machine does not alter.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import psycopg

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.cli.output import quiet_logs
from serverchange.embedded.ports import choose_ports
from serverchange.materializer import rebuild
from serverchange.topics import CHANNEL_EVENTS, CLUSTER_CHANGES

sys.path.insert(0, str(Path(__file__).parent))
from materialize import bench_stack, materializer, produce, wait_folded
from materialize_workload import make_workload

RECORDS_A_CHANNEL: Final = 3
"""Tracked, and observed twice: what `make_workload` sets a channel up with."""

TABLES: Final = ("channel_state", "cluster_change", "channel_freshness")
LOOK_S: Final = 0.2
LOAD_TIMEOUT_S: Final = 300.0


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="serverchange bench sizes", description=__doc__)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(argv)
    quiet_logs()
    with bench_stack() as bench:
        settings = bench.settings()
        apply_topics(settings.kafka)
        result = measure(settings, options.channels, bench.folder)
    if options.as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.writelines(f"{name:>32}  {value}\n" for name, value in result.items())
    return 0


def measure(settings: Settings, channels: int, folder: Path) -> dict[str, Any]:
    """Return all figures for so many channels; `folder` takes the processes' logs."""
    workload = make_workload(0, channels)
    with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
        migrate(connection)
        empty = _poller_resident(settings, folder)
        produce(settings.kafka, topic_name(settings.kafka, CHANNEL_EVENTS), workload.setup)
        used_s = time.process_time()
        report = rebuild.run(settings, swap=True)
        used_s = time.process_time() - used_s
        publishing = _publish(settings, connection, len(workload.setup), folder / "materializer.log")
        connection.execute(
            "INSERT INTO channel_freshness (channel, version, verified_at)"
            " SELECT channel, version, now() FROM channel_state"
        )
        connection.execute("VACUUM FULL ANALYZE")
        full = _poller_resident(settings, folder)
        return {
            "channels": channels,
            "log_bytes_a_record": round(_topic_bytes(settings.kafka, CHANNEL_EVENTS.name) / len(workload.setup)),
            "changes_bytes_a_record": round(_topic_bytes(settings.kafka, CLUSTER_CHANGES.name) / channels),
            **{f"{table}_bytes_a_row": round(size / channels) for table, size in _table_bytes(connection).items()},
            "poller_empty_mib": round(empty / 2**20),
            "poller_bytes_a_channel": round((full - empty) / channels),
            "materializer_mib": round(publishing / 2**20),
            "rebuild_records_per_cpu_s": round(report.records / used_s),
        }


def _publish(settings: Settings, connection: psycopg.Connection[Any], records: int, log: Path) -> int:
    """Publish what the rebuild decided, and return the most resident bytes that the materializer had meanwhile.

    It is started again where it ends, as under a supervisor: on a busy machine a transaction may take too long.
    """
    most = 0
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    while time.monotonic() < deadline:
        with materializer(settings, log) as process:
            while process.poll() is None and time.monotonic() < deadline:
                most = max(most, _resident(process.pid))
                with suppress(TimeoutError):
                    wait_folded(connection, records, timeout_s=LOOK_S)
                    return most
    raise TimeoutError(f"not all changes are published after {LOAD_TIMEOUT_S:.0f} s; see {log}")


def _table_bytes(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Return the bytes of each table with its indexes, densely packed: a table in use has room for updates besides."""
    rows = connection.execute(
        "SELECT name, pg_total_relation_size(name::regclass) FROM unnest(%s::text[]) AS t (name)", [list(TABLES)]
    )
    return dict(rows.fetchall())


def _topic_bytes(settings: KafkaSettings, name: str) -> int:
    """Return the bytes of a topic on the broker's disk, indexes left out (Kafka allots those in advance)."""
    admin = make_admin(settings, client_id="bench")
    try:
        folders = admin.describe_log_dirs()
    finally:
        admin.close()
    return sum(
        partition["partition_size"]
        for broker in folders
        for folder in broker["log_dirs"]
        for topic in folder["topics"]
        if topic["name"] == settings.topic_prefix + name
        for partition in topic["partitions"]
    )


def _resident(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def _poller_resident(settings: Settings, folder: Path) -> int:
    """Return the resident bytes of a poller that has loaded every partition; it has no platform to ask."""
    partitions = settings.kafka.partitions
    with _poller(settings, folder) as (process, port):
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if _loaded_partitions(port) >= partitions:
                return _resident(process.pid)
            time.sleep(LOOK_S)
    log = (folder / "poller.log").read_text("utf-8")
    raise TimeoutError(f"the poller did not load {partitions} partitions; the end of its log:\n{log[-2_000:]}")


def _loaded_partitions(port: int) -> int:
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.TransportError:
        return -1
    found = re.search(r"^serverchange_partitions_owned (\S+)$", text, re.MULTILINE)
    return round(float(found[1])) if found else -1


@contextmanager
def _poller(settings: Settings, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    (port,) = choose_ports(1)
    own = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "KAFKA_PARTITIONS": str(settings.kafka.partitions),
        "POSTGRES_DSN": settings.postgres.dsn.get_secret_value(),
        "PLATFORM_API_URL": "http://127.0.0.1:1",
        "PROCESS_HEALTH_PORT": str(port),
        "PROCESS_STATE_DIR": str(folder / "state"),
    }
    environment = {**os.environ, **{f"SERVERCHANGE_{name}": value for name, value in own.items()}}
    command = [sys.executable, "-P", "-m", "serverchange.cli", "poller"]
    with (folder / "poller.log").open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
