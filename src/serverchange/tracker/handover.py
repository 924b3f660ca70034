"""How one channel comes onto a link and from link to link: make before break. Pure: events in, commands out.

One machine serves a first join, a move between clusters, a RECONNECT, a link to be split, a ghost, a lost link and
a JOIN that nobody confirms, because all are the same thing: *get a new side confirmed, let both run, part the old*.

A *side* is a link on which the channel is confirmed. `HandoverState.sides` holds them oldest first; the last is the
one we rely on, those before it are old sides. Beside them at most one *attempt* is under way. So the phase follows
from the data, and is never stored:

==========  =======================================================================================
absent      not wanted: no side, no attempt
seeking     no side yet (or none any more); an attempt waits for a link and budget, or for its next try
joining     no side; the JOIN's bytes have left
served      one side, where it is wanted: at rest
moving      a side serves; an attempt waits or is on its way
overlap     the new side is confirmed; old sides run on until `overlap_s` is over
doubted     a line came on an old side alone: the old sides stay until a lookup agrees
==========  =======================================================================================

What always holds (tested with random events): while the channel is wanted, no `Part` names the last side; an old side
goes only after the new one was confirmed; a confirmation counts for the link that it names and no other; an unconfirmed
JOIN is tried on another link, and the silent link is parted as soon as one answers. The confirm timeout starts with
`JoinSent`, because a JOIN may wait long for its budget (twitch-js 227).

`transition_table` walks this very code and draws it; docs/handover.md is its output.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from serverchange.events import Cluster, DoubtReason
from serverchange.tracker.handover_words import (
    NO_LINKS,
    Alarm,
    CancelJoin,
    Cause,
    Doubt,
    HandoverCommand,
    HandoverEvent,
    HeardOnOldOnly,
    Join,
    JoinConfirmed,
    JoinRefused,
    JoinSent,
    LinkId,
    LinkLeaving,
    LinkLost,
    LookupAgreed,
    NotHere,
    Outcome,
    Part,
    Record,
    Tick,
    Unwanted,
    Wanted,
)

SIDES_MAX: Final = 4
"""Sides of one channel at once. Each is a channel on a link; three moves within one overlap are a flapping channel."""


class Phase(StrEnum):
    """Where a channel stands; see the module's table."""

    ABSENT = "absent"
    SEEKING = "seeking"
    JOINING = "joining"
    SERVED = "served"
    MOVING = "moving"
    OVERLAP = "overlap"
    DOUBTED = "doubted"


@dataclass(frozen=True, slots=True)
class HandoverLimits:
    """The times and counts of a handover.

    Attributes:
        overlap_s: How long old sides run on after the new one is confirmed. A JOIN on the wrong cluster is confirmed,
            too, so this is the time in which a line on the old side can tell.
        confirm_timeout_s: From the JOIN's bytes leaving to trying another link. The platform answers within one
            second; TwitchIO waits 11 s at least.
        tries_max: JOINs without an answer before the alarm and a doubt.
        pause_s: Wait after the alarm or a refusal: the budget is the fleet's. It doubles with each round in vain, up to
            `pause_max_s`: a name that does not exist is never answered at all.
        not_here_pause_s: The same after a SERVERCHANGE as an answer. Shorter, because the channel moves just now: where
            it comes back before the notice is settled, no newer decision will ever say so.
        pause_max_s: The longest wait.
    """

    overlap_s: float = 20.0
    confirm_timeout_s: float = 10.0
    tries_max: int = 3
    pause_s: float = 60.0
    not_here_pause_s: float = 2.0
    pause_max_s: float = 3600.0

    def pause_after(self, rounds: int) -> float:
        """Seconds to wait after so many rounds in vain."""
        return self._doubled(self.pause_s, rounds)

    def not_here_pause_after(self, rounds: int) -> float:
        """Seconds to wait after SERVERCHANGE as an answer, after so many rounds in vain."""
        return self._doubled(self.not_here_pause_s, rounds)

    def _doubled(self, first_s: float, rounds: int) -> float:
        return min(first_s * 2.0 ** min(rounds, 20), self.pause_max_s)


