"""tmi.js judges the simulated platform: 0.0.28, which knows SERVERCHANGE, and 1.8.5, the last release."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serverchange.events import Channel, Cluster
from serverchange.simulator.ledger import EntryKind
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator

WAIT_S = 30
FORSEN, AWS, MAIN = Channel("forsen"), Cluster("aws"), Cluster("main")
OLD, NEW = "tmi-old", "tmi.js"
BOTH = pytest.mark.parametrize("package", [OLD, NEW])

Start = Callable[..., Any]


class Driven:
    """A tmi.js client in a Node process; see tmi_client.cjs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []
        self.looked_at = 0

    def call(self, name: str, *args: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": name, "args": args}).encode() + b"\n")

    async def until(self, **wanted: object) -> dict[str, Any]:
        """The next thing that it tells with these members; what comes before is passed over."""
        assert self.process.stdout is not None
        while True:
            if self.looked_at == len(self.told):
                async with asyncio.timeout(WAIT_S):
                    line = await self.process.stdout.readline()
                assert line, f"tmi.js ended; it told {self.told}"
                self.told.append(json.loads(line))
            told = self.told[self.looked_at]
            self.looked_at += 1
            if wanted.items() <= told.items():
                return told

    async def do(self, name: str, *args: object) -> object:
        """Call, and return what the promise was resolved with."""
        self.call(name, *args)
        return (await self.until(done=name))["result"]


@pytest.fixture
def start(node: Path, node_modules: Path) -> Start:
    """Starts a client of the given package against a cluster."""

    @asynccontextmanager
    async def started(
        package: str, simulator: Simulator, cluster: Cluster = MAIN, *, login: str | None = "bot_one"
    ) -> AsyncIterator[Driven]:
        host, port = simulator.addresses.clusters[cluster].ws.split(":")
        tokens = {account.login: account.token for account in simulator.addresses.accounts}
        options = {
            "connection": {"server": host, "port": int(port), "secure": False, "reconnect": False},
            "identity": {"username": login, "password": f"oauth:{tokens[login]}"} if login is not None else {},
            "channels": [],
        }
        process = await asyncio.create_subprocess_exec(
            node,
            Path(__file__).with_name("tmi_client.cjs"),
            package,
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "NODE_PATH": str(node_modules)},
        )
        try:
            yield Driven(process)
        finally:
            process.kill()
            await process.wait()

    return started


@asynccontextmanager
async def simulated(**changes: object) -> AsyncIterator[Simulator]:
    quiet = {
        "channels": 10,
        "names": (FORSEN,),
        "event_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 0,
    }
    async with Simulator(SimulatorSettings.model_validate({**quiet, **changes})) as simulator:
        yield simulator


@BOTH
async def test_it_connects_joins_and_hears_itself_join(package: str, start: Start) -> None:
    async with simulated() as simulator, start(package, simulator) as client:
        await client.do("connect")
        assert await client.do("join", "#forsen") == ["#forsen"]
        assert simulator.ledger.count(EntryKind.JOINED, channel=FORSEN, account="bot_one") == 1
        events = [told["event"] for told in client.told if "event" in told]
        assert {"connecting", "logon", "connected", "roomstate"} <= set(events)
        joins = [told["args"] for told in client.told if told.get("event") == "join"]
        assert joins in ([["#forsen", "bot_one"]], [["#forsen", "bot_one", True]])


@BOTH
async def test_it_reads_without_a_login(package: str, start: Start) -> None:
    async with simulated() as simulator, start(package, simulator, login=None) as client:
        await client.do("connect")
        await client.do("join", "#forsen")
        simulator.say(FORSEN)
        assert (await client.until(event="chat"))["args"][2].startswith("#1 forsen ")


@BOTH
async def test_it_reads_chat_with_its_tags(package: str, start: Start) -> None:
    async with simulated() as simulator, start(package, simulator) as client:
        await client.do("connect")
        await client.do("join", "#forsen")
        simulator.say(FORSEN, 3)
        for number in (1, 2, 3):
            channel, user, text, is_own = (await client.until(event="chat"))["args"]
            assert (channel, text.split(" ")[0], is_own) == ("#forsen", f"#{number}", False)
            assert user["room-id"] == "22484600"
            assert len(user["id"]) == 36


