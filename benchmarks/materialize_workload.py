"""The workload of the materializer's benchmarks: made from a seed, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from serverchange.events import (
    Channel,
    ChannelTracked,
    Cluster,
    ClusterObserved,
    LookupSource,
    NoticeReason,
    ObservedData,
    ServerChangeData,
    ServerChangeReceived,
    TrackedData,
)
from serverchange.tracker.channel_state import ChannelState, fold

SEED: Final = 4877
EPOCH: Final = datetime(2026, 5, 1, tzinfo=UTC)
CLUSTERS: Final = ("main", "event", "aws", "aws-east-1", "aws-west-2")
CHANGES: Final = 0.10
NOTICES: Final = 0.02
POISON: Final = 0.001
SOURCE: Final = "serverchange/poller/0f3c9a17-5d0e-4c53-9e54-1b7a6a1f0c55/benchmark"
"""A source as long as a real one, so that an event has 400 to 450 bytes."""


@dataclass(slots=True)
class Workload:
    """`setup` makes every channel known and verified; `events` is what is measured. Pairs of key and value."""

    setup: list[tuple[bytes, bytes]]
    events: list[tuple[bytes, bytes]]
    changes: int
    sha256: str


class _Writer:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.number = 0

    def envelope(self, channel: Channel) -> dict[str, object]:
        self.number += 1
        identity = uuid.UUID(int=self.chance.getrandbits(128), version=4)
        moment = EPOCH + timedelta(milliseconds=7 * self.number)
        return {"id": str(identity), "source": SOURCE, "time": moment, "subject": channel}

    def tracked(self, channel: Channel) -> ChannelTracked:
        return ChannelTracked(**self.envelope(channel), data=TrackedData(service="benchmark", labels=("partner",)))

    def observed(self, channel: Channel, cluster: str, asked_after: int) -> ClusterObserved:
        envelope = self.envelope(channel)
        asked_at = EPOCH + timedelta(milliseconds=7 * self.number - 120)
        data = ObservedData(
            cluster=Cluster(cluster),
            asked_after=asked_after,
            asked_at=asked_at,
            answered_at=asked_at + timedelta(milliseconds=83),
            via=LookupSource.SERVERS,
        )
        return ClusterObserved(**envelope, data=data)

    def notice(self, state: ChannelState) -> ServerChangeReceived:
        data = ServerChangeData(
            heard_on=Cluster(state.cluster or "main"),
            target=None,
            believed_version=state.version,
            reason=NoticeReason.MOVED,
        )
        return ServerChangeReceived(**self.envelope(state.channel), data=data)


def make_workload(events: int, channels: int, seed: int = SEED) -> Workload:
    """Return `events` records over `channels` channels: 10 % changes, 2 % notices, 0.1 % poison, else agreement."""
    writer = _Writer(seed)
    states: list[ChannelState] = []
    setup = []
    for number in range(channels):
        channel = Channel(f"streamer_{number:07d}")
        state: ChannelState | None = None
        for event in (
            writer.tracked(channel),
            writer.observed(channel, "main", 1),
            writer.observed(channel, "main", 2),
        ):
            state = fold(state, event, 0).state
            setup.append((channel.encode(), event.to_record()))
        if state is not None:
            states.append(state)
    measured = list(_measured(writer, states, events))
    digest = hashlib.sha256()
    for _, key, value in measured:
        digest.update(key + b"\0" + value + b"\n")
    changes = sum(changed for changed, _, _ in measured)
    return Workload(setup, [(key, value) for _, key, value in measured], changes, digest.hexdigest())


def _measured(writer: _Writer, states: list[ChannelState], events: int) -> Iterator[tuple[bool, bytes, bytes]]:
    for _ in range(events):
        number = writer.chance.randrange(len(states))
        state = states[number]
        roll = writer.chance.random()
        if roll < POISON:
            yield False, state.channel.encode(), writer.observed(state.channel, "main", 0).to_record()[:-1]
            states[number] = state._replace(seq=state.seq + 1)
            continue
        event: ClusterObserved | ServerChangeReceived
        if roll < POISON + NOTICES:
            event = writer.notice(state)
        else:
            other = [one for one in CLUSTERS if one not in {state.cluster, state.left_cluster}]
            moves = roll < POISON + NOTICES + CHANGES
            cluster = writer.chance.choice(other) if moves else state.cluster or "main"
            event = writer.observed(state.channel, cluster, state.seq)
        folded = fold(state, event, 0)
        if folded.state is not None:
            states[number] = folded.state
        yield folded.change is not None, state.channel.encode(), event.to_record()