@dataclass(frozen=True, slots=True)
class Side:
    """A link on which the channel is confirmed. `leaving` is set once it is known that the link will not do."""

    link: LinkId
    cluster: Cluster
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """A new side in the making.

    Attributes:
        ticket: Number of the `Join` wish that stands.
        cluster: Where.
        link: Set once the bytes have left.
        sent_at: When they left.
        not_before: While set, no wish stands: the next try begins then.
        exclude: Links not to be used.
        silent: Links where a JOIN was sent and not answered; they may still answer.
        tries: JOINs sent and not answered since the last pause.
        rounds: Pauses so far.
    """

    ticket: int
    cluster: Cluster
    link: LinkId | None = None
    sent_at: float | None = None
    not_before: float | None = None
    exclude: frozenset[LinkId] = NO_LINKS
    silent: frozenset[LinkId] = NO_LINKS
    tries: int = 0
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Story:
    """What the `Record` of the handover under way will say."""

    cause: Cause
    source: Cluster | None
    begun_at: float
    sent_at: float | None = None
    confirmed_at: float | None = None
    tries: int = 0
    bare_at: float | None = None


@dataclass(frozen=True, slots=True)
class HandoverState:
    """One channel's value. Start with `ABSENT_STATE`.

    Attributes:
        wanted: The cluster that it is to be read on, None when not wanted.
        order: (generation, version) of the decision that said so.
        sides: Confirmed sides, the one we rely on last.
        attempt: The new side in the making.
        overlap_until: End of the overlap.
        doubted: Old sides stay until a lookup agrees.
        story: The handover under way.
        tickets: How many `Join` wishes there were.
    """

    wanted: Cluster | None = None
    order: tuple[int, int] = (0, 0)
    sides: tuple[Side, ...] = ()
    attempt: Attempt | None = None
    overlap_until: float | None = None
    doubted: bool = False
    story: Story | None = None
    tickets: int = 0

    @property
    def phase(self) -> Phase:
        """Where the channel stands; see the module's table."""
        if self.wanted is None:
            return Phase.ABSENT
        if not self.sides:
            sent = self.attempt is not None and self.attempt.link is not None
            return Phase.JOINING if sent else Phase.SEEKING
        if self.attempt is not None:
            return Phase.MOVING
        if len(self.sides) == 1:
            return Phase.SERVED
        return Phase.DOUBTED if self.doubted else Phase.OVERLAP

    @property
    def links(self) -> frozenset[LinkId]:
        """Every link that must tell this channel of its end: sides, the attempt's, and the silent ones."""
        held = {side.link for side in self.sides}
        if self.attempt is not None:
            held |= self.attempt.silent | ({self.attempt.link} if self.attempt.link is not None else set())
        return frozenset(held)


ABSENT_STATE: Final = HandoverState()

Step = tuple[HandoverState, tuple[HandoverCommand, ...]]
_NOTHING: Final[tuple[HandoverCommand, ...]] = ()


def next_deadline(state: HandoverState, limits: HandoverLimits) -> float | None:
    """When `Tick` will change something, or None when only another event can."""
    attempt = state.attempt
    if attempt is not None:
        if attempt.not_before is not None:
            return attempt.not_before
        return None if attempt.sent_at is None else attempt.sent_at + limits.confirm_timeout_s
    return None if state.doubted else state.overlap_until


def step(state: HandoverState, event: HandoverEvent, limits: HandoverLimits) -> Step:
    """Take one event; return the new value and the commands, to be carried out in their order.

    Any event may come in any phase: one that means nothing there changes nothing.
    """
    return _HANDLERS[type(event)](state, event, limits)


# What we want.


def _on_wanted(state: HandoverState, event: Wanted, _: HandoverLimits) -> Step:
    if event.order <= state.order and state.wanted is not None:
        return state, _NOTHING
    ordered = replace(state, wanted=event.cluster, order=max(event.order, state.order))
    if state.wanted == event.cluster:
        return ordered, _NOTHING
    return _aim(ordered, event.cluster, event.now)


def _aim(state: HandoverState, cluster: Cluster, now: float) -> Step:
    """Head for another cluster than before, from whatever was under way."""
    source = state.sides[-1].cluster if state.sides else None
    ended = _record(state, Outcome.SUPERSEDED, now)
    given_up = _abandon(state.attempt)
    cleared = replace(state, attempt=None, overlap_until=None, doubted=False, story=None)
    returning = _latest_good(state.sides, cluster)
    if returning is not None:
        # Moved back while the old side still ran: no JOIN is needed, the sides change places.
        return _rely_on(cleared, returning, now, ended + given_up)
    bare_at = state.story.bare_at if state.story and not source else None
    begun = replace(cleared, story=Story(Cause.MOVED if source else Cause.FIRST_JOIN, source, now, bare_at=bare_at))
    sought, wishes = _seek(begun, cluster, NO_LINKS)
    return sought, ended + given_up + wishes


