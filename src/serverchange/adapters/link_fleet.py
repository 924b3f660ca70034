"""Carries out handovers: all links of a process, one `tracker.handover` machine a channel, one owner of all that state.

Everything here runs in the event loop. A link's reader calls `_hear`, which steps machines and posts what they wish
for; nothing there waits, so a PONG never does. Each account has one pump for each cluster, which takes budget, sends
JOINs and tells the machines when the bytes have left. Timeouts come from one timer at the earliest deadline.

The fleet tells its `FleetHearer` of lines, notices, doubts and confirmations, by plain calls that must return at once.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol

from serverchange.adapters import metrics
from serverchange.adapters.fleet_account import NAMELESS, Budget, FleetAccount
from serverchange.adapters.fleet_cluster import FleetCluster, FleetLink, Urgency
from serverchange.adapters.links import Link, LinkRules
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.events import Channel, Cluster, DoubtReason
from serverchange.irc.client_events import (
    ChatLine,
    ClientEvent,
    LineRejected,
    LoggedIn,
    LoginRefused,
    Parted,
    Reconnecting,
    ServerChangeHeard,
    StateLine,
    Unroutable,
)
from serverchange.irc.client_events import (
    JoinConfirmed as ConfirmationHeard,
)
from serverchange.irc.client_events import (
    JoinRefused as RefusalHeard,
)
from serverchange.irc.line import DialogueError
from serverchange.tracker.budget import Kind
from serverchange.tracker.dedupe import LineMemory, NoticeBrake, OverlapWitness, StateMemory
from serverchange.tracker.handover import (
    ABSENT_STATE,
    HandoverLimits,
    HandoverState,
    Phase,
    next_deadline,
    step,
)
from serverchange.tracker.handover_words import (
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
    Part,
    Record,
    Tick,
    Unwanted,
    Wanted,
)

_log = get_logger("link_fleet")

WITNESS_INTERVAL_S: Final = 1.0
"""How often lines that wait for their copy are looked at, while there is an overlap."""

EMPTY_LINK_S: Final = 5.0
"""How long a link without channels stays open: a wave of moves fills links that it has just emptied."""

FADING_S: Final = 120.0
"""So often the lines that a channel brought count half: long enough for a channel with a line a minute to count."""

LOAD_INTERVAL_S: Final = 10.0
"""How often links are looked at for more lines than one is to carry: longer than a burst of chat."""

SPLIT_TO: Final = 0.7
"""What a split leaves on a link, as a part of what it is to carry: it must not be split again at the next look."""

BRIEF_LINK_S: Final = 30.0
"""JOINs on a link that ends so soon after its welcome were in vain; twice a window of the platform, and more."""

FAILURES_TO_DOUBT: Final = 3
"""Links in a row that were not welcomed before a lookup is asked for: the servers list may be out of date."""

SERVERS_DOUBT_INTERVAL_S: Final = 30.0


class FleetHearer(Protocol):
    """What the process around a fleet makes of what it hears. Every call must return at once."""

    def line_received(self, channel: Channel, raw: bytes, cluster: Cluster) -> None:
        """A line for the channel's readers, not heard before."""

    def notice_heard(
        self, channel: Channel, heard_on: Cluster, target: Cluster | None, version: int, *, joining: bool
    ) -> None:
        """The server said that the channel is not here; repeats are held back already."""

    def doubt_raised(self, channel: Channel, reason: DoubtReason) -> None:
        """A lookup should be asked for this channel."""

    def channel_confirmed(self, channel: Channel) -> None:
        """The channel has a new confirmed side."""

    def handover_ended(self, channel: Channel, record: Record) -> None:
        """A handover is over, however it went; it is logged and counted already."""


@dataclass(frozen=True, slots=True)
class FleetRules:
    """What a fleet keeps to.

    Attributes:
        channels_per_link: channels on one connection.
        lines_per_link: chat lines a second on one connection; above it the busiest channels go to others.
        handover: times of a handover.
        reads_lines: whether chat is wanted; a listener's fleet throws it away unread.
    """

    channels_per_link: int
    handover: HandoverLimits
    reads_lines: bool = True
    lines_per_link: float = math.inf


