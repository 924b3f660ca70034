"""Follows a keyed topic as a member of a group, on a thread of its own.

kafka-python's calls may block (metadata, a dead broker), so they never run in the event loop. The thread owns the
consumer; what happens reaches the loop as events, in order, through `deliver`; the loop answers with `position`.
A partition that was assigned stays paused until the loop says from where to read: Kafka keeps no offsets for these
groups. Who follows the log starts where PostgreSQL's `log_position` stands; who follows a compacted topic starts at
its beginning, which is the snapshot, and has it whole at `CaughtUp`.

A topic is never read past a mismatch: a position outside its offsets is reported and the partition stays paused.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.admin import MemberToRemove
from kafka.errors import FencedInstanceIdError, KafkaError, NoError, UnknownTopicOrPartitionError

from serverchange.adapters.kafka.clients import make_admin, make_consumer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import Topic

_log = get_logger("group_follower")

POLL_MS: Final = 100
"""Longest wait in one poll, hence for a command of the loop: a new partition starts that much later at most."""

BATCH_RECORDS_MAX: Final = 2_000
BATCHES_MAX: Final = 4
"""Batches handed over and not yet folded; beyond it the thread waits, and Kafka keeps the rest."""

CHECK_INTERVAL_S: Final = 5.0
CHECK_TIMEOUT_MS: Final = 3_000
"""How often, and how long at most, the brokers are asked for the log's end: poll itself never says they are gone."""

RESTART_S: Final = (0.5, 5.0)
"""Bounds of the random wait before a consumer that failed is made anew."""

METADATA_MAX_AGE_MS: Final = 30_000
"""A leader with incomplete metadata assigns too little until the next refresh (Kafka's default is five minutes)."""

MAX_POLL_INTERVAL_MS: Final = 30_000
"""A member that stopped polling holds every rebalance up for so long (Kafka's default is five minutes)."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """These partitions are ours now; call `position` for each when its records can be taken."""

    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Revoked:
    """These partitions are somebody else's, or nobody's, from now on."""

    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Record:
    """One record, as received; `ticket` is that of the `position` since which it was read."""

    ticket: int
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    appended_at_ms: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records, in order within a partition; call `taken` once they are dealt with."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All records below the end offset that was taken at the `position` with this ticket have been delivered."""

    partition: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The topic does not hold the position: truncated, re-created or restored. Position it again after a while."""

    partition: int
    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The brokers answered; so many records of our partitions have not been delivered yet."""

    lag_records: int


@dataclass(frozen=True, slots=True)
class Away:
    """The brokers did not answer; partitions are kept until a `Revoked` says otherwise."""

    reason: str


FollowerEvent: TypeAlias = Assigned | Revoked | Fetched | CaughtUp | Mismatched | Checked | Away


@dataclass(frozen=True, slots=True)
class _Position:
    partition: int
    offset: int | None
    ticket: int


@dataclass(frozen=True, slots=True)
class Membership:
    """Who follows what.

    Attributes:
        topic: the topic followed.
        group: the group's name, before the settings' prefix.
        client_id: the member's name in the brokers' logs.
        instance: a stable name (`group.instance.id`, KIP-345): a successor with the same one takes the partitions
            over without a rebalance, and a member that stops does not leave unless it is told to. Whose place was taken
            never joins again.
            None: a member that leaves as it stops.
    """

    topic: Topic
    group: str
    client_id: str
    instance: str | None = None