def _rely_on(state: HandoverState, side: Side, now: float, before: tuple[HandoverCommand, ...]) -> Step:
    """Make a side that is confirmed already the one we rely on, and let the others run out."""
    others = tuple(other for other in state.sides if other != side)
    story = Story(Cause.MOVED, state.sides[-1].cluster, now, confirmed_at=now) if others else None
    relied = replace(state, sides=(*others, side), story=story, overlap_until=now if others else None)
    return relied, before


def _on_unwanted(state: HandoverState, event: Unwanted, _: HandoverLimits) -> Step:
    if state.wanted is None:
        return state, _NOTHING
    parts = tuple(Part(side.link) for side in state.sides)
    commands = _abandon(state.attempt) + parts + _record(state, Outcome.UNWANTED, event.now)
    return HandoverState(order=state.order, tickets=state.tickets), commands


# What becomes of a JOIN.


def _on_join_sent(state: HandoverState, event: JoinSent, _: HandoverLimits) -> Step:
    attempt = state.attempt
    if attempt is None or attempt.ticket != event.ticket or attempt.link is not None or attempt.not_before is not None:
        # The wish was void before its bytes left: undo it, unless that link serves us otherwise.
        return state, _NOTHING if event.link in state.links else (Part(event.link),)
    story = state.story and replace(state.story, sent_at=event.now, tries=state.story.tries + 1)
    sent = replace(attempt, link=event.link, sent_at=event.now, silent=attempt.silent - {event.link})
    return replace(state, attempt=sent, story=story), _NOTHING


def _on_join_confirmed(state: HandoverState, event: JoinConfirmed, limits: HandoverLimits) -> Step:
    attempt = state.attempt
    if attempt is None or (event.link != attempt.link and event.link not in attempt.silent):
        if event.link in state.links:
            return state, _NOTHING
        return state, (Part(event.link),)  # A late echo still joins: leave no channel behind that nobody counts.
    new = Side(event.link, attempt.cluster)
    others = _abandon(replace(attempt, link=None if attempt.link == event.link else attempt.link), spare=event.link)
    story = state.story and replace(state.story, confirmed_at=event.now)
    sides = (*state.sides, new)
    surplus, sides = sides[: max(0, len(sides) - SIDES_MAX)], sides[-SIDES_MAX:]
    confirmed = replace(state, sides=sides, attempt=None, story=story, doubted=False)
    commands = others + tuple(Part(side.link) for side in surplus)
    if len(sides) == 1:
        settled, ended = _settle(confirmed, Outcome.DONE, event.now)
        return settled, commands + ended
    return replace(confirmed, overlap_until=event.now + limits.overlap_s), commands


def _on_join_refused(state: HandoverState, event: JoinRefused, limits: HandoverLimits) -> Step:
    """A ban or a suspension is the same on every link: wait, and keep the old side if there is one."""
    if state.attempt is None or event.link not in (state.attempt.link, *state.attempt.silent):
        return state, _NOTHING
    paused = _pause(state, state.attempt, event.link, event.now + limits.pause_after(state.attempt.rounds))
    return paused, (Alarm(state.attempt.tries + 1, refused=True),)


def _on_not_here(state: HandoverState, event: NotHere, limits: HandoverLimits) -> Step:
    """The notice is published by those who heard it; a newer decision comes, or the channel is back here by then."""
    if state.attempt is None or event.link not in (state.attempt.link, *state.attempt.silent):
        return state, _NOTHING
    # Parted, because the same link may still take the JOIN for good once the channel comes back.
    until = event.now + limits.not_here_pause_after(state.attempt.rounds)
    return _pause(state, state.attempt, event.link, until), (Part(event.link),)


def _pause(state: HandoverState, attempt: Attempt, answered: LinkId, until: float) -> HandoverState:
    silent = attempt.silent - {answered}
    if attempt.link not in (None, answered):
        silent |= {attempt.link}
    return replace(state, attempt=_paused(replace(attempt, silent=silent), until))


