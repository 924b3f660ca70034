"""What the demo collects to judge a run: the simulator's truth, and what the system said and did.

All times are Unix seconds of one machine's clock: the ledger's, Kafka's and PostgreSQL's are the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serverchange.events import ChangeKind, Channel, ChannelKind, Cluster


@dataclass(frozen=True, slots=True)
class Move:
    """The ledger: from `at_s` on the channel lives on `cluster`."""

    channel: Channel
    previous: Cluster
    cluster: Cluster
    at_s: float


@dataclass(frozen=True, slots=True)
class SentLine:
    """The ledger: a numbered line; `reached` says whether any link of our readers was sent it."""

    channel: Channel
    number: int
    at_s: float
    cluster: Cluster
    reached: bool


@dataclass(frozen=True, slots=True)
class Stay:
    """The ledger: one link of our readers was confirmed in the channel's room on `cluster` for this time."""

    channel: Channel
    cluster: Cluster
    from_s: float
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Stream:
    """The ledger: the channel streamed for this time."""

    channel: Channel
    from_s: float
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Published:
    """A record of `cluster-changes`, in the order of its partition."""

    channel: Channel
    what: ChangeKind
    previous: Cluster | None
    cluster: Cluster | None
    generation: int
    version: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Decided:
    """A change that our own fold of `channel-events` decided."""

    channel: Channel
    version: int
    cluster: Cluster | None


@dataclass(frozen=True, slots=True)
class Belief:
    """What somebody says of a channel: a row, an answer, a folded state."""

    cluster: Cluster | None
    status: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks read.

    Attributes:
        tracked: every channel that we asked for.
        home: where each lived before the first move.
        truth: where each lives at the end.
        moves: in the order of time.
        changes: all of `cluster-changes`, each partition in order.
        decided: what our own fold decided, each channel in order.
        folded: what it believes at the end.
        rows: `channel_state` in PostgreSQL at the end.
        answers: the state API's at the end.
        received: how often a reader of `chat-lines` got each line, after its duplicates were dropped by message id.
        chat_records: records of `chat-lines`, before that.
        dead_letters: records on `dead-letters`.
        violations: of the platform's budgets and manners, by kind.
        joined: (channel, cluster) that our readers' links are confirmed in at the end.
        mismatch_channel_seconds: channels that PostgreSQL had elsewhere than they were, summed over time.
        api_unanswered: samples along the way to which the state API gave no answer.
        lookups: requests that the platform's API answered.
        started_s, ended_s: when the script began, and when the chat stopped.
        time_scale: simulated seconds a real second.
        elapsed_s: the whole run, start and stop included.
    """

    tracked: Mapping[Channel, ChannelKind]
    home: Mapping[Channel, Cluster]
    truth: Mapping[Channel, Cluster]
    moves: Sequence[Move] = ()
    lines: Sequence[SentLine] = ()
    stays: Sequence[Stay] = ()
    streams: Sequence[Stream] = ()
    changes: Sequence[Published] = ()
    decided: Sequence[Decided] = ()
    folded: Mapping[Channel, Belief] = field(default_factory=dict)
    rows: Mapping[Channel, Belief] = field(default_factory=dict)
    answers: Mapping[Channel, Belief] = field(default_factory=dict)
    received: Mapping[tuple[Channel, int], int] = field(default_factory=Counter)
    chat_records: int = 0
    dead_letters: int = 0
    violations: Mapping[str, int] = field(default_factory=dict)
    joined: frozenset[tuple[Channel, Cluster]] = frozenset()
    mismatch_channel_seconds: float = 0.0
    api_unanswered: int = 0
    lookups: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0
    time_scale: float = 1.0
    elapsed_s: float = 0.0