class GroupFollower:
    """The thread and its consumer. `deliver` is called on the thread and must not block."""

    def __init__(
        self, settings: KafkaSettings, membership: Membership, *, deliver: Callable[[FollowerEvent], None]
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._deliver = deliver
        self._commands: queue.SimpleQueue[_Position] = queue.SimpleQueue()
        self._slots = threading.BoundedSemaphore(BATCHES_MAX)
        self._stopping = threading.Event()
        self._superseded = False
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name=f"follows {membership.topic.name}", daemon=True)
        self.beat_s = time.monotonic()

    def start(self) -> None:
        """Start the thread; a broker that is not there yet is waited for."""
        self._thread.start()

    def stop(self, timeout_s: float, *, leave: bool = False) -> None:
        """End the thread; blocks for at most `timeout_s`.

        A member with an instance keeps its place for a successor until its session is over, unless it is to `leave`:
        then the others have its partitions at once.
        """
        self._leaving = self._leaving or leave
        self._stopping.set()
        self._thread.join(timeout_s)

    def position(self, partition: int, offset: int | None, ticket: int) -> None:
        """Read `partition` from `offset` on (None: from its beginning).

        Answered by `CaughtUp` or `Mismatched`, unless the partition is revoked before.

        `ticket` is a number never used before: answers and records carry it, so that what belongs to an earlier
        ownership of the partition, and is still on its way, can be told apart.
        """
        self._commands.put(_Position(partition, offset, ticket))

    def taken(self) -> None:
        """Say that a `Fetched` was folded: the next may come."""
        self._slots.release()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._superseded:
                self.beat_s = time.monotonic()
                self._stopping.wait(POLL_MS / 1000)
                continue
            try:
                session = _Session(self._settings, self._membership, self._deliver)
            except (KafkaError, OSError) as error:
                self._deliver(Away(f"{type(error).__name__}: {error}"))
            else:
                self._follow(session)
            self.beat_s = time.monotonic()
            self._stopping.wait(random.uniform(*RESTART_S))  # noqa: S311  (jitter, no secret)

    def _follow(self, session: _Session) -> None:
        """Drive one consumer until a stop or an error; a new one then begins with an empty assignment."""
        try:
            while not self._stopping.is_set():
                self.beat_s = time.monotonic()
                self._obey(session)
                records = session.poll()
                if records:
                    self._hand_over(records)
                session.report_progress()
        except FencedInstanceIdError:
            # A successor has our place: to join again under the same name would take it away from it.
            _log.warning(LogEvent.MEMBERSHIP_LOST, instance=self._membership.instance, reason="a successor has it")
            self._superseded = True
        except (KafkaError, OSError) as error:
            _log.warning(LogEvent.KAFKA_LOST, reason=f"{type(error).__name__}: {error}")
            self._deliver(Away(f"{type(error).__name__}: {error}"))
        finally:
            session.close()
            if self._leaving and not self._superseded:
                session.leave()

    def _obey(self, session: _Session) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            session.position(command)

    def _hand_over(self, records: tuple[Record, ...]) -> None:
        while not self._slots.acquire(timeout=POLL_MS / 1000):
            self.beat_s = time.monotonic()
            if self._stopping.is_set():
                return
        self._deliver(Fetched(records))


