"""What `tracker.handover` is told (events) and what it wishes (commands), for one channel.

A *link* is named by its generation: a number that no other link of the process ever had, so that nothing said of
a dead link can be taken for its successor. Times are seconds of any one monotonic clock; the caller brings them.
"""

from dataclasses import dataclass
from typing import NewType, TypeAlias

from serverchange.events import Cluster, DoubtReason, HandoverCause, HandoverOutcome

LinkId = NewType("LinkId", int)
"""A link's generation; see the module's docstring."""

NO_LINKS: frozenset[LinkId] = frozenset()


Cause: TypeAlias = HandoverCause
Outcome: TypeAlias = HandoverOutcome


@dataclass(frozen=True, slots=True)
class Wanted:
    """The channel is to be read on `cluster`; `order` is the decision's (generation, version)."""

    cluster: Cluster
    order: tuple[int, int]
    now: float


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The channel is not to be read here: untracked, or confirmed by the process that took its partition."""

    now: float


@dataclass(frozen=True, slots=True)
class JoinSent:
    """The bytes of the JOIN that `Join` wished for have left on `link`. Only now does the confirm timeout start."""

    ticket: int
    link: LinkId
    now: float


@dataclass(frozen=True, slots=True)
class JoinConfirmed:
    """Own echo and listing have come on `link`."""

    link: LinkId
    now: float


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """The server answered the JOIN on `link` with a notice."""

    link: LinkId
    now: float


@dataclass(frozen=True, slots=True)
class NotHere:
    """The server answered the JOIN on `link` with SERVERCHANGE: asking other links of that cluster is in vain."""

    link: LinkId
    now: float


@dataclass(frozen=True, slots=True)
class LinkLost:
    """`link` is over, or the server has put us out of the channel on it."""

    link: LinkId
    now: float


@dataclass(frozen=True, slots=True)
class LinkLeaving:
    """The channel is to leave `link`, which still works: RECONNECT, a split, or a ghost."""

    link: LinkId
    cause: Cause
    now: float


@dataclass(frozen=True, slots=True)
class HeardOnOldOnly:
    """During the overlap a line came on an old side and not on the new one."""

    now: float


@dataclass(frozen=True, slots=True)
class LookupAgreed:
    """A lookup asked after our doubt says that the channel is on the wanted cluster."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `next_deadline` said when this matters."""

    now: float


HandoverEvent: TypeAlias = (
    Wanted
    | Unwanted
    | JoinSent
    | JoinConfirmed
    | JoinRefused
    | NotHere
    | LinkLost
    | LinkLeaving
    | HeardOnOldOnly
    | LookupAgreed
    | Tick
)


@dataclass(frozen=True, slots=True)
class Join:
    """Join the channel on some link of `cluster` outside `exclude`, when the budget allows; then tell `JoinSent`.

    A newer `Join` or a `CancelJoin` replaces it: an answer with an old ticket is undone by a `Part`.
    """

    ticket: int
    cluster: Cluster
    exclude: frozenset[LinkId]


@dataclass(frozen=True, slots=True)
class CancelJoin:
    """The wish of that ticket is void, if it has not been sent yet."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Part:
    """Part the channel on `link`; nothing is awaited."""

    link: LinkId


@dataclass(frozen=True, slots=True)
class Doubt:
    """Publish `channel.doubted`: a lookup is to decide."""

    reason: DoubtReason


@dataclass(frozen=True, slots=True)
class Alarm:
    """No link confirms the channel: log at error level, count. Attempts go on, rarely."""

    tries: int
    refused: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A handover has ended; all its times, for the log and the metrics.

    Attributes:
        source: Where the channel was read before, None at a first join.
        begun_at: When the cause came up.
        sent_at: When the bytes of the last JOIN left; None when none did.
        confirmed_at: When the new side was confirmed; None when it never was.
        ended_at: When the last old side was gone.
        tries: JOINs that were sent.
        bare_at: Since when the channel had no side at all, until the new one was confirmed; None when it always had
            one, or never had.
    """

    cause: Cause
    outcome: Outcome
    source: Cluster | None
    target: Cluster
    begun_at: float
    sent_at: float | None
    confirmed_at: float | None
    ended_at: float
    tries: int
    bare_at: float | None = None

    @property
    def gap_s(self) -> float | None:
        """Seconds without any side, from losing the last to confirming the next; None where there was none."""
        return None if self.bare_at is None or self.confirmed_at is None else self.confirmed_at - self.bare_at

    @property
    def overlap_s(self) -> float | None:
        """Seconds for which old and new side were both confirmed.

        None where they never were, and where a newer handover goes on with the same old sides.
        """
        had_both = self.source is not None and self.bare_at is None and self.outcome is not Outcome.SUPERSEDED
        return self.ended_at - self.confirmed_at if had_both and self.confirmed_at is not None else None


HandoverCommand: TypeAlias = Join | CancelJoin | Part | Doubt | Alarm | Record
