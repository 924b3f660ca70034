"""Draws the handover's transitions by walking the machine itself, so that the picture cannot lie.

`transition_table` starts at the absent channel and tells each state that it reaches everything that may happen to it,
to a bounded depth; `mermaid` and `handover_page` print what was seen. docs/handover.md is that page; a test compares.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from serverchange.events import Cluster
from serverchange.tracker.handover import ABSENT_STATE, HandoverLimits, HandoverState, Phase, next_deadline, step
from serverchange.tracker.handover_words import (
    Cause,
    HandoverEvent,
    HeardOnOldOnly,
    JoinConfirmed,
    JoinRefused,
    JoinSent,
    LinkId,
    LinkLeaving,
    LinkLost,
    LookupAgreed,
    NotHere,
    Record,
    Tick,
    Unwanted,
    Wanted,
)

DEPTH_MAX: Final = 9
"""Steps from the absent channel; every pair of phases that can follow each other is met by then (tested)."""

_LIMITS: Final = HandoverLimits(tries_max=2)
_HERE, _THERE = Cluster("main"), Cluster("aws")


class Transition(NamedTuple):
    """One row of the table: in `before`, `event` leads to `after`; `commands` name the wishes, each once."""

    before: Phase
    event: str
    after: Phase
    commands: tuple[str, ...]


def transition_table() -> tuple[Transition, ...]:
    """All transitions seen within `DEPTH_MAX` steps, sorted by phase; events that change nothing are left out."""
    rows: set[Transition] = set()
    frontier = {ABSENT_STATE}
    seen = set(frontier)
    for depth in range(DEPTH_MAX):
        reached: set[HandoverState] = set()
        for state in frontier:
            for label, event in _what_may_happen(state, now=float(depth)):
                after, commands = step(state, event, _LIMITS)
                if after == state and not commands:
                    continue
                wishes = tuple(dict.fromkeys(type(wish).__name__ for wish in commands if not isinstance(wish, Record)))
                rows.add(Transition(state.phase, label, after.phase, wishes))
                reached.add(after)
        frontier = reached - seen
        seen |= frontier
    order = list(Phase)
    return tuple(sorted(rows, key=lambda row: (order.index(row.before), order.index(row.after), row)))


def _what_may_happen(state: HandoverState, now: float) -> Iterator[tuple[str, HandoverEvent]]:
    order = (1, state.order[1] + 1)
    yield "wanted on main", Wanted(_HERE, order, now)
    yield "wanted on aws", Wanted(_THERE, order, now)
    yield "unwanted", Unwanted(now)
    yield "heard on old only", HeardOnOldOnly(now)
    yield "lookup agreed", LookupAgreed(now)
    deadline = next_deadline(state, _LIMITS)
    if deadline is not None:
        yield _deadline_name(state), Tick(deadline)
    attempt = state.attempt
    if attempt is not None and attempt.link is None and attempt.not_before is None:
        yield "join sent", JoinSent(attempt.ticket, LinkId(attempt.ticket), now)
    if attempt is not None and attempt.link is not None:
        yield "join confirmed", JoinConfirmed(attempt.link, now)
        yield "join refused", JoinRefused(attempt.link, now)
        yield "not here", NotHere(attempt.link, now)
        yield "new link lost", LinkLost(attempt.link, now)
        yield "new link leaving", LinkLeaving(attempt.link, Cause.RECONNECT, now)
    if state.sides:
        yield "link lost", LinkLost(state.sides[-1].link, now)
        yield "link leaving", LinkLeaving(state.sides[-1].link, Cause.RECONNECT, now)
    if len(state.sides) > 1:
        yield "old link lost", LinkLost(state.sides[0].link, now)


def _deadline_name(state: HandoverState) -> str:
    if state.attempt is None:
        return "overlap is over"
    return "pause is over" if state.attempt.not_before is not None else "not confirmed in time"


def mermaid(table: tuple[Transition, ...]) -> str:
    """The table as a Mermaid state diagram; events that lead from one phase to the same other share an arrow."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for row in table:
        if row.before is not row.after and row.event not in (labels := arrows.setdefault((row.before, row.after), [])):
            labels.append(row.event)
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.ABSENT}"]
    lines += [f"    {before} --> {after}: {', '.join(sorted(labels))}" for (before, after), labels in arrows.items()]
    return "\n".join(lines)


def handover_page() -> str:
    """The whole of docs/handover.md."""
    table = transition_table()
    rows = "\n".join(
        f"| {row.before} | {row.event} | {row.after} | {', '.join(row.commands) or '-'} |" for row in table
    )
    return (
        "# How a channel moves from link to link\n\n"
        "Made from the code by `python -m serverchange.tracker.handover_diagram`; do not edit. What the phases mean\n"
        "and what always holds: `src/serverchange/tracker/handover.py`. Two clusters, `main` and `aws`, stand for\n"
        "all; after two JOINs in vain there is an alarm here (three by default). A row may stand twice where the\n"
        "outcome depends on what else is under way.\n\n"
        f"```mermaid\n{mermaid(table)}\n```\n\n"
        f"| in phase | event | next phase | commands |\n|---|---|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    print(handover_page(), end="")  # noqa: T201  (this is what the command is for)