@BOTH
async def test_what_one_says_the_other_hears(package: str, start: Start) -> None:
    async with (
        simulated() as simulator,
        start(package, simulator) as speaker,
        start(NEW, simulator, login="bot_two") as hearer,
    ):
        for client in (speaker, hearer):
            await client.do("connect")
            await client.do("join", "#forsen")
        await speaker.do("say", "#forsen", "hello from tmi.js")
        channel, user, text, is_own = (await hearer.until(event="chat"))["args"]
        assert (channel, user["username"], text, is_own) == ("#forsen", "bot_one", "hello from tmi.js", False)


@BOTH
async def test_its_ping_is_answered(package: str, start: Start) -> None:
    async with simulated() as simulator, start(package, simulator) as client:
        await client.do("connect")
        await client.do("ping")
        assert "pong" in [told.get("event") for told in client.told]


@BOTH
async def test_it_answers_the_servers_ping(package: str, start: Start) -> None:
    async with simulated(ping_interval_s=0.2) as simulator, start(package, simulator) as client:
        await client.do("connect")
        await simulator.ledger.wait_for(EntryKind.PONG_RECEIVED, account="bot_one", timeout_s=WAIT_S)


@asynccontextmanager
async def with_another_token() -> AsyncIterator[Simulator]:
    """A simulator whose addresses tell a token that it does not take."""
    async with simulated(accounts=[{"login": "bot_one", "token": "right"}]) as simulator:
        simulator.settings = SimulatorSettings()
        yield simulator


async def test_a_wrong_token_is_told_to_the_new_one(start: Start) -> None:
    async with with_another_token() as simulator, start(NEW, simulator) as client:
        client.call("connect")
        assert (await client.until(failed="connect"))["error"] == "Login authentication failed"


async def test_the_old_one_is_disconnected_after_a_wrong_token(start: Start) -> None:
    async with with_another_token() as simulator, start(OLD, simulator) as client:
        client.call("connect")
        await client.until(event="disconnected")
        assert simulator.ledger.count(EntryKind.LOGIN_REFUSED, account="bot_one") == 1


async def test_a_suspended_channel_is_a_notice_to_the_new_one(start: Start) -> None:
    async with simulated() as simulator, start(NEW, simulator) as client:
        simulator.world.suspended.add(FORSEN)
        await client.do("connect")
        client.call("join", "#forsen")
        notice = await client.until(event="notice")
        assert notice["args"][:2] == ["#forsen", "msg_channel_suspended"]


@BOTH
async def test_clearchat_is_a_timeout_or_ban_to_it(package: str, start: Start) -> None:
    async with simulated() as simulator, start(package, simulator) as client:
        await client.do("connect")
        await client.do("join", "#forsen")
        simulator.network.send_clearchat(FORSEN, "viewer_001")
        simulator.network.send_clearchat(FORSEN, None)
        assert (await client.until(event="clearchat"))["args"] == ["#forsen"]


@BOTH
async def test_it_heeds_reconnect(package: str, start: Start) -> None:
    async with simulated() as simulator, start(package, simulator) as client:
        await client.do("connect")
        simulator.reconnect(simulator.links(), close_after_s=WAIT_S)
        await client.until(event="disconnected")
        closed = await simulator.ledger.wait_for(EntryKind.LINK_CLOSED, link=1, timeout_s=WAIT_S)
        assert "client" in (closed.detail or "")


async def test_the_old_one_emits_serverchange_when_a_channel_moves(start: Start) -> None:
    async with simulated() as simulator, start(OLD, simulator) as client:
        await client.do("connect")
        await client.do("join", "#forsen")
        simulator.move(FORSEN, AWS)
        assert (await client.until(event="serverchange"))["args"] == ["#forsen"]


async def test_the_old_one_emits_serverchange_when_it_joins_on_the_wrong_cluster(start: Start) -> None:
    async with simulated() as simulator, start(OLD, simulator, AWS) as client:
        await client.do("connect")
        client.call("join", "#forsen")
        assert (await client.until(event="serverchange"))["args"] == ["#forsen"]


async def test_the_new_one_lives_on_after_serverchange(start: Start) -> None:
    async with simulated() as simulator, start(NEW, simulator) as client:
        await client.do("connect")
        await client.do("join", "#forsen")
        simulator.move(FORSEN, AWS)
        simulator.move(FORSEN, MAIN)
        simulator.say(FORSEN)
        assert (await client.until(event="chat"))["args"][2].startswith("#1 forsen ")