def _paused(attempt: Attempt, until: float) -> Attempt:
    """No wish stands until then; afterwards every link may be tried again."""
    return replace(
        attempt, link=None, sent_at=None, not_before=until, exclude=NO_LINKS, tries=0, rounds=attempt.rounds + 1
    )


# What becomes of links.


def _on_link_lost(state: HandoverState, event: LinkLost, _: HandoverLimits) -> Step:
    state = _forget_silent(state, event.link)
    attempt = state.attempt
    if attempt is not None and attempt.link == event.link:
        return _seek(state, attempt.cluster, attempt.exclude - {event.link})
    lost = next((side for side in state.sides if side.link == event.link), None)
    if lost is None:
        return state, _NOTHING
    relied_on = lost == state.sides[-1]
    left = replace(state, sides=tuple(side for side in state.sides if side != lost))
    if attempt is not None:
        bare = left.story and replace(left.story, bare_at=event.now)
        return left if left.sides else replace(left, story=bare), _NOTHING
    if not relied_on:
        return _settle(left, Outcome.OLD_LOST, event.now) if len(left.sides) == 1 else (left, _NOTHING)
    return _replace_side(left, lost, Cause.LINK_LOST, event.now)


def _on_link_leaving(state: HandoverState, event: LinkLeaving, _: HandoverLimits) -> Step:
    attempt = state.attempt
    if attempt is not None and attempt.link == event.link:
        # Its JOIN may yet be answered there, but that link will not last: ask another one now.
        kept = replace(state, attempt=replace(attempt, silent=attempt.silent | {event.link}))
        return _seek(kept, attempt.cluster, attempt.exclude | {event.link})
    sides = tuple(replace(side, leaving=True) if side.link == event.link else side for side in state.sides)
    marked = replace(state, sides=sides)
    if attempt is not None or not sides or sides[-1].link != event.link or state.sides[-1].leaving:
        return marked, _NOTHING
    left, commands = _replace_side(marked, sides[-1], event.cause, event.now)
    doubt = (Doubt(DoubtReason.SILENT),) if event.cause is Cause.GHOST else ()
    return left, commands + doubt


def _replace_side(state: HandoverState, worn: Side, cause: Cause, now: float) -> Step:
    """Begin a handover because the side we rely on is gone or going."""
    if state.wanted is None:
        return state, _NOTHING
    ended = _record(state, Outcome.SUPERSEDED, now) if state.story else ()
    story = Story(cause, worn.cluster, now, bare_at=None if state.sides else now)
    begun = replace(state, overlap_until=None, doubted=False, story=story)
    leaving = frozenset(side.link for side in state.sides if side.leaving)
    sought, wishes = _seek(begun, state.wanted, leaving)
    return sought, ended + wishes


# What the overlap tells.


def _on_heard_on_old_only(state: HandoverState, _event: HeardOnOldOnly, _: HandoverLimits) -> Step:
    if state.phase is not Phase.OVERLAP:
        return state, _NOTHING
    new, old = state.sides[-1], state.sides[-2]
    if new.cluster != old.cluster:
        return replace(state, doubted=True), (Doubt(DoubtReason.HEARD_ON_OLD),)
    # On one cluster both links should bring each line: the new one is a ghost. Another link, and the old one serves.
    worn = replace(state, sides=state.sides[:-1], overlap_until=None)
    story = state.story and replace(state.story, confirmed_at=None)
    sought, wishes = _seek(replace(worn, story=story), new.cluster, frozenset({new.link, *_leaving_links(worn)}))
    return sought, (Part(new.link), *wishes)


def _on_lookup_agreed(state: HandoverState, event: LookupAgreed, _: HandoverLimits) -> Step:
    if not state.doubted:
        return state, _NOTHING
    until = max(event.now, state.overlap_until or event.now)
    return replace(state, doubted=False, overlap_until=until), _NOTHING


def _on_tick(state: HandoverState, event: Tick, limits: HandoverLimits) -> Step:
    deadline = next_deadline(state, limits)
    if deadline is None or event.now < deadline:
        return state, _NOTHING
    attempt = state.attempt
    if attempt is None:
        parts = tuple(Part(side.link) for side in state.sides[:-1])
        settled, ended = _settle(replace(state, sides=state.sides[-1:]), Outcome.DONE, event.now)
        return settled, parts + ended
    if attempt.not_before is not None:
        return _seek(state, attempt.cluster, frozenset(_leaving_links(state)))
    return _try_elsewhere(state, attempt, limits, event.now)


