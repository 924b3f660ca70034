"""What an answer to a lookup means for the channel asked about, by the same rule that the materializer folds with.

Pure. An answer becomes an event only if folding it would alter the state; one that agrees only makes the knowledge
fresh; one that was asked before something happened is stale and is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from serverchange.adapters.platform_api import ClusterAnswer
from serverchange.events import Channel, ClusterObserved, ObservedData
from serverchange.poller.share import may_be_asked
from serverchange.tracker.channel_state import ChannelState, fold, would_alter


class Meaning(Enum):
    """What an answer says."""

    AGREES = auto()
    """The channel is where we believe it is, and a lookup says so."""
    MOVES = auto()
    """The channel is first seen, or is on another cluster than believed; a further lookup must verify it."""
    DOUBTS = auto()
    """It contradicts what was heard, as a lagging replica does; the next lookups decide."""
    STALE = auto()
    """Something happened to the channel while the request was under way."""
    POINTLESS = auto()
    """The channel is no longer ours to ask about."""


@dataclass(frozen=True, slots=True)
class Question:
    """A lookup that left: what was known then, and when it was."""

    channel: Channel
    asked_after: int
    asked_at: datetime

    def answered_at(self, elapsed_s: float) -> datetime:
        """Return the moment of the answer by the asker's monotonic clock: a wall clock set meanwhile counts not."""
        return self.asked_at + timedelta(seconds=elapsed_s)


@dataclass(frozen=True, slots=True)
class Finding:
    """What to do about an answer: publish the event, if any; `doubts` counts the contradictions in a row so far."""

    meaning: Meaning
    event: ClusterObserved | None = None
    doubts: int = 0


def judge_answer(
    state: ChannelState | None,
    question: Question,
    answer: ClusterAnswer,
    *,
    elapsed_s: float,
    event_id: str,
    source: str,
) -> Finding:
    """Return what `answer` means to a channel in `state` (as folded now, not when the question left)."""
    if state is None or not may_be_asked(state):
        return Finding(Meaning.POINTLESS)
    answered_at = question.answered_at(elapsed_s)
    event = ClusterObserved(
        id=event_id,
        source=source,
        time=answered_at,
        subject=question.channel,
        data=ObservedData(
            cluster=answer.cluster,
            asked_after=question.asked_after,
            asked_at=question.asked_at,
            answered_at=answered_at,
            via=answer.via,
        ),
    )
    # The broker appends it a moment later; the fold's only use of the time is ten minutes wide.
    appended_at_ms = round(answered_at.timestamp() * 1000)
    published = event if would_alter(state, event, appended_at_ms) else None
    after = fold(state, event, appended_at_ms).state or state
    return Finding(_meaning(state, after, question, answer), published, after.doubts)


def _meaning(before: ChannelState, after: ChannelState, question: Question, answer: ClusterAnswer) -> Meaning:
    if question.asked_after < before.known_after:
        return Meaning.STALE
    if after.version != before.version:
        return Meaning.MOVES
    if after.verified and after.cluster == answer.cluster:
        return Meaning.AGREES
    return Meaning.DOUBTS