class LinkFleet:
    """All links of one process. Enter it with `async with`; leaving it closes every link.

    Args:
        rules: sizes and times.
        link_rules: how to connect.
        accounts: who may join, by name; `want` says which of them joins a channel.
        servers: which servers there are.
        hearer: whom to tell.
    """

    def __init__(
        self,
        rules: FleetRules,
        *,
        link_rules: LinkRules,
        accounts: Mapping[str, FleetAccount],
        servers: ServerDirectory,
        hearer: FleetHearer,
    ) -> None:
        self._rules = rules
        self._link_rules = link_rules
        self._accounts = accounts
        self._servers = servers
        self._hearer = hearer
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._owned: set[asyncio.Task[None]] = set()
        self._states: dict[Channel, HandoverState] = {}
        self._clusters: dict[tuple[Cluster, str], FleetCluster] = {}
        self._account_of: dict[Channel, str] = {}
        self._links: dict[LinkId, FleetLink] = {}
        self._live: set[Channel] = set()
        self._lines_of_late: Counter[Channel] = Counter()
        self._joined_in_vain: Counter[Channel] = Counter()
        self._fading_timer: asyncio.TimerHandle | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._last_link = 0
        self._deadlines: list[tuple[float, Channel]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._witness_timer: asyncio.TimerHandle | None = None
        self._parts: dict[LinkId, list[Channel]] = defaultdict(list)
        self._lines = LineMemory()
        self._room_states = StateMemory()
        self._witness = OverlapWitness()
        self._brake = NoticeBrake()
        self._held = False
        self._held_moves: dict[Channel, tuple[Cluster, tuple[int, int]]] = {}
        self._phases: Counter[Phase] = Counter()
        self._sides: Counter[int] = Counter()
        self._doubted: set[Channel] = set()
        self._servers_doubted_at: dict[Cluster, float] = {}
        self._closing = False

    async def __aenter__(self) -> LinkFleet:
        await self._tasks.__aenter__()
        self._fading_timer = self._loop.call_later(FADING_S, self._fade)
        self._load_timer = self._loop.call_later(LOAD_INTERVAL_S, self._look_at_load)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        for timer in (self._timer, self._witness_timer, self._fading_timer, self._load_timer):
            if timer is not None:
                timer.cancel()
        for task in tuple(self._owned):
            task.cancel()
        await self._tasks.__aexit__(kind, error, traceback)

    # What the process asks for.

    def want(self, channel: Channel, cluster: Cluster, order: tuple[int, int], account: str = NAMELESS) -> None:
        """Read `channel` on `cluster`: joins it, or moves it there make before break. Older orders are ignored.

        `account` joins it from now on; where another did, the channel moves to a link of this one.
        """
        state = self.state(channel)
        before = self._account_of.get(channel, account)
        self._account_of[channel] = account
        if before != account:
            self._change_account(channel, account)
            state = self.state(channel)
        if self._held and state.sides and state.wanted != cluster and order > state.order:
            known = self._held_moves.get(channel)
            if known is None or order > known[1]:
                self._held_moves[channel] = (cluster, order)
            return
        if (known := self._held_moves.get(channel)) is not None and order >= known[1]:
            del self._held_moves[channel]  # decided anew, and it stays where it is
        self._tell(channel, Wanted(cluster, order, self._loop.time()))

    def _change_account(self, channel: Channel, account: str) -> None:
        for cluster in tuple(self._clusters.values()):
            if (join := cluster.waiting_join(channel)) is not None:
                cluster.withdraw(channel)
                self._cluster(cluster.name, account).wish(channel, join, self._urgency(channel))
        if sides := self.state(channel).sides:
            self._tell(channel, LinkLeaving(sides[-1].link, Cause.ACCOUNT, self._loop.time()))

    def unwant(self, channel: Channel) -> None:
        """Stop reading `channel`: it is parted everywhere."""
        self._held_moves.pop(channel, None)
        self._tell(channel, Unwanted(self._loop.time()))

    def set_held(self, *, held: bool) -> None:
        """Hold moves back, or start those that were. First joins, RECONNECTs and lost links go on, moves under way too.

        A channel whose last side is lost while its move is held is joined where it was decided to be: nothing of it
        is left to be kept.
        """
        if held != self._held:
            event = LogEvent.MOVES_HELD if held else LogEvent.MOVES_RESUMED
            _log.warning(event, channels=len(self._held_moves))
        self._held = held
        if not held:
            for channel in tuple(self._held_moves):
                self._start_held(channel)

    def _start_held(self, channel: Channel) -> None:
        if (held := self._held_moves.pop(channel, None)) is not None:
            self._tell(channel, Wanted(*held, self._loop.time()))

    def set_live(self, channel: Channel, *, live: bool) -> None:
        """A hint: live channels are joined first."""
        if not live:
            self._live.discard(channel)
            return
        self._live.add(channel)
        for cluster in self._clusters.values():
            cluster.hurry(channel, self._urgency(channel))

    def lookup_agreed(self, channel: Channel) -> None:
        """A lookup asked after our doubt says that the channel is where we want it."""
        self._tell(channel, LookupAgreed(self._loop.time()))

    def servers_changed(self, cluster: Cluster) -> None:
        """The directory has other servers for `cluster`: try them at once."""
        for known in self._clusters.values():
            if known.name == cluster:
                known.open_at_once()

    def leave_link(self, link: LinkId, cause: Cause) -> None:
        """Move every channel of a link to others, make before break."""
        fleet_link = self._links.get(link)
        if fleet_link is not None and not fleet_link.leaving:
            fleet_link.leaving = True
            now = self._loop.time()
            for channel in tuple(fleet_link.channels):
                self._tell(channel, LinkLeaving(link, cause, now))

    def leave_ghost(self, channel: Channel) -> None:
        """Join a channel elsewhere that is joined by all appearances and yet silent."""
        sides = self.state(channel).sides
        if sides:
            self._tell(channel, LinkLeaving(sides[-1].link, Cause.GHOST, self._loop.time()))

    # What the process may know.

    @property
    def doubted(self) -> frozenset[Channel]:
        """Channels whose old side stays until `lookup_agreed`."""
        return frozenset(self._doubted)

    @property
    def wanted_count(self) -> int:
        """Channels to be read."""
        return len(self._states)

    @property
    def confirmed_count(self) -> int:
        """Channels with a confirmed side."""
        return self.wanted_count - self._phases[Phase.SEEKING] - self._phases[Phase.JOINING]

    @property
    def channels_by_sides(self) -> tuple[int, int, int]:
        """Channels to be read that have no confirmed side, one, and several."""
        return self._sides[0], self._sides[1], self._sides[2]

    @property
    def moves_held(self) -> int:
        """Moves that the brake holds back."""
        return len(self._held_moves)

    @property
    def joins_waiting(self) -> int:
        """JOINs that wait for a link or for budget."""
        return sum(cluster.waiting for cluster in self._clusters.values())

    @property
    def logins_waiting(self) -> int:
        """Links that wait for a login's budget."""
        return sum(cluster.opening for cluster in self._clusters.values())

    def waiting_by_account(self) -> dict[str, dict[Kind, int]]:
        """Return JOINs and logins that wait, by account."""
        counts = {account: dict.fromkeys(Kind, 0) for account in self._accounts}
        for (_, account), cluster in self._clusters.items():
            counts[account][Kind.JOIN] += cluster.waiting
            counts[account][Kind.LOGIN] += cluster.opening
        return counts

    @property
    def link_count(self) -> int:
        """Links that are open or being opened."""
        return len(self._links)

    def state(self, channel: Channel) -> HandoverState:
        """The channel's handover, `ABSENT_STATE` where nobody wants it."""
        return self._states.get(channel, ABSENT_STATE)

    def account_of(self, channel: Channel) -> str | None:
        """Who joins the channel, None where nobody wants it."""
        return self._account_of.get(channel)

    def is_confirmed(self, channel: Channel) -> bool:
        """Whether the channel is read on at least one link."""
        return bool(self.state(channel).sides)

    # The machines.

    def _tell(self, channel: Channel, event: HandoverEvent) -> None:
        before = self.state(channel)
        after, commands = step(before, event, self._rules.handover)
        if after != before:
            self._keep(channel, before, after)
        for command in commands:
            self._obey(channel, command, after)

    def _keep(self, channel: Channel, before: HandoverState, after: HandoverState) -> None:
        phase = after.phase
        if channel in self._states:
            self._phases[before.phase] -= 1
            self._sides[min(len(before.sides), 2)] -= 1
        if phase is Phase.ABSENT:
            self._states.pop(channel, None)
            self._account_of.pop(channel, None)
            self._room_states.forget(channel)
        else:
            self._states[channel] = after
            self._phases[phase] += 1
            self._sides[min(len(after.sides), 2)] += 1
        for gone in before.links - after.links:
            if (fleet_link := self._links.get(gone)) is not None:
                fleet_link.channels.discard(channel)
                self._note_emptiness(fleet_link)
        for new in after.links - before.links:
            if (fleet_link := self._links.get(new)) is not None:
                fleet_link.channels.add(channel)
                fleet_link.empty_since = None
        (self._doubted.add if after.doubted else self._doubted.discard)(channel)
        if after.overlap_until is None:
            self._witness.end(channel)
        if after.sides and {side.link for side in after.sides} - {side.link for side in before.sides}:
            self._hearer.channel_confirmed(channel)
        if not after.sides and channel in self._held_moves:
            self._loop.call_soon(self._start_held, channel)
        self._schedule(channel, after)

    def _obey(self, channel: Channel, command: HandoverCommand, state: HandoverState) -> None:
        match command:
            case Join():
                cluster = self._cluster(command.cluster, self._account_of[channel])
                self._withdraw(channel)
                cluster.wish(channel, command, self._urgency(channel))
            case CancelJoin():
                self._withdraw(channel)
            case Part(link):
                self._part_soon(link, channel)
            case Doubt(reason):
                self._hearer.doubt_raised(channel, reason)
            case Alarm(tries, refused):
                _log.error(
                    LogEvent.JOIN_UNCONFIRMED, channel=channel, cluster=state.wanted, tries=tries, refused=refused
                )
            case Record():
                _record(channel, command)
                self._hearer.handover_ended(channel, command)

    def _withdraw(self, channel: Channel) -> None:
        for cluster in self._clusters.values():
            cluster.withdraw(channel)

    def _part_soon(self, link: LinkId, channel: Channel) -> None:
        """Collect the PARTs of this turn of the loop: a lost cluster parts hundreds of channels at once."""
        if not self._parts:
            self._loop.call_soon(self._part_now)
        self._parts[link].append(channel)

    def _part_now(self) -> None:
        parts, self._parts = self._parts, defaultdict(list)
        for link, channels in parts.items():
            fleet_link = self._links.get(link)
            if fleet_link is not None and not self._closing:
                self._own(fleet_link.link.part(channels), f"parts on link {link}")

    # Time.

    def _schedule(self, channel: Channel, state: HandoverState) -> None:
        deadline = next_deadline(state, self._rules.handover)
        if deadline is None:
            return
        heapq.heappush(self._deadlines, (deadline, channel))
        if self._timer is None or deadline < self._timer.when():
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._deadlines and not self._closing:
            self._timer = self._loop.call_at(self._deadlines[0][0], self._on_time)

    def _on_time(self) -> None:
        # A timer may fire a clock tick early; nothing is due before its time.
        now = max(self._loop.time(), self._deadlines[0][0])
        while self._deadlines and self._deadlines[0][0] <= now:
            _, channel = heapq.heappop(self._deadlines)
            self._tell(channel, Tick(now))
        self._set_timer()

    def _watch_overlap(self, channel: Channel) -> None:
        self._witness.begin(channel, self._loop.time())
        if self._witness_timer is None:
            self._witness_timer = self._loop.call_later(WITNESS_INTERVAL_S, self._ask_witness)

    def _ask_witness(self) -> None:
        self._witness_timer = None
        now = self._loop.time()
        for channel in self._witness.alone(now):
            self._tell(channel, HeardOnOldOnly(now))
        if self._phases[Phase.OVERLAP] and not self._closing:
            self._witness_timer = self._loop.call_later(WITNESS_INTERVAL_S, self._ask_witness)

    # What links say.

    def _hear(self, link: Link, events: Sequence[ClientEvent]) -> None:
        fleet_link = self._links.get(LinkId(link.generation))
        if fleet_link is None:
            return
        for event in events:
            match event:
                case ChatLine() | StateLine():
                    if self._rules.reads_lines:
                        self._hear_line(fleet_link, event)
                case Unroutable():
                    metrics.LINES_RECEIVED.labels(outcome="unroutable").inc()
                case LineRejected():
                    metrics.LINES_RECEIVED.labels(outcome="rejected").inc()
                case LoggedIn():
                    fleet_link.welcomed_at = self._loop.time()
                    # Its bytes have left, which ends what its lease counts for; otherwise the link's end shows it.
                    self._accounts[fleet_link.home.account].budget.sent(Kind.LOGIN, 1)
                    fleet_link.home.open_at_once()
                case LoginRefused():
                    self._accounts[fleet_link.home.account].on_login_refused()
                case Reconnecting():
                    _log.info(LogEvent.HANDOVER_STARTED, cause=Cause.RECONNECT, channels=len(fleet_link.channels))
                    self.leave_link(fleet_link.id, Cause.RECONNECT)
                case _:
                    self._hear_of_channel(fleet_link, event)

    def _hear_of_channel(self, fleet_link: FleetLink, event: ClientEvent) -> None:
        now, id_ = self._loop.time(), fleet_link.id
        match event:
            case ConfirmationHeard(channel=channel):
                self._note_sent(fleet_link, channel)
                self._tell(channel, JoinConfirmed(id_, now))
                if self.state(channel).phase is Phase.OVERLAP:
                    self._watch_overlap(channel)
            case RefusalHeard(channel=channel):
                self._note_sent(fleet_link, channel)
                self._tell(channel, JoinRefused(id_, now))
            case ServerChangeHeard(channel=channel, target=target, joining=joining):
                self._hear_notice(fleet_link, channel, target, joining=joining)
            case Parted(channel=channel, asked=False):
                self._tell(channel, LinkLost(id_, now))
            case _:
                pass

    def _hear_notice(self, fleet_link: FleetLink, channel: Channel, target: Cluster | None, *, joining: bool) -> None:
        now, heard_on = self._loop.time(), fleet_link.link.cluster
        version = self.state(channel).order[1]
        if self._brake.admit(channel, heard_on, target, version, now):
            metrics.NOTICES.labels(outcome="written").inc()
            self._hearer.notice_heard(channel, heard_on, target, version, joining=joining)
        else:
            metrics.NOTICES.labels(outcome="repeated").inc()
        if joining:
            self._note_sent(fleet_link, channel)
            self._tell(channel, NotHere(fleet_link.id, now))

    def _hear_line(self, fleet_link: FleetLink, event: ChatLine | StateLine) -> None:
        if isinstance(event, StateLine):
            new = self._room_states.arrive(event.channel, event.line)
        else:
            fleet_link.lines += 1
            now = self._loop.time()
            arrival = self._lines.arrive(event.channel, event.line, fleet_link.id, now)
            new = arrival.new
            state = self._states.get(event.channel)
            if state is not None and len(state.sides) > 1:
                on_new = state.sides[-1].link == fleet_link.id
                self._witness.heard(event.channel, arrival, on_new=on_new, now=now)
        metrics.LINES_RECEIVED.labels(outcome="delivered" if new else "duplicate").inc()
        if new:
            if isinstance(event, ChatLine):
                self._lines_of_late[event.channel] += 1
            self._hearer.line_received(event.channel, event.raw, fleet_link.link.cluster)

    def _urgency(self, channel: Channel) -> Urgency:
        return Urgency.of(
            live=channel in self._live,
            in_vain=self._joined_in_vain[channel],
            lines=self._lines_of_late[channel],
        )

    def _fade(self) -> None:
        """Let what is older count for less: what is busy now is to go first."""
        self._lines_of_late = _halved(self._lines_of_late)
        self._joined_in_vain = _halved(self._joined_in_vain)
        self._fading_timer = self._loop.call_later(FADING_S, self._fade)

    def _look_at_load(self) -> None:
        """Move the busiest channels of links that carry too much, as few as will do, and add none to those links."""
        for fleet_link in tuple(self._links.values()):
            rate, fleet_link.lines = fleet_link.lines / LOAD_INTERVAL_S, 0
            was_crowded = fleet_link.crowded
            fleet_link.crowded = rate > self._rules.lines_per_link
            if fleet_link.crowded and not fleet_link.leaving and len(fleet_link.channels) > 1:
                self._split(fleet_link, 1 - SPLIT_TO * self._rules.lines_per_link / rate)
            elif was_crowded and not fleet_link.crowded:
                fleet_link.home.wake.set()
        self._load_timer = self._loop.call_later(LOAD_INTERVAL_S, self._look_at_load)

    def _split(self, fleet_link: FleetLink, part: float) -> None:
        """Move channels that bring this part of a link's lines, the busiest first; one stays in any case."""
        lines = Counter({channel: self._lines_of_late[channel] for channel in fleet_link.channels})
        left, now = part * lines.total(), self._loop.time()
        for channel, count in lines.most_common(len(lines) - 1):
            if left <= 0 or not count:
                break
            left -= count
            self._tell(channel, LinkLeaving(fleet_link.id, Cause.SPLIT, now))

    def _note_sent(self, fleet_link: FleetLink, channel: Channel) -> None:
        """An answer shows that the bytes have left, even where the writer has not told us yet."""
        ticket = fleet_link.in_flight.pop(channel, None)
        if ticket is not None:
            self._tell(channel, JoinSent(ticket, fleet_link.id, self._loop.time()))

    # Links.

    def _cluster(self, name: Cluster, account: str) -> FleetCluster:
        cluster = self._clusters.get((name, account))
        if cluster is None:
            cluster = FleetCluster(name, account, self._rules.channels_per_link)
            self._clusters[name, account] = cluster
            self._own(self._pump(cluster), f"pump of {account or 'nobody'} on {name}")
        return cluster

    async def _pump(self, cluster: FleetCluster) -> None:
        """Send the cluster's JOINs as links and budget allow, and open links as JOINs need them."""
        budget = self._accounts[cluster.account].budget
        while True:
            cluster.wake.clear()
            self._open_links(cluster)
            sendable = sum(len(joins) for joins in cluster.plan(cluster.waiting).values())
            if sendable:
                await self._send(cluster, await budget.take(Kind.JOIN, sendable), budget)
            else:
                await cluster.wake.wait()

    async def _send(self, cluster: FleetCluster, taken: int, budget: Budget) -> None:
        planned = cluster.plan(taken)  # again: links and wishes may have changed while we waited for budget
        count = sum(map(len, planned.values()))
        if count < taken:
            budget.unused(Kind.JOIN, taken - count)
        for joins in planned.values():
            for channel, _ in joins:
                cluster.withdraw(channel)
        await asyncio.gather(*(self._send_on(cluster, id_, joins) for id_, joins in planned.items()))
        metrics.BUDGET_USED.labels(kind=Kind.JOIN).inc(count)
        budget.sent(Kind.JOIN, count)

    async def _send_on(self, cluster: FleetCluster, id_: LinkId, joins: list[tuple[Channel, Join]]) -> None:
        fleet_link = self._links[id_]
        fleet_link.in_flight.update((channel, join.ticket) for channel, join in joins)
        try:
            left_at = await fleet_link.link.join(channel for channel, _ in joins)
        except DialogueError:
            # The link ended, or must be left. What no answer has shown to be sent is wished for again.
            for channel, join in joins:
                attempt = self.state(channel).attempt
                in_flight = fleet_link.in_flight.pop(channel, None) == join.ticket
                if in_flight and attempt is not None and attempt.ticket == join.ticket:
                    cluster.wish(channel, join, self._urgency(channel))
            return
        for channel, join in joins:
            if fleet_link.in_flight.get(channel) == join.ticket:
                del fleet_link.in_flight[channel]
                self._tell(channel, JoinSent(join.ticket, id_, left_at))

    def _open_links(self, cluster: FleetCluster) -> None:
        now = self._loop.time()
        if now < cluster.closed_until:
            self._loop.call_at(cluster.closed_until, cluster.wake.set)
            return
        if self._servers.next(cluster.name) is None:
            if cluster.waiting:
                self._doubt_servers(cluster)
            return
        for _ in range(cluster.links_needed()):
            cluster.opening += 1
            self._own(self._open(cluster), f"opens a link to {cluster.name}")

    async def _open(self, cluster: FleetCluster) -> None:
        """One link's life, from paying its login to its end."""
        account = self._accounts[cluster.account]
        try:
            await account.budget.take(Kind.LOGIN, 1)
        finally:
            cluster.opening -= 1
        server = self._servers.next(cluster.name)
        if server is None or not cluster.waiting:
            account.budget.unused(Kind.LOGIN, 1)
            account.budget.sent(Kind.LOGIN, 0)
            return
        self._last_link += 1
        id_ = LinkId(self._last_link)
        link = Link(
            id_,
            cluster=cluster.name,
            server=server,
            login=account.login(),
            rules=self._link_rules,
            listener=self._hear,
        )
        fleet_link = FleetLink(id_, link, server, cluster)
        self._links[id_] = cluster.links[id_] = fleet_link
        metrics.BUDGET_USED.labels(kind=Kind.LOGIN).inc()
        try:
            await link.run()
        finally:
            if fleet_link.welcomed_at is None:
                account.budget.sent(Kind.LOGIN, 1)
            self._end(cluster, fleet_link)

    def _end(self, cluster: FleetCluster, fleet_link: FleetLink) -> None:
        now = self._loop.time()
        del self._links[fleet_link.id], cluster.links[fleet_link.id]
        if fleet_link.welcomed_at is None and not self._closing:
            self._servers.failed(cluster.name, fleet_link.server)
            cluster.failed(now, random.random())  # noqa: S311  (jitter, no secret)
            if cluster.failures >= FAILURES_TO_DOUBT:
                self._doubt_servers(cluster)
        if not self._closing:
            if fleet_link.welcomed_at is not None and now < fleet_link.welcomed_at + BRIEF_LINK_S:
                self._joined_in_vain.update(fleet_link.channels)
            for channel in tuple(fleet_link.channels):
                self._tell(channel, LinkLost(fleet_link.id, now))
        cluster.wake.set()

    def _doubt_servers(self, cluster: FleetCluster) -> None:
        """Ask for a lookup of one channel of a cluster whose servers are dead or unknown: its answer names servers."""
        now = self._loop.time()
        if now < self._servers_doubted_at.get(cluster.name, -SERVERS_DOUBT_INTERVAL_S) + SERVERS_DOUBT_INTERVAL_S:
            return
        self._servers_doubted_at[cluster.name] = now
        self._loop.call_later(SERVERS_DOUBT_INTERVAL_S, cluster.wake.set)
        channel = cluster.first_waiting()
        if channel is not None:
            self._hearer.doubt_raised(channel, DoubtReason.SERVERS_DEAD)

    def _note_emptiness(self, fleet_link: FleetLink) -> None:
        if fleet_link.channels:
            return
        fleet_link.empty_since = self._loop.time()
        self._loop.call_later(EMPTY_LINK_S, self._close_if_empty, fleet_link)

    def _close_if_empty(self, fleet_link: FleetLink) -> None:
        since = fleet_link.empty_since
        idle = since is not None and not fleet_link.channels and not fleet_link.in_flight
        if idle and since is not None and self._loop.time() >= since + EMPTY_LINK_S - 0.001:
            fleet_link.link.close("no channel needs it")

    def _own(self, work: Coroutine[object, object, None], name: str) -> None:
        task = self._tasks.create_task(work, name=name)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)


