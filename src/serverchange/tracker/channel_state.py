"""The rule of a change: folds the records of one channel into its state and the changes to publish.

It decides which cluster a channel is believed to be on; it never reads a clock. What orders knowledge is the log:
`seq` numbers the records with a channel's key since it was first tracked, whatever they hold, so it is the same in
any copy of the log. A lookup says by `asked_after` what its asker had folded when the request left; older than
`known_after`, the last record that altered belief, it is stale. The only time is the record's append time, kept for
`since` and for flapping.

Sources: what the platform does is from its developer forum (thread 4877: silent moves, moves back, no target in
SERVERCHANGE); the three doubts from a model of replicas lagging up to a minute (docs/adr/0003-no-clock-decides.md);
the penalty from route flap damping (RFC 2439, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from serverchange.events import (
    GROUP_CLUSTER,
    ChangeKind,
    Channel,
    ChannelDoubted,
    ChannelEvent,
    ChannelKind,
    ChannelPinned,
    ChannelTracked,
    ChannelUnpinned,
    ChannelUntracked,
    Cluster,
    ClusterObserved,
    Rejected,
    ServerChangeReceived,
    labels_union,
)

RULES_VERSION: Final = 1
"""Raise it whenever a fold of the same log could give another result: tables of other rules are refused."""

DOUBTS_TO_DECIDE: Final = 3
"""Lookups in a row, each asked after the one before, that must contradict before a channel goes back: replicas of
the platform's API lag, and without doubts each flip would be two handovers."""

DOUBT_WINDOW_MS: Final = 600_000
"""For so long (append time) after leaving a cluster, a lookup that names it again is a doubt, even once verified:
ten times the longest lag of a replica in the model."""

PENALTY_PER_MOVE: Final = 1_000
PENALTY_HALF_LIFE_MS: Final = 900_000
FLAPPING_ABOVE: Final = 2_500
"""RFC 2439's example values: a penalty of 1,000 a flap, a half-life of 15 minutes, suppressed above 2.5 flaps."""

PENALTY_MAX: Final = 20_000
"""RFC 2439 bounds it, too, so that a channel that settles is believed again: here within three quarters of an hour."""

EVIDENCE_MAX: Final = 8
"""Ids of deciding events kept with a belief: a notice and its doubts are at most four."""

SERVICES_MAX: Final = 64
"""Services that may want one channel; a further one is refused with a dead letter."""


class Status(StrEnum):
    """How much is known of where a channel is."""

    UNKNOWN = "unknown"
    SETTLED = "settled"
    MOVING = "moving"
    UNTRACKED = "untracked"


@dataclass(frozen=True, slots=True)
class Wanting:
    """What one service said when it asked for a channel."""

    service: str
    labels: tuple[str, ...] = ()
    account: str | None = None


