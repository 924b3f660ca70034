"""Which channels the listener hears, and what it makes of what it hears. Runs in the event loop; waits for nothing.

A shard hears the notices for its own channels. So the listener joins only channels of partitions that no shard has held
for `UNHELD_S`, and leaves them as soon as one does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import ValidationError

from serverchange.adapters import metrics
from serverchange.adapters.hearsay import Hearsay
from serverchange.adapters.kafka.table_follower import TableRecord
from serverchange.adapters.link_fleet import LinkFleet
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.events import (
    ChangeKind,
    Channel,
    ChannelLive,
    Cluster,
    ClusterChanged,
    ClusterServers,
    DoubtReason,
)
from serverchange.topics import CHANNEL_LIVE, CLUSTERS
from serverchange.tracker.handover_words import Record

_log = get_logger("listener")

UNHELD_S: Final = 15.0
"""A shard that is started again, or a rebalance, is over in less: a killed member's partitions are served after 8 s."""


class Listener:
    """Decides for one process; implements the hearers of the fleet and of the change follower.

    Args:
        hearsay: for notices and doubts.
        directory: learns the clusters' servers.
    """

    def __init__(self, *, hearsay: Hearsay, directory: ServerDirectory) -> None:
        self._hearsay = hearsay
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._places: dict[int, dict[Channel, tuple[Cluster, tuple[int, int]]]] = {}
        self._held_at: dict[int, float] = {}
        self._open: set[int] = set()
        self.fleet: LinkFleet

    # Which channels.

    def partition_assigned(self, partition: int) -> None:
        """Its channels come with `partition_loaded`; whether they are ours to hear, with `note_held`."""
        self._held_at[partition] = self._loop.time()

    def partition_loaded(self, partition: int, snapshot: Mapping[Channel, ClusterChanged]) -> None:
        """Remember where the partition's channels are."""
        self._places[partition] = {}
        for change in snapshot.values():
            self.channel_changed(partition, change)

    def partition_revoked(self, partition: int) -> None:
        """Another listener has it."""
        self._close(partition)
        self._places.pop(partition, None)
        self._held_at.pop(partition, None)
        metrics.PARTITIONS_OWNED.set(len(self._open))

    def channel_changed(self, partition: int, change: ClusterChanged) -> None:
        """Remember where the channel is now, and follow it if no shard does."""
        places, channel = self._places.setdefault(partition, {}), change.subject
        if change.data.what is ChangeKind.UNTRACKED or change.data.cluster is None:
            places.pop(channel, None)
            if partition in self._open:
                self.fleet.unwant(channel)
            return
        places[channel] = (change.data.cluster, change.order)
        if partition in self._open:
            self.fleet.want(channel, change.data.cluster, change.order)

    def note_held(self, held: frozenset[int]) -> None:
        """Take the brokers' word on what shards hold: join what nobody has held for long enough, leave the rest."""
        now = self._loop.time()
        for partition in self._places:
            if partition in held:
                self._held_at[partition] = now
                self._close(partition)
            elif partition not in self._open and now >= self._held_at.get(partition, now) + UNHELD_S:
                self._open.add(partition)
                for channel, (cluster, order) in self._places[partition].items():
                    self.fleet.want(channel, cluster, order)
        metrics.PARTITIONS_OWNED.set(len(self._open))

    def _close(self, partition: int) -> None:
        if partition in self._open:
            self._open.discard(partition)
            for channel in self._places[partition]:
                self.fleet.unwant(channel)

    # What tables say.

    def take_table_records(self, records: Iterable[TableRecord]) -> None:
        """Learn servers, and which channels are live."""
        for record in records:
            if record.value is None:
                continue
            try:
                if record.topic is CLUSTERS:
                    servers = ClusterServers.model_validate_json(record.value)
                    if self._directory.learn(servers.subject, servers.data.servers, servers.data.websocket_servers):
                        self.fleet.servers_changed(servers.subject)
                elif record.topic is CHANNEL_LIVE:
                    live = ChannelLive.model_validate_json(record.value)
                    self.fleet.set_live(live.subject, live=live.data.live)
            except ValidationError as error:
                _log.error(LogEvent.RECORD_REFUSED, topic=record.topic.name, offset=record.offset, reason=str(error))

    # What the fleet hears.

    def line_received(self, channel: Channel, raw: bytes, cluster: Cluster) -> None:
        """Chat is not the listener's; its fleet is told not to read it."""

    def notice_heard(
        self, channel: Channel, heard_on: Cluster, target: Cluster | None, version: int, *, joining: bool
    ) -> None:
        """Publish the notice; the decision comes back as a change."""
        self._hearsay.notice(channel, heard_on, target, version, joining=joining)

    def doubt_raised(self, channel: Channel, reason: DoubtReason) -> None:
        """Publish the doubt; a lookup will follow."""
        self._hearsay.doubt(channel, reason)

    def channel_confirmed(self, channel: Channel) -> None:
        """Nobody waits for it."""

    def handover_ended(self, channel: Channel, record: Record) -> None:
        """The fleet counts it."""
