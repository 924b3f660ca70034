"""Links against the simulated platform: each transport, the order of bytes, refusals before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import SecretStr

from serverchange.adapters.hosts import HostRules, parse_server
from serverchange.adapters.links import (
    DEFAULT_PORTS,
    Link,
    LinkRules,
    Login,
    Transport,
    make_tls_context,
    servers_for,
)
from serverchange.events import Channel, Cluster
from serverchange.irc.client_events import (
    ChatLine,
    ClientEvent,
    JoinConfirmed,
    LinkClosed,
    LoggedIn,
    Reconnecting,
    ServerChangeHeard,
)
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator

MAIN, AWS = Cluster("main"), Cluster("aws")
WAIT_S = 15


@dataclass
class Heard:
    """Collects a link's events and lets a test await one of a kind."""

    events: list[ClientEvent] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, _link: Link, events: Sequence[ClientEvent]) -> None:
        self.events.extend(events)
        self.more.set()

    async def first(self, wanted: Callable[[ClientEvent], bool]) -> ClientEvent:
        async with asyncio.timeout(WAIT_S):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self.more.clear()
                await self.more.wait()


def is_a(kind: type[ClientEvent]) -> Callable[[ClientEvent], bool]:
    return lambda event: isinstance(event, kind)


def rules_for(simulator: Simulator, transport: Transport, *, plain_tokens: bool = True) -> LinkRules:
    return LinkRules(
        hosts=HostRules(
            suffixes=(),
            networks=(ip_network("127.0.0.0/8"),),
            plaintext_token_hosts=frozenset({"127.0.0.1"} if plain_tokens else ()),
        ),
        transport=transport,
        tls=make_tls_context(Path(simulator.addresses.ca_file)),
    )


def link_to(simulator: Simulator, transport: Transport, heard: Heard, rules: LinkRules | None = None) -> Link:
    ports = simulator.addresses.clusters[MAIN]
    entry = {"plain": ports.plain, "tls": ports.tls, "websocket": ports.ws, "websocket-tls": ports.wss}[transport]
    account = simulator.addresses.accounts[0]
    return Link(
        7,
        cluster=MAIN,
        server=parse_server(entry, default_port=DEFAULT_PORTS[transport]),
        login=Login(account.login, SecretStr(account.token)),
        rules=rules or rules_for(simulator, transport),
        listener=heard,
    )


@pytest.fixture
async def simulator() -> Simulator:  # type: ignore[misc]
    settings = SimulatorSettings(channels=5, script=False, lines_per_second=0)
    async with Simulator(settings) as running:
        yield running


def a_channel_on_main(simulator: Simulator) -> Channel:
    return next(name for name in simulator.world.profiles if simulator.world.cluster_of[name] == MAIN)


@pytest.mark.parametrize("transport", ["plain", "tls", "websocket", "websocket-tls"])
async def test_a_link_logs_in_joins_and_hears_chat(simulator: Simulator, transport: Transport) -> None:
    heard, channel = Heard(), a_channel_on_main(simulator)
    link = link_to(simulator, transport, heard)
    running = asyncio.create_task(link.run())
    await heard.first(is_a(LoggedIn))
    await link.join([channel])
    confirmed = await heard.first(is_a(JoinConfirmed))
    assert isinstance(confirmed, JoinConfirmed)
    assert (confirmed.channel, confirmed.generation) == (channel, 7)
    simulator.say(channel, 3)
    line = await heard.first(is_a(ChatLine))
    assert isinstance(line, ChatLine)
    assert line.line.tags["id"]
    link.close("the test is over")
    async with asyncio.timeout(WAIT_S):
        await running
    closed = heard.events[-1]
    assert isinstance(closed, LinkClosed)
    assert closed.confirmed == {channel}


async def test_a_move_is_heard_where_the_channel_was(simulator: Simulator) -> None:
    heard, channel = Heard(), a_channel_on_main(simulator)
    link = link_to(simulator, "plain", heard)
    running = asyncio.create_task(link.run())
    await heard.first(is_a(LoggedIn))
    await link.join([channel])
    await heard.first(is_a(JoinConfirmed))
    simulator.move(channel, AWS, force=True)
    notice = await heard.first(is_a(ServerChangeHeard))
    assert isinstance(notice, ServerChangeHeard)
    assert (notice.channel, notice.joining) == (channel, False)
    link.close("the test is over")
    await running


async def test_reconnect_leaves_the_link_open_but_not_ready(simulator: Simulator) -> None:
    heard = Heard()
    link = link_to(simulator, "plain", heard)
    running = asyncio.create_task(link.run())
    await heard.first(is_a(LoggedIn))
    simulator.reconnect(simulator.links())
    await heard.first(is_a(Reconnecting))
    assert link.open
    assert not link.ready
    link.close("the test is over")
    await running


async def test_a_token_never_goes_out_in_plaintext_unless_a_setting_names_the_host(simulator: Simulator) -> None:
    heard = Heard()
    link = link_to(simulator, "plain", heard, rules_for(simulator, "plain", plain_tokens=False))
    await link.run()
    assert "without TLS" in link.end_reason
    assert [type(event) for event in heard.events] == [LinkClosed]


async def test_a_server_with_an_unknown_certificate_gets_nothing(simulator: Simulator) -> None:
    heard = Heard()
    rules = LinkRules(hosts=rules_for(simulator, "tls").hosts, transport="tls", tls=make_tls_context(None))
    link = link_to(simulator, "tls", heard, rules)
    await link.run()
    assert "CERTIFICATE_VERIFY_FAILED" in link.end_reason


def test_a_list_of_plain_ports_gives_tls_its_hosts_alone() -> None:
    assert servers_for("tls", ["a.example:6667", "a.example:80", "b.example:80"], []) == ("a.example", "b.example")


def test_ports_of_the_other_protocol_are_left_out() -> None:
    entries = ["a.example:6667", "a.example:6697", "a.example:1234", "a.example"]
    assert servers_for("plain", entries, []) == ("a.example:6667", "a.example:1234", "a.example")
    assert servers_for("tls", entries, []) == ("a.example:6697", "a.example:1234", "a.example")