class ChannelState(NamedTuple):
    """All that the fold knows of one channel.

    A tuple, since the fold makes one for each record: `dataclasses.replace` took 3.8 of 9.2 microseconds a record.

    Attributes:
        seq: records with this key folded so far, whatever they held.
        known_after: seq of the last record that altered belief; lookups asked before it are stale.
        cluster: the believed cluster; while moving the last one.
        left_cluster: the cluster that the channel last left by evidence (never by a pin), or None.
        left_at_ms: append time of leaving it, milliseconds since 1970.
        verified: a lookup asked after the last change agreed.
        doubts: contradicting lookups in a row so far.
        version: number of changes published for this channel; never restarts.
        since_ms: append time of the record that decided the present cluster.
        pinned: the operator's word, or None.
        penalty: route-flap penalty as of `penalty_at_ms`.
        evidence: ids of the events behind the present belief, or behind what is being settled.
    """

    channel: Channel
    seq: int = 0
    known_after: int = 0
    status: Status = Status.UNKNOWN
    cluster: Cluster | None = None
    left_cluster: Cluster | None = None
    left_at_ms: int = 0
    verified: bool = False
    doubts: int = 0
    version: int = 0
    since_ms: int = 0
    kind: ChannelKind = ChannelKind.CHAT
    wanting: tuple[Wanting, ...] = ()
    pinned: Cluster | None = None
    room_id: str | None = None
    penalty: int = 0
    penalty_at_ms: int = 0
    evidence: tuple[str, ...] = ()

    @property
    def tracked(self) -> bool:
        """Whether any service wants this channel."""
        return self.status is not Status.UNTRACKED

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that any service gave, sorted."""
        return labels_union(wanting.labels for wanting in self.wanting)

    @property
    def account(self) -> str | None:
        """The account asked for by the first service (in name order) that asked for one."""
        return next((wanting.account for wanting in self.wanting if wanting.account is not None), None)

    def differs_only_in_seq(self, before: ChannelState) -> bool:
        """Whether nothing but `seq` differs from `before`: the usual record, a lookup that agrees."""
        return self[2:] == before[2:] and self.channel == before.channel

    @property
    def needs_lookup(self) -> bool:
        """Whether a lookup could settle or verify it: tracked, not pinned, no group room, not yet verified."""
        return self.tracked and self.pinned is None and self.kind is ChannelKind.CHAT and not self.verified


@dataclass(frozen=True, slots=True)
class Change:
    """A decision to publish; the projection adds the generation."""

    channel: Channel
    what: ChangeKind
    previous: Cluster | None
    cluster: Cluster | None
    version: int
    since_ms: int
    kind: ChannelKind
    labels: tuple[str, ...]
    account: str | None
    evidence: tuple[str, ...]


class Folded(NamedTuple):
    """What one record did: the state after it (None: nobody ever tracked the channel), the change, the refusal.

    A tuple, since there is one for each record. `change` is at most one: a record decides at most once. `refused` is a
    dead letter's reason.
    """

    state: ChannelState | None
    change: Change | None = None
    refused: str | None = None


_Step: TypeAlias = tuple[ChannelState, Change | None]


def fold(state: ChannelState | None, event: ChannelEvent | Rejected, appended_at_ms: int) -> Folded:
    """Fold one record of a channel, appended at `appended_at_ms` (milliseconds since 1970), into its state.

    A record that is no event (`Rejected`) counts in `seq` like any other, since every copy of the log holds it, and
    leaves the rest alone. Records before the first `channel.tracked` leave no trace.
    """
    if state is None:
        if isinstance(event, Rejected):
            return Folded(None, refused=str(event))
        if not isinstance(event, ChannelTracked):
            return Folded(None)
        state = ChannelState(channel=event.subject, status=Status.UNTRACKED)
    state = ChannelState(state[0], state[1] + 1, *state[2:])  # seq + 1, twice as fast as `_replace`
    if isinstance(event, Rejected):
        return Folded(state, refused=str(event))
    if isinstance(event, ClusterObserved) and event.data.asked_after >= state.seq:
        return Folded(
            state,
            refused=f"asked_after {event.data.asked_after} is impossible: the record itself is number {state.seq}",
        )
    if isinstance(event, ChannelTracked) and _too_many_services(state, event.data.service):
        return Folded(state, refused=f"more than {SERVICES_MAX} services want this channel")
    if event.room_id is not None and event.room_id != state.room_id:
        state = state._replace(room_id=event.room_id)
    after, change = _fold_event(state, event, appended_at_ms)
    return Folded(after, change)


def _fold_event(state: ChannelState, event: ChannelEvent, at_ms: int) -> _Step:
    kind = type(event)
    if kind in _WANTS or (state.tracked and (kind in _ORDERS or _is_judged_by_evidence(state))):
        return _STEPS[kind](state, event, at_ms)
    return state, None


def _is_judged_by_evidence(state: ChannelState) -> bool:
    """Whether lookups and notices count: an operator's word and a group room are above them."""
    return state.pinned is None and state.kind is not ChannelKind.GROUP


def penalty_at(state: ChannelState, now_ms: int) -> float:
    """Return the route-flap penalty, decayed to `now_ms`."""
    elapsed_ms = max(0, now_ms - state.penalty_at_ms)
    return float(state.penalty * 0.5 ** (elapsed_ms / PENALTY_HALF_LIFE_MS))


def is_flapping(state: ChannelState, now_ms: int) -> bool:
    """Return whether the channel moved so often of late that subscribers should be slow to follow."""
    return penalty_at(state, now_ms) > FLAPPING_ABOVE