def _try_elsewhere(state: HandoverState, attempt: Attempt, limits: HandoverLimits, now: float) -> Step:
    silent_link = attempt.link
    assert silent_link is not None  # noqa: S101  (a deadline without `not_before` means that bytes have left)
    counted = replace(attempt, silent=attempt.silent | {silent_link}, tries=attempt.tries + 1)
    if counted.tries >= limits.tries_max:
        paused = _paused(counted, now + limits.pause_after(counted.rounds))
        return replace(state, attempt=paused), (Alarm(counted.tries, refused=False), Doubt(DoubtReason.UNCONFIRMED))
    return _seek(replace(state, attempt=counted), attempt.cluster, attempt.exclude | {silent_link})


# Leaves.


def _seek(state: HandoverState, cluster: Cluster, exclude: frozenset[LinkId]) -> Step:
    """Wish for a JOIN, in place of the one that stood before; unanswered links are remembered."""
    ticket = state.tickets + 1
    before = state.attempt or Attempt(0, cluster)
    attempt = Attempt(ticket, cluster, exclude=exclude, silent=before.silent, tries=before.tries, rounds=before.rounds)
    return replace(state, attempt=attempt, tickets=ticket), (Join(ticket, cluster, exclude),)


def _abandon(attempt: Attempt | None, spare: LinkId | None = None) -> tuple[HandoverCommand, ...]:
    """Undo an attempt: a wish that stands is cancelled; every link that was asked is parted, answered or not."""
    if attempt is None:
        return _NOTHING
    asked = attempt.silent | ({attempt.link} if attempt.link is not None else NO_LINKS)
    standing = attempt.sent_at is None and attempt.not_before is None
    cancel = (CancelJoin(attempt.ticket),) if standing else ()
    return cancel + tuple(Part(link) for link in sorted(asked) if link != spare)


def _settle(state: HandoverState, outcome: Outcome, now: float) -> Step:
    """One side is left. If that link is known not to last, begin again at once."""
    ended = _record(state, outcome, now)
    settled = replace(state, overlap_until=None, doubted=False, story=None)
    if not settled.sides[-1].leaving:
        return settled, ended
    again, wishes = _replace_side(settled, settled.sides[-1], Cause.RECONNECT, now)
    return again, ended + wishes


def _record(state: HandoverState, outcome: Outcome, now: float) -> tuple[HandoverCommand, ...]:
    story = state.story
    if story is None or state.wanted is None:
        return _NOTHING
    target = state.attempt.cluster if state.attempt else state.sides[-1].cluster if state.sides else state.wanted
    return (
        Record(
            story.cause, outcome, story.source, target, story.begun_at, story.sent_at, story.confirmed_at, now,
            story.tries, story.bare_at,
        ),
    )  # fmt: skip


def _latest_good(sides: tuple[Side, ...], cluster: Cluster) -> Side | None:
    return next((side for side in reversed(sides) if side.cluster == cluster and not side.leaving), None)


def _leaving_links(state: HandoverState) -> list[LinkId]:
    return [side.link for side in state.sides if side.leaving]


def _forget_silent(state: HandoverState, link: LinkId) -> HandoverState:
    attempt = state.attempt
    if attempt is None or link not in attempt.silent:
        return state
    return replace(state, attempt=replace(attempt, silent=attempt.silent - {link}))


_HANDLERS: Final[Mapping[type[HandoverEvent], Callable[[HandoverState, Any, HandoverLimits], Step]]] = {
    Wanted: _on_wanted,
    Unwanted: _on_unwanted,
    JoinSent: _on_join_sent,
    JoinConfirmed: _on_join_confirmed,
    JoinRefused: _on_join_refused,
    NotHere: _on_not_here,
    LinkLost: _on_link_lost,
    LinkLeaving: _on_link_leaving,
    HeardOnOldOnly: _on_heard_on_old_only,
    LookupAgreed: _on_lookup_agreed,
    Tick: _on_tick,
}
"""Each handler takes the event type that it is filed under."""
