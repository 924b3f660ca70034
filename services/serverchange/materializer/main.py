"""Wires the materializer: Faust app, worker, outbox, watchdogs; says why the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg
from aiokafka.errors import KafkaError as AsyncKafkaError
from kafka.errors import KafkaError

from serverchange.adapters.cycle_collection import rare_cycle_collection
from serverchange.adapters.kafka.log_identity import TopicIdentity
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres import projection
from serverchange.adapters.postgres.connections import connect, connect_blocking
from serverchange.adapters.postgres.schema import SchemaError, migrate
from serverchange.adapters.process import ExitCode, Process, run_process
from serverchange.adapters.settings import PostgresSettings, Settings
from serverchange.materializer.comparison import compare_for_ever
from serverchange.materializer.faust_app import make_app
from serverchange.materializer.log_matching import LogReader, TopicMissingError
from serverchange.materializer.outbox import Outbox
from serverchange.materializer.runs import Fetched, RunsApp
from serverchange.materializer.watchdogs import DrainWatchdog, watch_log, watch_outbox
from serverchange.materializer.worker import RulesDifferError, Worker, refuse_other_rules
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.channel_state import RULES_VERSION

_log = get_logger("materializer")

RETRY_S: Final = 2.0
STOP_APP_S: Final = 3.0
"""Faust's stop has no bound; after this the process ends all the same, since the position is in Postgres."""

GARBAGE_THRESHOLD: Final = 100_000

T = TypeVar("T")


class PartitionsDifferError(Exception):
    """The topic has another number of partitions than the tables: keys changed homes; copy the topic and rebuild."""


def main(settings: Settings) -> None:
    """Run one materializer until a signal or an error ends it; the exit code says why (`ExitCode`)."""

    async def run(process: Process) -> None:
        # A batch allocates some 100,000 objects and no cycles: with Python's default of 700 the collector runs on
        # every few records and takes a third of the decoder's time.
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
        try:
            await _run(settings, process)
        except (RulesDifferError, PartitionsDifferError, SchemaError) as error:
            process.fail(ExitCode.SETTINGS, str(error))
        except (psycopg.OperationalError, AsyncKafkaError, KafkaError, TimeoutError, OSError) as error:
            process.fail(ExitCode.UNAVAILABLE, f"{type(error).__name__}: {error}")

    run_process("materializer", settings.process, run)


async def _run(settings: Settings, process: Process) -> None:
    process.readiness.wait_for("assignment", "no partitions assigned yet")
    preparing = asyncio.create_task(_prepare(settings, process))
    if not await _first(preparing, process.stopping):
        return
    topic = preparing.result()
    outbox = Outbox(settings, topic)
    worker = Worker(settings, topic, outbox, process.readiness)
    ended = _Ended()

    async def apply(fetched: Fetched) -> None:
        # Faust would restart the agent and lose the fetch: an exception here must end the process instead.
        try:
            await worker.apply(fetched)
        except Exception as error:
            ended.set(error)
            raise

    app = make_app(settings, apply)
    app.position, app.lost = worker.position, worker.lost
    watchdog = DrainWatchdog(process, worker)
    app.drained = watchdog.drained
    _follow_assignment(app, process, worker)
    tasks = [
        asyncio.create_task(ended.guard(work), name=name)
        for name, work in (
            ("outbox", outbox.run()),
            ("log", watch_log(settings, process, worker)),
            ("comparison", compare_for_ever(settings, worker, outbox)),
            ("outbox-progress", watch_outbox(settings, process, outbox)),
            ("faust", _run_app(app)),
        )
    ]
    watchdog.start()
    try:
        with rare_cycle_collection():
            await _first(asyncio.create_task(ended.wait()), process.stopping)
        if ended.error is not None and not process.stopping.is_set():
            raise ended.error
    finally:
        watchdog.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=STOP_APP_S)
        with contextlib.suppress(Exception):
            await worker.close()


class _Ended:
    """The first error of any part."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._event = asyncio.Event()

    def set(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    async def guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            self.set(error)
            raise


async def _run_app(app: RunsApp) -> None:
    """Run Faust in our own loop, without its worker: signals, logging and the exit are ours.

    Raises:
        Exception: what crashed the app, such as a positioning that Postgres did not answer.
        RuntimeError: the app stopped by itself.
    """
    try:
        await app.start()
        waiting = [asyncio.create_task(event.wait()) for event in (app._crashed, app._stopped)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if isinstance(app.crash_reason, Exception):
            raise app.crash_reason
        raise RuntimeError("Faust ended by itself")
    finally:
        await app.stop()


def _follow_assignment(app: RunsApp, process: Process, worker: Worker) -> None:
    async def assigned(_app: Any, partitions: Any, **_: Any) -> None:
        numbers = frozenset(tp.partition for tp in partitions)
        worker.assign(numbers)
        process.readiness.found("assignment")
        _log.info(LogEvent.PARTITIONS_ASSIGNED, partitions=sorted(numbers))

    async def revoked(_app: Any, partitions: Any, **_: Any) -> None:
        worker.assign(frozenset())
        _log.info(LogEvent.PARTITIONS_REVOKED, count=len(partitions))

    # Faust keeps weak references to handlers: the app holds them.
    app.assignment_handlers = (assigned, revoked)
    app.on_partitions_assigned.connect(assigned)  # type: ignore[arg-type]  # Faust's type wants a name it never passes
    app.on_partitions_revoked.connect(revoked)  # type: ignore[arg-type]


async def _first(task: asyncio.Task[T], stopping: asyncio.Event) -> bool:
    """Wait for `task` or a stop; returns whether the task ended (its exception is raised), else cancels it."""
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False


async def _prepare(settings: Settings, process: Process) -> TopicIdentity:
    """Wait for Postgres, Kafka and the topic; bring the schema up to date and make the rows of all partitions.

    Raises:
        RulesDifferError: the tables were made by other rules.
        PartitionsDifferError: the topic has another number of partitions than the tables.
        SchemaError: the database belongs to a newer release.
    """
    await _until_there(process, "postgres", lambda: asyncio.to_thread(_migrate, settings.postgres))
    name = topic_name(settings.kafka, CHANNEL_EVENTS)
    reader = LogReader(settings.kafka, name, client_id=settings.process.name)
    topic = await _until_there(process, "kafka", reader.identity)
    await _until_there(process, "postgres", lambda: _make_positions(settings, topic))
    return topic


async def _until_there(process: Process, part: str, ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            answer = await ask()
        except (psycopg.OperationalError, KafkaError, AsyncKafkaError, TopicMissingError, OSError) as error:
            process.readiness.wait_for(part, str(error).strip() or type(error).__name__)
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))  # noqa: S311  (jitter, no secret)
        else:
            process.readiness.found(part)
            return answer


def _migrate(settings: PostgresSettings) -> None:
    with connect_blocking(settings, application="materializer migrate") as connection:
        migrate(connection)


async def _make_positions(settings: Settings, topic: TopicIdentity) -> None:
    async with await connect(settings.postgres, application="materializer start") as connection:
        existing = await projection.load_positions(connection)
        refuse_other_rules(existing)
        if existing and len(existing) != topic.partitions:
            raise PartitionsDifferError(
                f"topic {topic.name} has {topic.partitions} partitions, the tables were folded from {len(existing)}: "
                "keys have changed homes. Copy the topic (serverchange topics copy) and rebuild"
            )
        await projection.create_positions(
            connection, range(topic.partitions), topic_id=topic.topic_id, rules_version=RULES_VERSION
        )