def would_alter(state: ChannelState | None, event: ChannelEvent, appended_at_ms: int) -> bool:
    """Return whether folding `event` next would change more than `seq`: pollers publish nothing else."""
    if state is None:
        return isinstance(event, ChannelTracked)
    after = fold(state, event, appended_at_ms).state
    return after is not None and after._replace(seq=state.seq) != state


def _publish(state: ChannelState, what: ChangeKind, previous: Cluster | None) -> _Step:
    state = state._replace(version=state.version + 1)
    change = Change(
        channel=state.channel,
        what=what,
        previous=previous,
        cluster=state.cluster,
        version=state.version,
        since_ms=state.since_ms,
        kind=state.kind,
        labels=state.labels,
        account=state.account,
        evidence=state.evidence,
    )
    return state, change


def _too_many_services(state: ChannelState, service: str) -> bool:
    return len(state.wanting) >= SERVICES_MAX and all(wanting.service != service for wanting in state.wanting)


def _track(state: ChannelState, event: ChannelTracked, at_ms: int) -> _Step:
    data = event.data
    others = [wanting for wanting in state.wanting if wanting.service != data.service]
    mine = Wanting(data.service, labels_union([data.labels]), data.account)
    wanting = tuple(sorted([*others, mine], key=lambda one: one.service))
    if state.tracked:
        return _relabel(state, wanting, event.id)
    state = state._replace(
        wanting=wanting,
        known_after=state.seq,
        status=Status.UNKNOWN,
        cluster=None,
        left_cluster=None,
        left_at_ms=0,
        verified=False,
        doubts=0,
        kind=data.kind,
        pinned=None,
        evidence=(event.id,),
    )
    if data.kind is ChannelKind.GROUP:
        state = state._replace(status=Status.SETTLED, cluster=GROUP_CLUSTER, verified=True, since_ms=at_ms)
        return _publish(state, ChangeKind.FIRST_SEEN, None)
    return state, None


def _relabel(state: ChannelState, wanting: tuple[Wanting, ...], event_id: str) -> _Step:
    after = state._replace(wanting=wanting)
    same = after.labels == state.labels and after.account == state.account
    if same or state.cluster is None:
        return after, None
    published, change = _publish(after._replace(evidence=(event_id,)), ChangeKind.LABELLED, state.cluster)
    return published._replace(evidence=state.evidence), change


def _untrack(state: ChannelState, event: ChannelUntracked, at_ms: int) -> _Step:
    wanting = tuple(one for one in state.wanting if one.service != event.data.service)
    if not state.tracked or len(wanting) == len(state.wanting):
        return state, None
    if wanting:
        return _relabel(state, wanting, event.id)
    after = state._replace(
        wanting=(),
        status=Status.UNTRACKED,
        verified=False,
        doubts=0,
        pinned=None,
        known_after=state.seq,
        evidence=(event.id,),
    )
    if state.cluster is None:
        return after, None
    return _publish(after._replace(since_ms=at_ms), ChangeKind.UNTRACKED, state.cluster)


def _pin(state: ChannelState, event: ChannelPinned, at_ms: int) -> _Step:
    """Believe the operator. The pin is no move of the platform's, so what was left before is forgotten."""
    before = state.cluster
    after = state._replace(
        pinned=event.data.cluster,
        status=Status.SETTLED,
        cluster=event.data.cluster,
        left_cluster=None,
        left_at_ms=0,
        verified=False,
        doubts=0,
        known_after=state.seq,
        evidence=(event.id,),
    )
    if before == after.cluster:
        return after, None
    what = ChangeKind.FIRST_SEEN if before is None else ChangeKind.MOVED
    return _publish(after._replace(since_ms=at_ms), what, before)


def _unpin(state: ChannelState, event: ChannelUnpinned, at_ms: int) -> _Step:
    if state.pinned is None:
        return state, None
    after = state._replace(pinned=None, doubts=0, known_after=state.seq)
    if state.kind is not ChannelKind.GROUP:
        return after, None
    after = after._replace(cluster=GROUP_CLUSTER, verified=True, evidence=(event.id,))
    if state.cluster == GROUP_CLUSTER:
        return after, None
    return _publish(after._replace(since_ms=at_ms), ChangeKind.MOVED, state.cluster)