def _halved(counts: Counter[Channel]) -> Counter[Channel]:
    return Counter({channel: count // 2 for channel, count in counts.items() if count > 1})


def _record(channel: Channel, record: Record) -> None:
    metrics.HANDOVERS.labels(cause=record.cause, outcome=record.outcome).inc()
    if record.confirmed_at is not None:
        metrics.HANDOVER_SECONDS.observe(record.confirmed_at - record.begun_at)
    if record.overlap_s is not None:
        metrics.HANDOVER_OVERLAP_SECONDS.observe(record.overlap_s)
    if record.gap_s is not None:
        metrics.HANDOVER_GAP_SECONDS.observe(record.gap_s)
    since = record.begun_at
    # A start joins thousands of channels: those are counted, and logged for whoever asks.
    log = _log.debug if record.cause is Cause.FIRST_JOIN else _log.info
    log(
        LogEvent.HANDOVER_ENDED,
        channel=channel,
        cause=record.cause,
        outcome=record.outcome,
        source=record.source,
        target=record.target,
        sent_s=None if record.sent_at is None else round(record.sent_at - since, 3),
        confirmed_s=None if record.confirmed_at is None else round(record.confirmed_at - since, 3),
        ended_s=round(record.ended_at - since, 3),
        gap_s=None if record.gap_s is None else round(record.gap_s, 3),
        tries=record.tries,
    )