class _Session:
    """One consumer's life: made, assigned, polled, closed. Every method runs on the follower's thread."""

    def __init__(
        self, settings: KafkaSettings, membership: Membership, deliver: Callable[[FollowerEvent], None]
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._deliver = deliver
        self._topic = topic_name(settings, membership.topic)
        self._ends: dict[int, tuple[int, int]] = {}
        self._tickets: dict[int, int] = {}
        self._checked_s = 0.0
        self._member_id: str | None = None
        self._consumer = make_consumer(
            settings,
            client_id=membership.client_id,
            group=membership.group,
            group_instance_id=membership.instance,
            max_poll_records=BATCH_RECORDS_MAX,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            # A topic that no longer holds our position must be an error, never a silent jump to its beginning.
            auto_offset_reset="none",
        )
        try:
            self._subscribe()
        except BaseException:
            self._consumer.close(autocommit=False, timeout_ms=1_000)
            raise

    def _subscribe(self) -> None:
        self._consumer.subscribe([self._topic], listener=_Listener(self))
        # A leader that has no metadata yet assigns nothing, and may not notice before the next refresh, minutes later
        # (kafka-python 3.0.12: "No partition metadata for topic"). Only those asked for after `subscribe` count for the
        # group: without them a leader rebalances it once more as soon as they come, 0.1 s after its first assignment.
        if self._topic not in self._consumer.topics():
            raise UnknownTopicOrPartitionError(f"there is no topic {self._topic}; run: serverchange topics apply")

    def assigned(self, partitions: frozenset[int]) -> None:
        for partition in partitions:
            place = TopicPartition(self._topic, partition)
            # Without a position the next poll would ask Kafka for a committed one, which this group never has.
            self._consumer.seek(place, 0)
            self._consumer.pause(place)
        self._deliver(Assigned(partitions))

    def revoked(self, partitions: frozenset[int]) -> None:
        for partition in partitions:
            self._tickets.pop(partition, None)
            self._ends.pop(partition, None)
        self._deliver(Revoked(partitions))

    def position(self, command: _Position) -> None:
        partition, offset = command.partition, command.offset
        place = TopicPartition(self._topic, partition)
        if place not in self._consumer.assignment():
            return
        beginning = self._consumer.beginning_offsets([place], timeout_ms=CHECK_TIMEOUT_MS)[place]
        end = self._consumer.end_offsets([place], timeout_ms=CHECK_TIMEOUT_MS)[place]
        offset = beginning if offset is None else offset
        if not beginning <= offset <= end:
            reason = f"the position is offset {offset}, the topic holds {beginning} to {end}"
            self._deliver(Mismatched(partition, command.ticket, reason))
            return
        try:
            self._consumer.seek(place, offset)
            self._consumer.resume(place)
        except (AssertionError, KeyError):  # revoked meanwhile, on the consumer's own thread
            return
        self._ends[partition] = (end, command.ticket)
        self._tickets[partition] = command.ticket

    def poll(self) -> tuple[Record, ...]:
        polled: dict[Any, list[Any]] = self._consumer.poll(timeout_ms=POLL_MS)
        self._await_join()
        tickets = dict(self._tickets)
        return tuple(
            Record(tickets[place.partition], place.partition, record.offset, record.key, record.value, record.timestamp)
            for place, records in polled.items()
            if place.partition in tickets
            for record in records
        )

    def _await_join(self) -> None:
        """Have the next poll take the answer to a JoinGroup that no poll waits for any more.

        kafka-python 3.0.12 joins again when metadata differ from those it assigned by, but forgets why as soon as they
        agree: if that happens while the answer is on its way and a poll's time has run out, nobody takes it. The
        member then sends no heartbeats, is thrown out, and keeps its partitions beside their new owner for ever.
        """
        coordinator = self._consumer._coordinator
        if coordinator.rebalance_in_progress() and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    def report_progress(self) -> None:
        for partition, (end, ticket) in list(self._ends.items()):
            # The last offsets may be transaction markers, which are never delivered; only the position tells.
            if self._position_of(partition) >= end:
                self._ends.pop(partition, None)
                self._deliver(CaughtUp(partition, ticket))
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_INTERVAL_S:
            self._checked_s = now_s
            self._check()

    def _position_of(self, partition: int) -> int:
        place = TopicPartition(self._topic, partition)
        if place not in self._consumer.assignment():
            return -1
        position = self._consumer.position(place, timeout_ms=CHECK_TIMEOUT_MS)
        return -1 if position is None else int(position)

    def _check(self) -> None:
        places = [TopicPartition(self._topic, partition) for partition in list(self._tickets)]
        try:
            if places:
                ends = self._consumer.end_offsets(places, timeout_ms=CHECK_TIMEOUT_MS)
            else:
                ends = {}
                self._consumer.partitions_for_topic(self._topic)
        except KafkaError as error:
            self._deliver(Away(f"no answer about the log's end: {type(error).__name__}"))
            return
        lag = sum(max(0, end - self._position_of(place.partition)) for place, end in ends.items())
        self._deliver(Checked(lag))

    def close(self) -> None:
        owned = frozenset(place.partition for place in self._consumer.assignment())
        self._member_id = self._consumer._coordinator._generation.member_id  # closing forgets it
        try:
            self._consumer.close(autocommit=False, timeout_ms=1_000)
        except (KafkaError, OSError) as error:
            _log.debug("consumer.closed", reason=str(error))
        if owned:
            self._deliver(Revoked(owned))

    def leave(self) -> None:
        """Take a closed member with an instance out of the group: closing leaves its place to a successor.

        It is named by its member id, too, so that a successor which has the place already is not put out of it. Where
        the brokers refuse or are away, the end of the session does the same, later.
        """
        if not self._membership.instance or not self._member_id:
            return
        member = MemberToRemove(self._member_id, self._membership.instance, "told to give its partitions away")
        try:
            admin = make_admin(self._settings, client_id=self._membership.client_id)
            try:
                removed = admin.remove_group_members(self._settings.topic_prefix + self._membership.group, [member])
            finally:
                admin.close()
        except (KafkaError, OSError) as error:
            _log.warning(LogEvent.KAFKA_LOST, reason=f"not left the group: {type(error).__name__}: {error}")
            return
        for refusal in removed.values():
            if refusal is not NoError:
                _log.warning(LogEvent.MEMBERSHIP_LOST, instance=member.group_instance_id, reason=refusal.__name__)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Told by the consumer on its I/O thread; must return promptly."""

    def __init__(self, session: _Session) -> None:
        self._session = session

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._session.assigned(frozenset(place.partition for place in assigned))

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._session.revoked(frozenset(place.partition for place in revoked))
