"""Kafka and PostgreSQL together below one folder, started and stopped side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from serverchange.embedded.kafka import EmbeddedKafka
from serverchange.embedded.postgres import EmbeddedPostgres
from serverchange.embedded.server import EmbeddedServer


class EmbeddedStack:
    """Both servers with their data in ``data_dir/kafka`` and ``data_dir/postgres``.

    Args:
        data_dir: One folder for everything.
        jar_cache: Folder of Kafka's jars; by default the user's cache.
        kafka_port: Port of Kafka; by default chosen once and kept.
        postgres_port: Port of PostgreSQL; by default chosen once and kept.
        progress: Told what a first start has to do. Called from two threads, one call at a time.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        jar_cache: Path | None = None,
        kafka_port: int | None = None,
        postgres_port: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        one_at_a_time = _serialised(progress) if progress else None
        self.kafka = EmbeddedKafka(data_dir / "kafka", port=kafka_port, jar_cache=jar_cache, progress=one_at_a_time)
        self.postgres = EmbeddedPostgres(data_dir / "postgres", port=postgres_port, progress=one_at_a_time)

    @property
    def _servers(self) -> Sequence[EmbeddedServer]:
        return (self.kafka, self.postgres)

    def start(self) -> None:
        """Start both and return once both serve clients; if one cannot, the other is stopped again.

        Raises:
            EmbeddedError: See :meth:`EmbeddedServer.start`.
        """
        with ThreadPoolExecutor(2, thread_name_prefix="serverchange-start") as pool:
            futures = [pool.submit(server.start) for server in self._servers]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            except BaseException:  # Ctrl-C too: a stop makes the other start give up
                self.stop()
                raise

    def stop(self) -> None:
        """Stop both cleanly; returns when no process of them is left. Idempotent."""
        with ThreadPoolExecutor(2, thread_name_prefix="serverchange-stop") as pool:
            for future in [pool.submit(server.stop) for server in self._servers]:
                future.result()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _serialised(progress: Callable[[str], None]) -> Callable[[str], None]:
    lock = threading.Lock()

    def report(message: str) -> None:
        with lock:
            progress(message)

    return report
