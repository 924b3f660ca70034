"""Laws of the handover, for any order of what may happen to a channel."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from serverchange.tracker.handover import (
    ABSENT_STATE,
    SIDES_MAX,
    HandoverLimits,
    HandoverState,
    Phase,
    next_deadline,
    step,
)
from serverchange.tracker.handover_words import (
    Cause,
    HeardOnOldOnly,
    Join,
    JoinConfirmed,
    JoinRefused,
    JoinSent,
    LinkLeaving,
    LinkLost,
    LookupAgreed,
    NotHere,
    Part,
    Record,
    Tick,
    Unwanted,
    Wanted,
)

LIMITS = HandoverLimits(overlap_s=20, confirm_timeout_s=10, tries_max=3, pause_s=60)
CLUSTERS = ("main", "aws", "event")


@dataclass
class Carrier:
    """A fleet of links that does what the machine wishes, and checks every step against what it joined itself."""

    state: HandoverState = ABSENT_STATE
    now: float = 0.0
    next_link: int = 1
    wish: Join | None = None
    asked: dict[int, str] = field(default_factory=dict)
    """Link → cluster of JOINs sent and unanswered."""
    joined: dict[int, str] = field(default_factory=dict)
    """Link → cluster where the server has us."""
    version: int = 0
    bare_at: float | None = None
    """Since when no side is left of a channel that had one."""

    def tell(self, event):
        covered = bool(self.state.sides)
        self.state, commands = step(self.state, event, LIMITS)
        self.check_gap(covered, commands)
        self.now += 0.001
        for command in commands:
            if isinstance(command, Join):
                self.wish = command
            elif isinstance(command, Part):
                self.joined.pop(command.link, None)
                self.asked.pop(command.link, None)
            elif type(command).__name__ == "CancelJoin" and self.wish and self.wish.ticket == command.ticket:
                self.wish = None
        self.check(covered, event)

    def check_gap(self, covered, commands):
        """Each gap is told once, by the record of the handover that ended it."""
        ended = [self.now - self.bare_at] if self.state.sides and self.bare_at is not None else []
        told = [command.gap_s for command in commands if isinstance(command, Record) and command.gap_s is not None]
        assert told == ended
        if self.state.sides or self.state.wanted is None:
            self.bare_at = None
        elif covered:
            self.bare_at = self.now

    def check(self, covered, event):
        assert len(self.state.sides) <= SIDES_MAX
        assert {side.link for side in self.state.sides} <= set(self.joined), "a side that the server does not know"
        if covered and not isinstance(event, LinkLost | Unwanted):
            assert self.state.sides, "a channel that was read is not read any more"
        if self.state.wanted is None:
            assert not self.joined, "an unwanted channel is still joined"
        elif not self.state.sides:
            assert self.state.attempt is not None, "nobody seeks a side"
        if self.state.phase in (Phase.SERVED, Phase.OVERLAP, Phase.DOUBTED):
            assert self.state.sides[-1].cluster == self.state.wanted
        if self.state.phase is Phase.SERVED:
            assert set(self.joined) == {self.state.sides[-1].link}, "a join that nobody counts"
            assert not self.asked

    def act(self, name, pick):
        getattr(self, "do_" + name.replace("-", "_"))(pick)

    def some_link(self, pick):
        links = sorted({*self.asked, *self.joined}) or [99]
        return links[pick % len(links)]

    def some_asked(self, pick):
        return sorted(self.asked)[pick % len(self.asked)] if self.asked else None

    def do_want(self, pick):
        self.version += 1
        self.tell(Wanted(CLUSTERS[pick % 3], (1, self.version), self.now))

    def do_unwant(self, _):
        self.tell(Unwanted(self.now))
        self.wish = None

    def do_send(self, _):
        if self.wish:
            wish, self.wish = self.wish, None
            self.asked[self.next_link] = wish.cluster
            self.next_link += 1
            self.tell(JoinSent(wish.ticket, self.next_link - 1, self.now))

    def do_confirm(self, pick):
        if link := self.some_asked(pick):
            self.joined[link] = self.asked.pop(link)
            self.tell(JoinConfirmed(link, self.now))

    def do_refuse(self, pick):
        if link := self.some_asked(pick):
            del self.asked[link]
            self.tell(JoinRefused(link, self.now))

    def do_not_here(self, pick):
        if link := self.some_asked(pick):
            self.tell(NotHere(link, self.now))

    def do_lose(self, pick):
        link = self.some_link(pick)
        self.joined.pop(link, None)
        self.asked.pop(link, None)
        self.tell(LinkLost(link, self.now))

    def do_leave(self, pick):
        self.tell(LinkLeaving(self.some_link(pick), (Cause.RECONNECT, Cause.SPLIT, Cause.GHOST)[pick % 3], self.now))

    def do_old_only(self, _):
        self.tell(HeardOnOldOnly(self.now))

    def do_agree(self, _):
        self.tell(LookupAgreed(self.now))

    def do_wait(self, _):
        self.now = max(self.now, next_deadline(self.state, LIMITS) or self.now)
        self.tell(Tick(self.now))

    def settle(self):
        """Everything that is wished for succeeds; returns when the machine rests."""
        for _ in range(60):
            self.act("send", 0)
            self.act("confirm", 0)
            self.act("agree", 0)
            if next_deadline(self.state, LIMITS) is not None:
                self.act("wait", 0)


NAMES = ["want", "unwant", "send", "confirm", "lose", "refuse", "not-here", "leave", "old-only", "agree", "wait"]
SCRIPT = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 7)), max_size=40)


@settings(max_examples=400, deadline=None)
@given(SCRIPT)
def test_a_channel_is_never_left_unjoined_and_never_joined_uncounted(script):
    carrier = Carrier()
    carrier.act("want", 0)
    for name, pick in script:
        carrier.act(name, pick)


@settings(max_examples=300, deadline=None)
@given(SCRIPT, st.integers(0, 2))
def test_when_everything_succeeds_one_side_is_left_where_it_is_wanted(script, target):
    carrier = Carrier()
    for name, pick in script:
        carrier.act(name, pick)
    carrier.act("want", target)
    carrier.settle()
    assert carrier.state.phase is Phase.SERVED
    assert list(carrier.joined.values()) == [CLUSTERS[target]]
    assert next_deadline(carrier.state, LIMITS) is None


@settings(max_examples=200, deadline=None)
@given(SCRIPT)
def test_time_that_has_not_come_changes_nothing(script):
    carrier = Carrier()
    for name, pick in script:
        carrier.act(name, pick)
    deadline = next_deadline(carrier.state, LIMITS)
    early = carrier.now if deadline is None else deadline - 0.001
    assert step(carrier.state, Tick(early), LIMITS) == (carrier.state, ())
