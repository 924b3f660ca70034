"""How a partition's channels pass from one shard to another without being left: *revoked is not part*.

Kafka's group says who is to hold a partition; it does not say when the other has joined the channels. So the taker
writes `taking` to `shard-holdings`, joins, and writes `confirmed` for what it has; the giver parts channel by channel,
only on a `confirmed` that quotes the latest `taking`, and writes `released` when nothing is left. The topic has one
partition: its order is what "latest" means, for everybody alike. No clock parts a channel while its process lives.

A process names itself anew at each start (`process`), so that a successor with the same group instance is another.
Pure: one `Holding` a partition, events in, commands out. Which channels a partition has is the carrier's knowledge.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from serverchange.events import Channel, HoldingAction

CHANNELS_PER_RECORD: Final = 500
"""Names in one `confirmed`: 13 kB at most."""


@dataclass(frozen=True, slots=True)
class Taking:
    """A claim on a partition: who, and the number of the claim."""

    process: str
    generation: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """The group gave us the partition."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """The group gave the partition to somebody else, or will; our links stay."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A record of `shard-holdings`, in the topic's order, our own included."""

    action: HoldingAction
    taking: Taking
    channels: tuple[Channel, ...] = ()


@dataclass(frozen=True, slots=True)
class Confirmed:
    """We read these channels now (or know that nobody wants them any more)."""

    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class Emptied:
    """None of the partition's channels is left here."""


HoldingEvent: TypeAlias = Assigned | Revoked | Heard | Confirmed | Emptied


@dataclass(frozen=True, slots=True)
class Publish:
    """Write a record to `shard-holdings`."""

    action: HoldingAction
    generation: int
    channels: tuple[Channel, ...] = ()


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Another process reads these channels: part them here."""

    channels: tuple[Channel, ...]


HoldingCommand: TypeAlias = Publish | GiveUp


@dataclass(frozen=True, slots=True)
class Holding:
    """One partition, as one process sees it.

    Attributes:
        us: this process.
        latest: the last `taking` in the topic.
        ours: our own claim, from when it was decided on; None when we make none.
        last_claim: generation of our last claim, so that no two of ours are alike.
        giving: our channels wait for another process to confirm them.
        ready: confirmed channels not written yet, because our claim has not been read back.
    """

    us: str
    latest: Taking | None = None
    ours: int | None = None
    last_claim: int = 0
    giving: bool = False
    ready: tuple[Channel, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the partition is ours by the topic's order."""
        return self.ours is not None and self.latest == Taking(self.us, self.ours)


HoldingStep = tuple[Holding, tuple[HoldingCommand, ...]]


def step(holding: Holding, event: HoldingEvent) -> HoldingStep:
    """Take one event; return the new value and the commands, to be carried out in order."""
    match event:
        case Assigned():
            return _take(holding)
        case Revoked():
            return replace(holding, ours=None, giving=True, ready=()), ()
        case Heard():
            return _hear(holding, event)
        case Confirmed(channels):
            if holding.ours is None:
                return holding, ()
            return _write_ready(replace(holding, ready=holding.ready + channels))
        case Emptied():
            if not holding.giving:
                return holding, ()
            generation = holding.latest.generation if holding.latest else 0
            return replace(holding, giving=False), (Publish(HoldingAction.RELEASED, generation),)


def _take(holding: Holding) -> HoldingStep:
    """Claim the partition; getting it back cancels the giving."""
    generation = max(holding.latest.generation if holding.latest else 0, holding.last_claim) + 1
    taken = replace(holding, ours=generation, last_claim=generation, giving=False, ready=())
    return taken, (Publish(HoldingAction.TAKING, generation),)


def _hear(holding: Holding, heard: Heard) -> HoldingStep:
    if heard.action is HoldingAction.TAKING:
        return _hear_taking(holding, heard.taking)
    from_taker = heard.taking == holding.latest and heard.taking.process != holding.us
    if heard.action is HoldingAction.CONFIRMED and holding.giving and from_taker:
        return holding, (GiveUp(heard.channels),)
    return holding, ()


def _hear_taking(holding: Holding, taking: Taking) -> HoldingStep:
    known = replace(holding, latest=taking)
    if known.held:
        return _write_ready(known)
    if holding.held:
        # A successor with our group instance takes over without the group telling us: so we learn of it here.
        return replace(known, ours=None, giving=True, ready=()), ()
    # Either we claim nothing, or our own claim has not been read back: then it stands behind this one.
    return known, ()


def _write_ready(holding: Holding) -> HoldingStep:
    if not holding.held or not holding.ready or holding.ours is None:
        return holding, ()
    generation, ready = holding.ours, holding.ready
    pieces = [ready[start : start + CHANNELS_PER_RECORD] for start in range(0, len(ready), CHANNELS_PER_RECORD)]
    written = tuple(Publish(HoldingAction.CONFIRMED, generation, piece) for piece in pieces)
    return replace(holding, ready=()), written


def replay(us: str, records: Iterable[Heard]) -> Holding:
    """What a process that has just started makes of the topic's past: the latest claim, and nothing of its own."""
    latest = None
    for record in records:
        if record.action is HoldingAction.TAKING:
            latest = record.taking
    return Holding(us, latest)
