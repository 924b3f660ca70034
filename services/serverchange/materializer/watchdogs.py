"""Watchdogs: what must move and does not ends the process, stacks dumped; a supervisor starts it again.

Three things can stand still without any error: Faust's fetch loop (a recovery task that died), the fold (a consumer
that left its group), and the outbox (two owners that fenced each other). None is watched while what it needs is
away, since a restart would not help then.
"""

from __future__ import annotations

import asyncio
import faulthandler
import threading
import time
from datetime import UTC, datetime
from typing import Final

import psycopg
from aiokafka.errors import KafkaError as AsyncKafkaError
from kafka.errors import KafkaError

from serverchange.adapters import metrics
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import AsyncConnection, connect
from serverchange.adapters.process import ExitCode, Process
from serverchange.adapters.settings import Settings
from serverchange.materializer.log_matching import TopicMissingError, match_log
from serverchange.materializer.outbox import Outbox
from serverchange.materializer.worker import Worker

_log = get_logger("watchdog")

LOOK_INTERVAL_S: Final = 1.0
"""How often the log's end is asked for: the resolution of `as_of` in API answers."""

MATCH_INTERVAL_S: Final = 10.0
"""How often the log's identity is compared with what was folded."""

STANDSTILL_S: Final = 45.0
"""Faust's fetch loop turns at least once a second; a rebalance takes up to 23 s (session and rebalance time-outs)."""


def fail_standing_still(process: Process, reason: str) -> None:
    """Dump all stacks and end the process."""
    faulthandler.dump_traceback(all_threads=True)
    process.fail(ExitCode.NO_PROGRESS, reason)


class DrainWatchdog:
    """Ends the process when Faust's fetch loop stands still; a thread, since the event loop may be what is stuck."""

    def __init__(self, process: Process, worker: Worker) -> None:
        self._process = process
        self._worker = worker
        self._drained_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drain-watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()

    def drained(self) -> None:
        """Take note that the loop turned."""
        self._drained_at = time.monotonic()

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_INTERVAL_S):
            moved_at = max(self._drained_at, self._worker.applied_at)
            missing = self._process.readiness.missing
            if "postgres" in missing or "kafka" in missing:
                self._drained_at = time.monotonic()
            elif time.monotonic() - moved_at > STANDSTILL_S:
                fail_standing_still(self._process, f"Faust's fetch loop stood still for {STANDSTILL_S:.0f} s")


async def watch_log(settings: Settings, process: Process, worker: Worker) -> None:
    """Follow the log's end: `as_of`, the lag, progress, and whether it is still the log that was folded."""
    connection: AsyncConnection | None = None
    matched_at = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        try:
            if connection is None or connection.closed:
                connection = await connect(settings.postgres, application=f"{settings.process.name} watch")
            if worker.owned:
                await _look(settings, process, worker, connection)
            if time.monotonic() - matched_at > MATCH_INTERVAL_S:
                await _match(worker, connection)
                matched_at = time.monotonic()
        except psycopg.OperationalError as error:
            _log.debug(LogEvent.POSTGRES_LOST, part="watch", error=str(error).strip())
        except (AsyncKafkaError, KafkaError, TopicMissingError, TimeoutError, OSError) as error:
            process.readiness.wait_for("kafka", str(error) or type(error).__name__)
        else:
            process.readiness.found("kafka")


async def _look(settings: Settings, process: Process, worker: Worker, connection: AsyncConnection) -> None:
    now = datetime.now(UTC)
    owned = worker.owned
    async with worker.reader.lock:
        ends = {partition: ends.end for partition, ends in (await worker.reader.ends(owned)).items()}
    await projection.store_caught_up(connection, ends, now)
    positions = await projection.load_positions(connection, owned)
    behind = {one.partition: max(0, ends.get(one.partition, 0) - one.position) for one in positions}
    metrics.LAG.set(sum(behind.values()))
    waiting = sum(records for partition, records in behind.items() if partition not in worker.stopped)
    if not waiting or "postgres" in process.readiness.missing:
        worker.applied_at = time.monotonic()
    elif time.monotonic() - worker.applied_at > settings.materializer.progress_timeout_s:
        fail_standing_still(
            process,
            f"{waiting} records wait and none was applied for {settings.materializer.progress_timeout_s:.0f} s",
        )


async def _match(worker: Worker, connection: AsyncConnection) -> None:
    """Compare the log's identity; a stopped partition that matches again is positioned anew.

    A topic made anew is told even by a worker that has no partitions: deleting a topic takes them from all workers.
    """
    topic = await worker.reader.identity()
    worker.judge_topic(topic)
    if not worker.owned:
        return
    positions = await projection.load_positions(connection, worker.owned)
    reasons = await match_log(worker.reader, topic, positions, digests=bool(worker.stopped))
    for position in positions:
        worker.judge(position.partition, reasons.get(position.partition))


async def watch_outbox(settings: Settings, process: Process, outbox: Outbox) -> None:
    """End the process when the outbox owes something and publishes nothing."""
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        metrics.OUTBOX_LAG.set(outbox.owed)
        if {"postgres", "kafka"} & process.readiness.missing.keys():
            outbox.forgive()
        elif outbox.standing_still_s() > settings.materializer.progress_timeout_s:
            fail_standing_still(
                process,
                f"a partition's outbox published nothing for {settings.materializer.progress_timeout_s:.0f} s",
            )
