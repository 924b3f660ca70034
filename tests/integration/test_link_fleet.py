"""A fleet of links against the simulated platform: handovers over real sockets, judged by the platform's own ledger."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest
from prometheus_client import REGISTRY

from serverchange.adapters.fleet_account import NAMELESS, FleetAccount
from serverchange.adapters.hosts import HostRules
from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.link_fleet import FleetRules, LinkFleet
from serverchange.adapters.links import LinkRules, Login
from serverchange.adapters.server_directory import ServerDirectory
from serverchange.adapters.settings import KafkaSettings
from serverchange.events import Channel, Cluster, DoubtReason
from serverchange.reconnector.chat_writer import ChatWriter
from serverchange.simulator.faults import ClosedBeforeWelcome, Faults, JoinSwallowed
from serverchange.simulator.ledger import EntryKind
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator
from serverchange.tracker.budget import Kind
from serverchange.tracker.handover import HandoverLimits, Phase
from serverchange.tracker.handover_words import Cause, LinkId, Outcome, Record

WAIT_S = 15
MAIN, AWS = Cluster("main"), Cluster("aws")
CHANNELS = tuple(Channel(f"channel{number:02}") for number in range(20))
FORSEN, NYMN = CHANNELS[:2]
NUMBERED = re.compile(rb"PRIVMSG #(\S+) :#(\d+) ")


class FreeBudget:
    """Grants everything and counts it."""

    def __init__(self) -> None:
        self.taken = dict.fromkeys(Kind, 0)
        self.outstanding = dict.fromkeys(Kind, 0)

    async def take(self, kind: Kind, wanted: int) -> int:
        self.taken[kind] += wanted
        self.outstanding[kind] += wanted
        return wanted

    def sent(self, kind: Kind, count: int) -> None:
        self.outstanding[kind] -= count

    def unused(self, kind: Kind, count: int) -> None:
        self.taken[kind] -= count
        self.outstanding[kind] -= count


class CuttingBudget(FreeBudget):
    """Grants a few JOINs at a time; once the server has read them, `cut` is called, and only then come more."""

    def __init__(self, portion: int) -> None:
        super().__init__()
        self.cut: Callable[[], None] | None = None
        self._portion = portion
        self._turn = asyncio.Event()
        self._turn.set()

    async def take(self, kind: Kind, wanted: int) -> int:
        if kind is not Kind.JOIN:
            return await super().take(kind, wanted)
        await self._turn.wait()
        self._turn.clear()
        return await super().take(kind, min(wanted, self._portion))

    def sent(self, kind: Kind, count: int) -> None:
        super().sent(kind, count)
        if kind is Kind.JOIN and count:
            asyncio.get_running_loop().call_later(0.2, self._end_turn)
        elif kind is Kind.JOIN:
            self._turn.set()

    def _end_turn(self) -> None:
        if self.cut is not None:
            self.cut()
        # The next JOINs are for the next link, not for one whose end we have not read yet.
        asyncio.get_running_loop().call_later(0.2, self._turn.set)


@dataclass
class Hearer:
    """Remembers what the fleet tells, and wakes whoever waits for it."""

    lines: list[tuple[Channel, bytes, Cluster]] = field(default_factory=list)
    notices: list[tuple[Channel, Cluster, Cluster | None, int, bool]] = field(default_factory=list)
    doubts: list[tuple[Channel, DoubtReason]] = field(default_factory=list)
    confirmed: list[Channel] = field(default_factory=list)
    records: list[tuple[Channel, Record]] = field(default_factory=list)
    pass_on: Callable[[Channel, bytes, Cluster], None] | None = None
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def line_received(self, channel: Channel, raw: bytes, cluster: Cluster) -> None:
        self.lines.append((channel, raw, cluster))
        if self.pass_on is not None:
            self.pass_on(channel, raw, cluster)
        self.heard.set()

    def notice_heard(
        self, channel: Channel, heard_on: Cluster, target: Cluster | None, version: int, *, joining: bool
    ) -> None:
        self.notices.append((channel, heard_on, target, version, joining))
        self.heard.set()

    def doubt_raised(self, channel: Channel, reason: DoubtReason) -> None:
        self.doubts.append((channel, reason))
        self.heard.set()

    def channel_confirmed(self, channel: Channel) -> None:
        self.confirmed.append(channel)
        self.heard.set()

    def handover_ended(self, channel: Channel, record: Record) -> None:
        self.records.append((channel, record))
        self.heard.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.heard.clear()
                await self.heard.wait()

    def numbers(self, channel: Channel) -> list[int]:
        """The numbered lines of a channel in the order they came."""
        found = (NUMBERED.search(raw) for name, raw, _ in self.lines if name == channel)
        return [int(match[2]) for match in found if match]


@dataclass
class Scene:
    simulator: Simulator
    fleet: LinkFleet
    hearer: Hearer
    budget: FreeBudget
    directory: ServerDirectory
    orders: dict[Channel, int] = field(default_factory=dict)

    def want(self, channel: Channel, cluster: Cluster) -> None:
        self.orders[channel] = self.orders.get(channel, 0) + 1
        self.fleet.want(channel, cluster, (1, self.orders[channel]))

    async def served(self, channels: Sequence[Channel], cluster: Cluster = MAIN) -> None:
        for channel in channels:
            self.want(channel, cluster)
        await self.hearer.until(lambda: set(channels) <= set(self.hearer.confirmed))

    def unconfirmed(self) -> set[Channel]:
        return {channel for channel in self.orders if not self.fleet.is_confirmed(channel)}

    def joined(self, channel: Channel) -> list[Cluster]:
        """Where the platform has our account in `channel`."""
        return [link.cluster for link in self.simulator.links() if channel in link.dialogue.joined]

    def having(self, cause: Cause) -> set[Channel]:
        return {name for name, record in self.hearer.records if record.cause is cause}

    def outcomes(self, channel: Channel) -> list[tuple[Cause, Outcome]]:
        return [(record.cause, record.outcome) for name, record in self.hearer.records if name == channel]


@asynccontextmanager
async def scene(
    *,
    channels_per_link: int = 90,
    overlap_s: float = 0.5,
    confirm_timeout_s: float = 1.0,
    lines_per_link: float = math.inf,
    budget: FreeBudget | None = None,
    **changes: object,
) -> AsyncIterator[Scene]:
    quiet = {
        "channels": len(CHANNELS),
        "names": CHANNELS,
        "event_channels": 0,
        "group_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 0,
        "clearchat_share": 0,
    }
    async with Simulator(SimulatorSettings.model_validate({**quiet, **changes})) as simulator:
        rules = HostRules(("127.0.0.1",), (ip_network("127.0.0.0/8"),), frozenset({"127.0.0.1"}))
        seeds = {name: (addresses.plain,) for name, addresses in simulator.addresses.clusters.items()}
        account = simulator.settings.accounts[0]
        hearer, purse = Hearer(), budget or FreeBudget()
        directory = ServerDirectory(rules, "plain", seeds)
        limits = HandoverLimits(overlap_s=overlap_s, confirm_timeout_s=confirm_timeout_s, tries_max=3, pause_s=60)
        async with LinkFleet(
            FleetRules(channels_per_link, limits, lines_per_link=lines_per_link),
            link_rules=LinkRules(rules, "plain"),
            accounts={NAMELESS: FleetAccount(lambda: Login(account.login, account.token), purse)},
            servers=directory,
            hearer=hearer,
        ) as fleet:
            yield Scene(simulator, fleet, hearer, purse, directory)


async def test_channels_are_joined_and_their_lines_come() -> None:
    async with scene() as on:
        await on.served(CHANNELS)
        assert (on.fleet.wanted_count, on.fleet.confirmed_count, on.fleet.link_count) == (20, 20, 1)
        on.simulator.say(FORSEN, 3)
        on.simulator.say(NYMN, 1)
        await on.hearer.until(lambda: len(on.hearer.numbers(FORSEN)) == 3 and len(on.hearer.numbers(NYMN)) == 1)
        assert on.hearer.numbers(FORSEN) == [1, 2, 3]


async def test_every_event_that_was_paid_is_sent_or_given_back() -> None:
    async with scene(channels_per_link=7) as on:
        await on.served(CHANNELS)
        assert on.budget.taken[Kind.JOIN] == len(CHANNELS)
        assert on.fleet.link_count == 3
        assert on.budget.outstanding[Kind.JOIN] == 0


async def test_a_move_joins_first_and_parts_last_and_loses_nothing() -> None:
    async with scene(overlap_s=3) as on:
        await on.served([FORSEN])
        overlaps = observed("serverchange_handover_overlap_seconds")
        on.simulator.say(FORSEN, 2)
        on.simulator.move(FORSEN, AWS)
        on.want(FORSEN, AWS)
        await on.hearer.until(lambda: on.fleet.state(FORSEN).phase is Phase.OVERLAP or bool(on.outcomes(FORSEN)[1:]))
        assert on.joined(FORSEN) == [MAIN, AWS]
        assert on.fleet.channels_by_sides == (0, 0, 1)
        on.simulator.say(FORSEN, 2)
        await on.hearer.until(lambda: (Cause.MOVED, Outcome.DONE) in on.outcomes(FORSEN))
        assert on.hearer.numbers(FORSEN) == [1, 2, 3, 4]
        assert on.fleet.state(FORSEN).sides[-1].cluster == AWS
        assert on.fleet.channels_by_sides == (0, 1, 0)
        assert observed("serverchange_handover_overlap_seconds") - overlaps == 1


async def test_links_that_are_cut_leave_a_gap_that_is_measured() -> None:
    async with scene() as on:
        await on.served(CHANNELS)
        gaps = observed("serverchange_handover_gap_seconds")
        on.simulator.drop(on.simulator.links())
        await on.hearer.until(lambda: on.having(Cause.LINK_LOST) == set(CHANNELS))
        assert on.fleet.channels_by_sides == (0, len(CHANNELS), 0)
        assert observed("serverchange_handover_gap_seconds") - gaps == len(CHANNELS)


def observed(histogram: str) -> float:
    """How often this process measured it."""
    return REGISTRY.get_sample_value(f"{histogram}_count") or 0.0


async def test_a_swallowed_join_goes_to_another_link_and_the_others_stay() -> None:
    """all-chat 279: listed, logged as joined, and no line for 25 minutes of a live stream."""
    async with scene() as on:
        await on.served(CHANNELS[1:])
        (first,) = on.simulator.links()
        on.simulator.set_faults(Faults(joins_swallowed=(JoinSwallowed(channel=FORSEN, link=first.number),)))
        await on.served([FORSEN])
        assert on.fleet.link_count == 2
        assert set(CHANNELS[1:]) <= first.dialogue.joined
        assert FORSEN not in first.dialogue.joined


async def test_a_reconnect_loses_and_repeats_no_line() -> None:
    async with scene(lines_per_second=200, chat_in_offline_channels=True, reconnect_min_s=1, reconnect_max_s=2) as on:
        await on.served(CHANNELS)
        on.simulator.reconnect(on.simulator.links())
        await on.hearer.until(lambda: set(CHANNELS) == on.having(Cause.RECONNECT))
        on.simulator.lines_per_second = 0
        last = {channel: on.simulator.say(channel)[0] for channel in CHANNELS}
        await on.hearer.until(lambda: all(last[channel] in on.hearer.numbers(channel) for channel in CHANNELS))
        for channel in CHANNELS:
            numbers = sorted(on.hearer.numbers(channel))
            assert numbers == list(range(numbers[0], last[channel] + 1)), channel


async def test_three_reconnects_in_a_row_keep_every_channel_wanted_and_bring_it_back() -> None:
    """TwitchLib.Client 269 and 140: after the second or third reconnect the list of joined channels was empty."""
    async with scene() as on:
        await on.served(CHANNELS)
        for _ in range(3):
            on.simulator.reconnect(on.simulator.links(), close_after_s=0.3)
            ended = len(on.hearer.records)
            await on.hearer.until(lambda ended=ended: len(on.hearer.records) > ended)
        await on.hearer.until(lambda: on.fleet.confirmed_count == len(CHANNELS))
        assert on.fleet.wanted_count == len(CHANNELS)


async def test_a_third_reconnect_before_the_first_ones_welcome_keeps_every_channel() -> None:
    """TwitchLib.Client 269: reconnects that overtake one another."""
    async with scene() as on:
        await on.served(CHANNELS)
        for _ in range(3):
            on.simulator.reconnect(on.simulator.links(), close_after_s=0.5)
            links = on.fleet.link_count
            await on.hearer.until(lambda links=links: on.fleet.link_count > links or not on.unconfirmed())
        await on.hearer.until(lambda: on.having(Cause.RECONNECT) == set(CHANNELS) and not on.unconfirmed())
        assert on.fleet.wanted_count == len(CHANNELS)


async def test_of_joins_that_end_the_link_none_is_tried_twice_before_each_was_tried_once() -> None:
    """Chatterino2 3107, trihard-kkona 6: over the limit the server cut, and the same first twenty came again."""
    async with scene(budget=CuttingBudget(portion=5)) as on:
        assert isinstance(on.budget, CuttingBudget)
        on.budget.cut = lambda: on.simulator.drop(on.simulator.links())
        for channel in CHANNELS:
            on.want(channel, MAIN)
        joined = on.simulator.ledger
        await joined.wait_until(lambda: joined.count(EntryKind.JOINED) >= len(CHANNELS), timeout_s=WAIT_S)
        first = [entry.channel for entry in joined.find(EntryKind.JOINED)][: len(CHANNELS)]
        assert set(first) == set(CHANNELS)
        on.budget.cut = None
        await on.hearer.until(lambda: not on.unconfirmed())


async def test_a_consumer_that_takes_nothing_delays_no_pong() -> None:
    """tmi.js 484 and 253: busy handlers missed PING, ten minutes of rejoining followed, again and again."""
    busy = {"lines_per_second": 500, "chat_in_offline_channels": True, "ping_interval_s": 0.2, "pong_timeout_s": 5}
    async with scene(**busy) as on:
        nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
        async with EventPublisher(nowhere, client_id="test") as publisher:
            chat = ChatWriter(publisher, shard="test")  # its publishing never runs: Kafka takes nothing
            on.hearer.pass_on = chat.write
            await on.served(CHANNELS)
            ledger = on.simulator.ledger
            await ledger.wait_until(lambda: ledger.count(EntryKind.PONG_RECEIVED) >= 8, timeout_s=WAIT_S)
            await on.hearer.until(lambda: len(on.hearer.lines) > 100)
            assert ledger.count(EntryKind.LINK_CLOSED) == 0
            assert on.fleet.link_count == 1


async def test_dead_servers_are_passed_by_then_a_lookup_is_asked_then_new_ones_are_used() -> None:
    """tatsuworks/gateway 87, PumpItUpScoreTracker 308: a remembered host that was dead, tried for fourteen hours."""
    dead = "127.0.0.1:1"
    async with scene() as on:
        on.directory.learn(MAIN, (dead, on.simulator.addresses.clusters[MAIN].plain), ())
        await on.served([FORSEN])
        await on.simulator.change_servers(MAIN, shut=True)
        on.simulator.drop(on.simulator.links())
        await on.hearer.until(lambda: (FORSEN, DoubtReason.SERVERS_DEAD) in on.hearer.doubts)
        await on.simulator.change_servers(MAIN, renew=True)
        on.directory.learn(MAIN, (dead, on.simulator.addresses.clusters[MAIN].plain), ())
        on.fleet.servers_changed(MAIN)
        await on.hearer.until(lambda: on.hearer.confirmed.count(FORSEN) == 2)
        assert on.budget.taken[Kind.LOGIN] < 20


async def test_a_login_counts_no_longer_than_until_its_welcome() -> None:
    """A login that is not known to have left takes from the budget for two minutes: at 200 links, all of it."""
    async with scene() as on:
        await on.served(CHANNELS)
        assert on.budget.taken[Kind.LOGIN] == on.fleet.link_count > 0
        assert on.budget.outstanding[Kind.LOGIN] == 0


async def test_a_dropped_link_is_joined_again() -> None:
    async with scene() as on:
        await on.served(CHANNELS)
        on.simulator.drop(on.simulator.links())
        await on.hearer.until(lambda: len(on.hearer.confirmed) == 2 * len(CHANNELS))
        assert on.fleet.confirmed_count == len(CHANNELS)


async def test_servers_that_close_before_the_welcome_leave_the_old_side_alone() -> None:
    """pyTwitchAPI 310 and 319: the new side was refused three times, and what was wanted was forgotten."""
    async with scene() as on:
        await on.served([FORSEN])
        on.simulator.set_faults(Faults(closed_before_welcome=(ClosedBeforeWelcome(cluster=AWS, times=3),)))
        on.simulator.move(FORSEN, AWS)
        on.want(FORSEN, AWS)
        await on.hearer.until(lambda: (FORSEN, DoubtReason.SERVERS_DEAD) in on.hearer.doubts)
        assert on.joined(FORSEN) == [MAIN]
        await on.hearer.until(lambda: (Cause.MOVED, Outcome.DONE) in on.outcomes(FORSEN))
        assert on.budget.outstanding[Kind.LOGIN] == 0


@pytest.mark.parametrize(("mode", "target"), [("serverchange", None), ("clusterchange", AWS)])
async def test_a_pushed_notice_is_told_with_the_version_we_joined_by(mode: str, target: Cluster | None) -> None:
    async with scene(wrong_cluster=mode) as on:
        await on.served([FORSEN])
        on.simulator.move(FORSEN, AWS)
        await on.hearer.until(lambda: bool(on.hearer.notices))
        assert on.hearer.notices == [(FORSEN, MAIN, target, 1, False)]


async def test_a_join_on_the_wrong_cluster_is_told_as_its_answer_and_not_tried_elsewhere() -> None:
    async with scene() as on:
        on.want(FORSEN, AWS)
        await on.hearer.until(lambda: bool(on.hearer.notices))
        assert on.hearer.notices == [(FORSEN, AWS, None, 1, True)]
        assert on.fleet.state(FORSEN).phase is Phase.SEEKING
        await on.served([FORSEN])


async def test_a_line_on_the_old_side_alone_is_doubted_and_the_old_side_stays() -> None:
    async with scene(wrong_cluster="silent", overlap_s=30, lines_per_second=100, chat_in_offline_channels=True) as on:
        await on.served([FORSEN])
        on.want(FORSEN, AWS)
        await on.hearer.until(lambda: bool(on.hearer.doubts))
        assert on.hearer.doubts == [(FORSEN, DoubtReason.HEARD_ON_OLD)]
        assert on.fleet.doubted == {FORSEN}
        assert on.joined(FORSEN) == [MAIN, AWS]
        on.want(FORSEN, MAIN)
        assert [side.cluster for side in on.fleet.state(FORSEN).sides] == [AWS, MAIN]


async def test_a_doubt_that_a_lookup_dispels_ends_with_the_new_side() -> None:
    async with scene(wrong_cluster="silent", overlap_s=12, lines_per_second=100, chat_in_offline_channels=True) as on:
        await on.served([FORSEN])
        on.want(FORSEN, AWS)
        await on.hearer.until(lambda: bool(on.hearer.doubts))
        on.simulator.move(FORSEN, AWS)
        on.fleet.lookup_agreed(FORSEN)
        await on.hearer.until(lambda: (Cause.MOVED, Outcome.DONE) in on.outcomes(FORSEN))
        assert [side.cluster for side in on.fleet.state(FORSEN).sides] == [AWS]


async def test_an_unwanted_channel_is_parted() -> None:
    async with scene() as on:
        await on.served([FORSEN, NYMN])
        on.fleet.unwant(FORSEN)
        on.simulator.move(NYMN, AWS)
        on.want(NYMN, AWS)
        await on.hearer.until(lambda: (Cause.MOVED, Outcome.DONE) in on.outcomes(NYMN))
        assert on.joined(FORSEN) == []
        assert on.fleet.wanted_count == 1


async def test_a_link_to_be_split_is_left_make_before_break() -> None:
    async with scene() as on:
        await on.served([FORSEN, NYMN])
        on.fleet.leave_link(LinkId(1), Cause.SPLIT)
        await on.hearer.until(lambda: (Cause.SPLIT, Outcome.DONE) in on.outcomes(FORSEN))
        assert [side.link for side in on.fleet.state(FORSEN).sides] == [2]


async def test_the_busiest_channels_leave_a_link_that_carries_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverchange.adapters.link_fleet.LOAD_INTERVAL_S", 1.0)
    async with scene(lines_per_link=30, overlap_s=0.2) as on:
        await on.served(CHANNELS)
        assert on.fleet.link_count == 1
        for channel in CHANNELS:
            on.simulator.say(channel, 1)
        on.simulator.say(FORSEN, 100)
        await on.hearer.until(lambda: (Cause.SPLIT, Outcome.DONE) in on.outcomes(FORSEN))
        assert on.having(Cause.SPLIT) == {FORSEN}, "one is enough: the others bring less than the link is to carry"
        on.simulator.say(FORSEN, 1)
        await on.hearer.until(lambda: len(on.hearer.numbers(FORSEN)) == 102)
        assert on.hearer.numbers(FORSEN) == list(range(1, 103))


async def test_the_last_channel_of_a_link_stays_however_much_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverchange.adapters.link_fleet.LOAD_INTERVAL_S", 0.3)
    async with scene(lines_per_link=5, overlap_s=0.2) as on:
        await on.served([FORSEN, NYMN])
        on.simulator.say(FORSEN, 30)
        on.simulator.say(NYMN, 25)
        await on.hearer.until(lambda: (Cause.SPLIT, Outcome.DONE) in on.outcomes(FORSEN))
        assert on.having(Cause.SPLIT) == {FORSEN}
        assert (on.fleet.link_count, on.fleet.confirmed_count) == (2, 2)


async def test_a_held_move_keeps_the_old_side_and_first_joins_and_reconnects_go_on() -> None:
    async with scene() as on:
        await on.served([FORSEN])
        on.fleet.set_held(held=True)
        on.want(FORSEN, AWS)
        await on.served([NYMN])
        on.fleet.leave_link(LinkId(1), Cause.RECONNECT)
        await on.hearer.until(lambda: on.having(Cause.RECONNECT) == {FORSEN, NYMN})
        assert (set(on.joined(FORSEN)), on.fleet.moves_held) == ({MAIN}, 1)
        on.simulator.move(FORSEN, AWS)
        on.fleet.set_held(held=False)
        await on.hearer.until(lambda: (Cause.MOVED, Outcome.DONE) in on.outcomes(FORSEN))
        assert (on.fleet.state(FORSEN).sides[-1].cluster, on.fleet.moves_held) == (AWS, 0)


async def test_a_move_held_and_taken_back_is_no_move() -> None:
    async with scene() as on:
        await on.served([FORSEN])
        on.fleet.set_held(held=True)
        on.want(FORSEN, AWS)
        on.want(FORSEN, MAIN)
        on.fleet.set_held(held=False)
        assert on.fleet.state(FORSEN).phase is Phase.SERVED
        assert on.fleet.state(FORSEN).order == (1, 3)


async def test_a_channel_that_lost_its_side_while_held_is_joined_where_it_was_decided_to_be() -> None:
    async with scene() as on:
        await on.served([FORSEN])
        on.fleet.set_held(held=True)
        on.simulator.move(FORSEN, AWS)
        on.want(FORSEN, AWS)
        on.simulator.drop(on.simulator.links())
        await on.hearer.until(lambda: on.hearer.confirmed.count(FORSEN) == 2)
        assert [side.cluster for side in on.fleet.state(FORSEN).sides] == [AWS]
        assert on.fleet.moves_held == 0
