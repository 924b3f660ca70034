"""One bot shard: which channels are ours, from where they are read, and when another shard may have them.

One task owns all of it: partitions and changes come from `ChangeFollower`, tables from `TableFollower`, what links hear
from the fleet, all in the event loop. Nothing here waits for Kafka or PostgreSQL.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import uuid_utils
from pydantic import ValidationError

from serverchange.adapters import metrics
from serverchange.adapters.hearsay import Hearsay
from serverchange.adapters.kafka.publisher import EventPublisher, PublishError
from serverchange.adapters.kafka.table_follower import TableRecord
from serverchange.adapters.link_fleet import LinkFleet
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.postgres.doubts import OpenDoubt
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.adapters.tracing import SpanName, is_tracing, record_span
from serverchange.events import (
    ChangeKind,
    Channel,
    ChannelLive,
    Cluster,
    ClusterChanged,
    ClusterServers,
    DoubtReason,
    HoldingAction,
    ShardHolding,
    ShardHoldingData,
)
from serverchange.reconnector.account_places import AccountPlaces
from serverchange.reconnector.chat_writer import ChatWriter
from serverchange.reconnector.handover_reports import HandoverReports
from serverchange.reconnector.silence import SilenceWatch
from serverchange.topics import CHANNEL_LIVE, CLUSTERS, SHARD_HOLDINGS
from serverchange.tracker.handover_words import Outcome, Record
from serverchange.tracker.holdings import (
    Assigned,
    Confirmed,
    Emptied,
    GiveUp,
    Heard,
    Holding,
    HoldingEvent,
    Publish,
    Revoked,
    Taking,
    step,
)

_log = get_logger("shard")

CONFIRM_INTERVAL_S: Final = 0.2
"""Confirmations of so long are written together."""

PUBLISH_RETRY_S: Final = 1.0

ACCOUNTS_TOLD_MAX: Final = 100
"""Other accounts named in the log, once each; the metric counts all channels."""


@dataclass(slots=True)
class _Partition:
    holding: Holding
    channels: set[Channel] = field(default_factory=set)
    confirmed: list[Channel] = field(default_factory=list)


class Shard:
    """Decides for one process; implements the hearers of the fleet and of the change follower.

    Args:
        name: of the process, stable over restarts.
        places: finds the account that joins a channel.
        publisher: for `shard-holdings`.
        hearsay: for notices and doubts.
        chat: for received lines.
        reports: for handovers that ended.
        directory: learns the clusters' servers.
    """

    def __init__(
        self,
        name: str,
        *,
        places: Callable[[Callable[[Channel, str], None]], AccountPlaces],
        publisher: EventPublisher,
        hearsay: Hearsay,
        chat: ChatWriter,
        reports: HandoverReports,
        directory: ServerDirectory,
    ) -> None:
        self._process = f"{name}/{uuid.uuid4().hex[:8]}"
        self.places = places(self._placed)
        self._unplaced: dict[Channel, tuple[Cluster, tuple[int, int]]] = {}
        self._publisher = publisher
        self._hearsay = hearsay
        self._chat = chat
        self._reports = reports
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._partitions: dict[int, _Partition] = {}
        self._homes: dict[Channel, int] = {}
        self._foreign: dict[Channel, int] = {}
        self._accounts_told: set[str] = set()
        self._doubts: dict[Channel, tuple[int, int]] = {}
        self._records: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._confirming: asyncio.TimerHandle | None = None
        self._traces: dict[Channel, str] = {}
        self._silence = SilenceWatch()
        self._live: set[Channel] = set()
        self.changed = asyncio.Event()
        self.fleet: LinkFleet

    # What is ours.

    def partition_assigned(self, partition: int) -> None:
        """Claim the partition; its channels come with `partition_loaded`."""
        self._tell(partition, Assigned())
        known = self._partitions[partition]
        self._confirm(partition, [channel for channel in known.channels if self.fleet.is_confirmed(channel)])

    def partition_loaded(self, partition: int, snapshot: Mapping[Channel, ClusterChanged]) -> None:
        """Join what the snapshot says, and say of the rest that nobody wants it."""
        gone = [channel for channel in self._partitions[partition].channels if channel not in snapshot]
        for channel in gone:
            self._drop(channel)
        self._forget_foreign(partition)
        for change in snapshot.values():
            self._follow(partition, change)

    def partition_revoked(self, partition: int) -> None:
        """Keep every link: the channels go one by one, as the taker confirms them."""
        self._tell(partition, Revoked())
        self._forget_foreign(partition)
        self._give_up_unread(partition)

    def channel_changed(self, partition: int, change: ClusterChanged) -> None:
        """Join a channel, move it, or leave it."""
        if change.traceparent is not None and change.data.what in {ChangeKind.FIRST_SEEN, ChangeKind.MOVED}:
            self._traces[change.subject] = change.traceparent
        self._follow(partition, change)

    def _follow(self, partition: int, change: ClusterChanged) -> None:
        channel = change.subject
        known = self._partition(partition)
        if known.holding.ours is None:
            return  # another shard claims it; what it decides is no longer ours to follow
        if change.data.what is ChangeKind.UNTRACKED or change.data.cluster is None:
            self._drop(channel)
            self.places.release(channel)
            self._confirm(partition, [channel])  # a giver that has not heard of it may part it
            return
        must = change.data.account
        if must is not None and must not in self.places.accounts:
            self._pass_over(partition, change)
            return
        self._foreign.pop(channel, None)
        if channel not in self._homes and channel in self._live:
            self._silence.set_live(channel, live=True, now=self._loop.time())
        known.channels.add(channel)
        self._homes[channel] = partition
        self._want(channel, change.data.cluster, change.order, must)

    def _want(self, channel: Channel, cluster: Cluster, order: tuple[int, int], must: str | None) -> None:
        """Read the channel. A move goes at once, by the account that joins it; a first join may have to find one."""
        account = self.places.only if self.places.only is not None else self.fleet.account_of(channel)
        if account is not None:
            self.fleet.want(channel, cluster, order, account)
        if account is None or must not in (None, account):
            self._unplaced[channel] = (cluster, order)
            self.places.ask(channel, must)

    def _placed(self, channel: Channel, account: str) -> None:
        if (place := self._unplaced.pop(channel, None)) is not None:
            self.fleet.want(channel, *place, account)

    def _pass_over(self, partition: int, change: ClusterChanged) -> None:
        """Leave a channel to the account that it asks for.

        It is not confirmed: a giver that reads it with the right account keeps it for as long as its process lives.
        """
        self._drop(change.subject)
        self._foreign[change.subject] = partition
        account = change.data.account or ""
        if account not in self._accounts_told and len(self._accounts_told) < ACCOUNTS_TOLD_MAX:
            self._accounts_told.add(account)
            _log.error(
                LogEvent.CHANNEL_PASSED_OVER,
                channel=change.subject,
                account=account,
                reason=f"it asks for {account}, this shard logs in as {', '.join(self.places.accounts)}: not joined, "
                "as all others that ask for that account",
            )

    def _forget_foreign(self, partition: int) -> None:
        self._foreign = {channel: home for channel, home in self._foreign.items() if home != partition}

    @property
    def foreign_count(self) -> int:
        """Channels of our partitions that ask for another account."""
        return len(self._foreign)

    @property
    def unplaced_count(self) -> int:
        """Channels that are to be read and wait for an account."""
        return sum(1 for channel in self._unplaced if self.fleet.account_of(channel) is None)

    @property
    def partitions_held(self) -> int:
        """Partitions that are ours by the topic's order."""
        return sum(1 for known in self._partitions.values() if known.holding.held)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to give away."""
        return not any(known.channels for known in self._partitions.values())

    @property
    def channel_count(self) -> int:
        """Channels read, or to be read, here."""
        return len(self._homes)

    # What tables say.

    def take_table_records(self, records: Iterable[TableRecord]) -> None:
        """Learn servers, live channels, and what other shards claim and confirm."""
        for record in records:
            if record.value is None:
                continue
            try:
                self._take_table_record(record.topic.name, record.value)
            except ValidationError as error:
                _log.error(LogEvent.RECORD_REFUSED, topic=record.topic.name, offset=record.offset, reason=str(error))

    def _take_table_record(self, topic: str, value: bytes) -> None:
        if topic == CLUSTERS.name:
            servers = ClusterServers.model_validate_json(value)
            if self._directory.learn(servers.subject, servers.data.servers, servers.data.websocket_servers):
                _log.info(LogEvent.SERVERS_CHANGED, cluster=servers.subject, servers=servers.data.servers)
                self.fleet.servers_changed(servers.subject)
        elif topic == CHANNEL_LIVE.name:
            live = ChannelLive.model_validate_json(value)
            self.fleet.set_live(live.subject, live=live.data.live)
            (self._live.add if live.data.live else self._live.discard)(live.subject)
            if live.subject in self._homes:
                self._silence.set_live(live.subject, live=live.data.live, now=self._loop.time())
        elif topic == SHARD_HOLDINGS.name:
            holding = ShardHolding.model_validate_json(value)
            taking = Taking(holding.data.process, holding.data.generation)
            self._tell(int(holding.subject), Heard(holding.data.action, taking, holding.data.channels))

    # What the fleet hears.

    def line_received(self, channel: Channel, raw: bytes, cluster: Cluster) -> None:
        """Hand a line on to its readers."""
        self._silence.heard(channel, self._loop.time())
        self._chat.write(channel, raw, cluster)

    def notice_heard(
        self, channel: Channel, heard_on: Cluster, target: Cluster | None, version: int, *, joining: bool
    ) -> None:
        """Publish the notice; the decision comes back as a change."""
        self._hearsay.notice(channel, heard_on, target, version, joining=joining)

    def doubt_raised(self, channel: Channel, reason: DoubtReason) -> None:
        """Publish the doubt; a lookup will follow."""
        self._doubts.pop(channel, None)
        self._hearsay.doubt(channel, reason)

    def channel_confirmed(self, channel: Channel) -> None:
        """Tell whoever gives the channel's partition that we read it."""
        partition = self._homes.get(channel)
        if partition is not None:
            self._confirm(partition, [channel])
        self.changed.set()

    def handover_ended(self, channel: Channel, record: Record) -> None:
        """Forget the doubts of that handover, report it, and end its trace."""
        self._reports.write(channel, record)
        self._doubts.pop(channel, None)
        if record.outcome is not Outcome.SUPERSEDED:  # the handover that a newer decision asked for is still to come
            traceparent = self._traces.pop(channel, None)
            if traceparent is not None and is_tracing():
                trace_handover(channel, record, traceparent, time.time() - self._loop.time())
        self.changed.set()

    # Doubts.

    def look_for_silence(self) -> None:
        """Doubt live channels that bring no line, and join those elsewhere that used to. Call it every few seconds."""
        for channel, chatty in self._silence.silent(self._loop.time()):
            if not self.fleet.is_confirmed(channel):
                continue
            if chatty:
                self.fleet.leave_ghost(channel)
            else:
                self.doubt_raised(channel, DoubtReason.SILENT)

    def doubt_published(self, channel: Channel, partition: int, offset: int) -> None:
        """Remember where our doubt stands in the log, while an overlap waits for its answer."""
        if channel in self.fleet.doubted:
            self._doubts[channel] = (partition, offset)

    def open_doubts(self) -> list[OpenDoubt]:
        """Doubts that a lookup may have answered by now."""
        doubts = []
        for channel in self.fleet.doubted:
            wanted, place = self.fleet.state(channel).wanted, self._doubts.get(channel)
            if wanted is not None and place is not None:
                doubts.append(OpenDoubt(channel, wanted, *place))
        return doubts

    # Holdings.

    async def write_holdings(self) -> None:
        """Publish our claims and confirmations in their order, each until Kafka has it. Run it in a task."""
        while True:
            key, record = await self._records.get()
            while True:
                try:
                    await self._publisher.publish(SHARD_HOLDINGS, key, record)
                    break
                except PublishError as error:
                    _log.warning(LogEvent.KAFKA_LOST, reason=str(error))
                    await asyncio.sleep(PUBLISH_RETRY_S)

    def _partition(self, partition: int) -> _Partition:
        known = self._partitions.get(partition)
        if known is None:
            known = self._partitions[partition] = _Partition(Holding(self._process))
        return known

    def _tell(self, partition: int, event: HoldingEvent) -> None:
        known = self._partition(partition)
        was_giving = known.holding.giving
        known.holding, commands = step(known.holding, event)
        for command in commands:
            match command:
                case Publish(action, generation, channels):
                    self._publish(partition, action, generation, channels)
                case GiveUp(channels):
                    for channel in channels:
                        if channel in known.channels:
                            self._drop(channel)
                    self._note_emptiness(partition)
        if known.holding.giving and not was_giving:
            self._give_up_unread(partition)
        metrics.PARTITIONS_OWNED.set(self.partitions_held)
        self.changed.set()

    def _publish(self, partition: int, action: HoldingAction, generation: int, channels: tuple[Channel, ...]) -> None:
        event = ShardHolding(
            id=str(uuid_utils.uuid7()),
            source=f"reconnector/{self._process}",
            time=datetime.now(UTC),
            subject=str(partition),
            data=ShardHoldingData(action=action, process=self._process, generation=generation, channels=channels),
        )
        self._records.put_nowait((str(partition), event.to_record()))

    def _give_up_unread(self, partition: int) -> None:
        """What we do not read yet is the taker's to seek: we only part what we have, when it has it."""
        known = self._partitions[partition]
        for channel in [one for one in known.channels if not self.fleet.is_confirmed(one)]:
            self._drop(channel)
        self._note_emptiness(partition)

    def _drop(self, channel: Channel) -> None:
        self._foreign.pop(channel, None)
        partition = self._homes.pop(channel, None)
        if partition is not None:
            self._partitions[partition].channels.discard(channel)
        self._unplaced.pop(channel, None)
        self.places.withdraw(channel)
        self._doubts.pop(channel, None)
        self._traces.pop(channel, None)
        self._silence.forget(channel)
        self.fleet.unwant(channel)
        self.changed.set()

    def _note_emptiness(self, partition: int) -> None:
        known = self._partitions[partition]
        if known.holding.giving and not known.channels:
            self._tell(partition, Emptied())
            self.changed.set()

    def _confirm(self, partition: int, channels: list[Channel]) -> None:
        known = self._partitions[partition]
        if known.holding.ours is None or not channels:
            return
        known.confirmed += channels
        if self._confirming is None:
            self._confirming = self._loop.call_later(CONFIRM_INTERVAL_S, self._confirm_now)

    def _confirm_now(self) -> None:
        self._confirming = None
        for partition, known in self._partitions.items():
            if known.confirmed:
                channels, known.confirmed = tuple(known.confirmed), []
                self._tell(partition, Confirmed(channels))


def trace_handover(channel: Channel, record: Record, parent: str, epoch_s: float) -> None:
    """Record a handover in the trace of the change that asked for it; `epoch_s` turns the record's clock into time."""
    steps = {"join sent": record.sent_at, "confirmed": record.confirmed_at}
    record_span(
        SpanName.HANDOVER,
        parent=parent,
        started_s=record.begun_at + epoch_s,
        ended_s=record.ended_at + epoch_s,
        attributes={
            "channel": channel,
            "cause": record.cause.value,
            "outcome": record.outcome.value,
            "source": record.source,
            "target": record.target,
            "tries": record.tries,
        },
        steps={name: at_s + epoch_s for name, at_s in steps.items() if at_s is not None},
    )