def _observe(state: ChannelState, event: ClusterObserved, at_ms: int) -> _Step:
    seen = event.data.cluster
    if event.data.asked_after < state.known_after:
        contradicts = state.status is Status.SETTLED and seen != state.cluster
        return (state._replace(verified=False) if contradicts else state), None
    if _is_doubtful(state, seen, at_ms):
        return _count_doubt(state, event, at_ms)
    if seen == state.cluster and state.status is Status.SETTLED:
        agreed = state.verified and not state.doubts
        return (state if agreed else state._replace(verified=True, doubts=0)), None
    return _move(state, seen, (*state.evidence, event.id) if state.status is Status.MOVING else (event.id,), at_ms)


def _is_doubtful(state: ChannelState, seen: Cluster, at_ms: int) -> bool:
    """Whether `seen` is where the channel just came from, so that a lagging replica may have answered."""
    if state.status is Status.MOVING:
        return seen == state.cluster
    recently = not state.verified or at_ms - state.left_at_ms < DOUBT_WINDOW_MS
    return seen == state.left_cluster and recently


def _count_doubt(state: ChannelState, event: ClusterObserved, at_ms: int) -> _Step:
    evidence = (*state.evidence, event.id)[-EVIDENCE_MAX:]
    if state.doubts + 1 < DOUBTS_TO_DECIDE:
        doubted = state._replace(doubts=state.doubts + 1, verified=False, known_after=state.seq, evidence=evidence)
        return doubted, None
    if state.status is Status.MOVING:
        settled = state._replace(
            status=Status.SETTLED, verified=True, doubts=0, known_after=state.seq, evidence=evidence
        )
        return settled, None
    return _move(state, event.data.cluster, evidence, at_ms)


def _move(state: ChannelState, to: Cluster, evidence: tuple[str, ...], at_ms: int) -> _Step:
    """Believe `to` from now on; unverified, until a lookup asked after this record agrees."""
    before = state.cluster
    after = state._replace(
        status=Status.SETTLED,
        cluster=to,
        left_cluster=before,
        left_at_ms=at_ms if before is not None else 0,
        verified=False,
        doubts=0,
        known_after=state.seq,
        since_ms=at_ms,
        evidence=evidence[-EVIDENCE_MAX:],
    )
    if before is None:
        return _publish(after, ChangeKind.FIRST_SEEN, None)
    penalty = min(PENALTY_MAX, round(penalty_at(state, at_ms)) + PENALTY_PER_MOVE)
    return _publish(after._replace(penalty=penalty, penalty_at_ms=at_ms), ChangeKind.MOVED, before)


def _notice(state: ChannelState, event: ServerChangeReceived, at_ms: int) -> _Step:
    data = event.data
    if state.status is not Status.SETTLED or data.heard_on != state.cluster:
        return state, None
    # A target that is the group cluster or the very place it was heard on contradicts itself: no target then.
    target = None if data.target in {GROUP_CLUSTER, data.heard_on} else data.target
    if target is not None and data.believed_version == state.version:
        return _move(state, target, (event.id,), at_ms)
    moving = state._replace(
        status=Status.MOVING,
        verified=False,
        doubts=0,
        known_after=state.seq,
        evidence=(event.id,),
    )
    return moving, None


def _doubt(state: ChannelState, event: ChannelDoubted, _at_ms: int) -> _Step:
    """Ask for a lookup. While one is wanted already a further doubt must not make the answers under way stale."""
    if not state.verified:
        return state, None
    doubted = state._replace(
        verified=False, known_after=state.seq, evidence=(*state.evidence, event.id)[-EVIDENCE_MAX:]
    )
    return doubted, None


_WANTS: Final = frozenset({ChannelTracked, ChannelUntracked})
"""Heeded whatever the state: they decide whether the channel is tracked at all."""

_ORDERS: Final = frozenset({ChannelPinned, ChannelUnpinned})
"""Heeded for every tracked channel."""

_STEPS: Final[dict[type[ChannelEvent], Callable[[ChannelState, Any, int], _Step]]] = {
    ChannelTracked: _track,
    ChannelUntracked: _untrack,
    ChannelPinned: _pin,
    ChannelUnpinned: _unpin,
    ClusterObserved: _observe,
    ServerChangeReceived: _notice,
    ChannelDoubted: _doubt,
}
