"""Runs a materializer, with faults of our own making planted first: the checker must find each of them.

`SERVERCHANGE_TEST_PLANTED_BUGS` names them, comma separated; without any this is the real thing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from serverchange.adapters.postgres import projection
from serverchange.adapters.settings import load_settings
from serverchange.cli.supervised import end_with_supervisor
from serverchange.materializer import folding, main, outbox, runs, transaction, worker
from serverchange.materializer.fault_points import reach
from serverchange.tracker import channel_state

LOSE_EVERY = 7


def commit_before_write() -> None:
    """The position is committed in a transaction of its own, before the rows."""

    async def store(connection: Any, steps: Any, folds: Any, now: Any) -> None:
        other = await worker.connect(load_settings().postgres, application="planted")
        async with other:
            await connection.execute("COMMIT")
            await projection.store_positions(other, [transaction._next_position(step) for step in steps])
            reach("before-commit")
            await connection.execute("BEGIN")
        await original(connection, steps, folds, now)

    original = transaction._store
    transaction._store = store


def read_before_fence() -> None:
    """What is published was read before the fence."""

    async def publish(self: Any, owned: Any, work: Any) -> None:
        connection = await self._borrow()
        if owned.producer is None:
            owned.published = await self._committed(owned.partition, self._group_of(work.generation)) or 0
        messages = await self._read(connection, owned)
        reach("outbox-read")
        if owned.producer is None:
            owned.producer, _ = await self._fence(owned.partition, work, self._group_of(work.generation))
            owned.generation = work.generation
        if messages:
            await self._send(owned.producer, owned.partition, messages, self._group_of(work.generation))
            owned.published = messages[-1].offset + 1
        await projection.store_published(connection, owned.partition, owned.published)
        self._give_back(connection)

    outbox.Outbox._publish_partition = publish  # type: ignore[method-assign]


def no_fence() -> None:
    """Each process has transactional ids of its own, so nobody is refused."""
    original = outbox.make_async_producer

    def make(*args: Any, transactional_id: str, **options: Any) -> Any:
        return original(*args, transactional_id=f"{transactional_id}-{os.getpid()}", **options)

    outbox.make_async_producer = make


def publish_before_commit() -> None:
    """Changes go out while the transaction that decided them is still open."""
    original = transaction._store

    async def store(connection: Any, steps: Any, folds: Any, now: Any) -> None:
        await original(connection, steps, folds, now)
        rows = [row for fold in folds for row in fold.changes]
        if rows:
            settings = load_settings()
            producer = outbox.make_async_producer(settings.kafka, client_id="planted")
            await producer.start()
            topic = outbox.topic_name(settings.kafka, outbox.CLUSTER_CHANGES)
            for row in rows:
                event = outbox.change_event(row)
                await producer.send_and_wait(topic, key=event.subject.encode(), value=event.to_record())
            await producer.stop()

    async def nothing(*_args: Any) -> list[Any]:
        return []

    transaction._store = store
    projection.load_unpublished_changes = nothing  # type: ignore[assignment]


def publish_from_memory() -> None:
    """Only what this process decided itself is published; what a dead owner left is skipped."""
    original = outbox.Outbox._fence

    async def fence(self: Any, partition: int, work: Any, group: str) -> Any:
        producer, published = await original(self, partition, work, group)
        return producer, max(published, work.newest or 0)

    outbox.Outbox._fence = fence  # type: ignore[method-assign]


def lossy() -> None:
    """Fetches get lost between broker and agent: no bug by itself, it must do no harm."""
    original = runs.RunsConsumer._getmany
    fetches = [0]

    async def getmany(self: Any, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
        fetched = await original(self, active_partitions, timeout)
        if fetched:
            fetches[0] += 1
            if fetches[0] % LOSE_EVERY == 0:
                return {}
        return fetched

    runs.RunsConsumer._getmany = getmany  # type: ignore[method-assign]


def deaf() -> None:
    """The outbox never hears that its partitions went to another: no bug by itself, the fence must suffice."""
    original = outbox.Outbox.assign

    def assign(self: Any, partitions: Any) -> None:
        if not self._owned:
            original(self, partitions)

    outbox.Outbox.assign = assign  # type: ignore[method-assign]


def hole_accepted() -> None:
    """A run that does not connect to the position is folded all the same."""
    original = transaction._plan_step

    def plan(run: Any, position: Any, topic: Any, applied: Any) -> Any:
        if position is not None and run.start is not None and run.start > position.position:
            run = transaction.DecodedRun(run.partition, position.position, run.decoded, run.next)
        return original(run, position, topic, applied)

    transaction._plan_step = plan
    lossy()


def seek_one_too_far() -> None:
    """A partition is positioned one behind the next record, and the run claims to connect."""
    original = worker.Worker.position

    async def position(self: Any, partitions: Any) -> Any:
        return {partition: offset + 1 for partition, offset in (await original(self, partitions)).items()}

    worker.Worker.position = position  # type: ignore[method-assign]


def stale_rule_off() -> None:
    """Lookups count however old they are."""
    original = channel_state._STEPS[channel_state.ClusterObserved]

    def observe(state: Any, event: Any, at_ms: int) -> Any:
        after, change = original(state._replace(known_after=0), event, at_ms)
        return after._replace(known_after=max(after.known_after, state.known_after)), change

    channel_state._STEPS[channel_state.ClusterObserved] = observe


def notice_without_known_after() -> None:
    """A first notice leaves the lookups under way valid."""
    original = channel_state._STEPS[channel_state.ServerChangeReceived]

    def notice(state: Any, event: Any, at_ms: int) -> Any:
        after, change = original(state, event, at_ms)
        return (after if change else after._replace(known_after=state.known_after)), change

    channel_state._STEPS[channel_state.ServerChangeReceived] = notice


def poison_swallowed() -> None:
    """A record that is no event is passed without a dead letter."""
    original = folding.fold_records

    def fold(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        result.dead_letters.clear()
        return result

    transaction.fold_records = fold


BUGS: dict[str, Callable[[], None]] = {
    "commit-before-write": commit_before_write,
    "read-before-fence": read_before_fence,
    "no-fence": no_fence,
    "publish-before-commit": publish_before_commit,
    "publish-from-memory": publish_from_memory,
    "hole-accepted": hole_accepted,
    "seek-one-too-far": seek_one_too_far,
    "stale-rule-off": stale_rule_off,
    "notice-without-known-after": notice_without_known_after,
    "poison-swallowed": poison_swallowed,
}

if __name__ == "__main__":
    end_with_supervisor()
    for name in filter(None, os.environ.get("SERVERCHANGE_TEST_PLANTED_BUGS", "").split(",")):
        {**BUGS, "lossy": lossy, "deaf": deaf}[name]()
    main.main(load_settings())
