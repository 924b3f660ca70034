"""The simulated clusters over real sockets: dialogue, moves, budgets, RECONNECT, faults. Clients are bare sockets."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.typing import Subprotocol

from serverchange.events import Channel, Cluster
from serverchange.simulator.faults import Faults
from serverchange.simulator.ledger import EntryKind
from serverchange.simulator.settings import SimulatorSettings, WrongCluster
from serverchange.simulator.simulator import Simulator

WAIT_S = 15
FORSEN, NYMN = Channel("forsen"), Channel("nymn")
MAIN, AWS = Cluster("main"), Cluster("aws")
BOT = ("PASS oauth:simulated-token-of-bot-one", "NICK bot_one")
OTHER = ("PASS oauth:simulated-token-of-bot-two", "NICK bot_two")
CAPABILITIES = "CAP REQ :twitch.tv/tags twitch.tv/commands"
NOTICES = [WrongCluster.SERVERCHANGE, WrongCluster.CLUSTERCHANGE]


@dataclass
class Client:
    """A socket that remembers every line."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lines: list[str] = field(default_factory=list)
    looked_at: int = 0

    def send(self, *lines: str) -> None:
        self.writer.write("".join(line + "\r\n" for line in lines).encode())

    async def next_line(self) -> str:
        """The next line that nobody has looked at; EOFError at the end of the stream."""
        if self.looked_at == len(self.lines):
            async with asyncio.timeout(WAIT_S):
                data = await self.reader.readline()
            if not data:
                raise EOFError
            self.lines.append(data.decode().removesuffix("\r\n"))
        self.looked_at += 1
        return self.lines[self.looked_at - 1]

    async def until(self, part: str) -> str:
        """The next line that contains `part`; what comes before is passed over."""
        while part not in (line := await self.next_line()):
            pass
        return line

    async def to_the_end(self) -> list[str]:
        try:
            while True:
                await self.next_line()
        except (EOFError, ConnectionError):
            return self.lines

    async def silence(self) -> list[str]:
        """All that has come once the server has handled everything that was sent: PONG overtakes, so ask twice."""
        start = self.looked_at
        for _ in range(2):
            self.send("PING mark")
            await self.until("PONG tmi.twitch.tv :mark")
        return [line for line in self.lines[start : self.looked_at] if "PONG" not in line]


Connect = Callable[..., "asyncio.Future[Client]"]


def settings(**changes: object) -> SimulatorSettings:
    quiet = {
        "channels": 20,
        "names": (FORSEN, NYMN),
        "event_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 0,
        "clearchat_share": 0,
    }
    return SimulatorSettings.model_validate({**quiet, **changes})


@asynccontextmanager
async def simulated(**changes: object) -> AsyncIterator[Simulator]:
    async with Simulator(settings(**changes)) as simulator:
        yield simulator


async def connect(simulator: Simulator, *lines: str, cluster: Cluster = MAIN) -> Client:
    host, port = simulator.addresses.clusters[cluster].plain.split(":")
    client = Client(*await asyncio.open_connection(host, int(port)))
    client.send(*lines)
    return client


async def joined(
    simulator: Simulator, *channels: Channel, login: tuple[str, ...] = BOT, cluster: Cluster = MAIN
) -> Client:
    client = await connect(simulator, CAPABILITIES, *login, cluster=cluster)
    await client.until("GLOBALUSERSTATE")
    for channel in channels:
        client.send(f"JOIN #{channel}")
        await client.until(f"ROOMSTATE #{channel}")
    return client


# Logging in and joining.


async def test_a_login_is_welcomed_and_a_join_is_confirmed_in_the_platforms_order() -> None:
    async with simulated() as simulator:
        client = await connect(simulator, CAPABILITIES, *BOT, "JOIN #forsen")
        await client.until("ROOMSTATE")
        commands = [re.sub(r"^@\S+ ", "", line).split(" ")[1] for line in client.lines]
        numerics = ["001", "002", "003", "004", "375", "372", "376"]
        assert commands == ["CAP", *numerics, "GLOBALUSERSTATE", "JOIN", "353", "366", "USERSTATE", "ROOMSTATE"]


async def test_an_anonymous_reader_needs_no_token_and_cannot_speak() -> None:
    async with simulated() as simulator:
        client = await connect(simulator, CAPABILITIES, "NICK justinfan12345", "JOIN #forsen", "PRIVMSG #forsen :hi")
        await client.until("366")
        dropped = await simulator.ledger.wait_for(EntryKind.PRIVMSG_DROPPED)
        assert dropped.detail == "anonymous"


@pytest.mark.parametrize(
    "login",
    [("PASS oauth:wrong", "NICK bot_one"), ("NICK bot_one",), ("PASS oauth:simulated-token-of-bot-one", "NICK x")],
)
async def test_a_wrong_login_is_refused_and_closed(login: tuple[str, ...]) -> None:
    async with simulated() as simulator:
        lines = await (await connect(simulator, *login)).to_the_end()
        assert lines[-1] == ":tmi.twitch.tv NOTICE * :Login authentication failed"


async def test_a_join_of_a_channel_that_does_not_exist_gets_no_answer() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        client.send("JOIN #nobody_at_all")
        assert await client.silence() == []
        assert simulator.ledger.count(EntryKind.JOIN_REFUSED, detail="no such channel") == 1


async def test_a_join_of_a_suspended_channel_gets_a_notice() -> None:
    async with simulated() as simulator:
        client = await joined(simulator)
        simulator.world.suspended.add(FORSEN)
        client.send("JOIN #forsen")
        assert (await client.until("NOTICE")).startswith("@msg-id=msg_channel_suspended ")


async def test_a_parted_channel_is_silent() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN, NYMN)
        client.send("PART #forsen")
        await client.until("PART #forsen")
        simulator.say(FORSEN)
        simulator.say(NYMN)
        assert "#nymn" in await client.until("PRIVMSG")


async def test_a_second_nick_ends_the_link() -> None:
    async with simulated() as simulator:
        client = await joined(simulator)
        client.send("NICK another")
        await client.to_the_end()
        assert (await simulator.ledger.wait_for(EntryKind.LINK_CLOSED)).detail == "by the client: second NICK"


async def test_a_line_over_4096_bytes_is_rejected_and_one_of_4096_is_heard() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        longest = "PRIVMSG #forsen :" + "x" * (4096 - 2 - len("PRIVMSG #forsen :"))
        client.send(longest)
        assert (await simulator.ledger.wait_for(EntryKind.PRIVMSG_DROPPED)).detail == "too long"
        client.send(longest + "x")
        assert (await simulator.ledger.wait_for(EntryKind.LINE_REJECTED)).link == 1
        assert await client.silence() == []


async def test_what_is_asked_in_the_same_breath_as_quit_is_not_answered() -> None:
    async with simulated() as simulator:
        client = await joined(simulator)
        client.send("JOIN #forsen\r\nPRIVMSG #forsen :hi\r\nQUIT")
        assert "#forsen" not in "".join(await client.to_the_end())
        assert (await simulator.ledger.wait_for(EntryKind.LINK_CLOSED)).detail == "by the client: QUIT"


# Chat.


async def test_everyone_joined_gets_a_numbered_line_and_the_ledger_says_who() -> None:
    async with simulated() as simulator:
        clients = [await joined(simulator, FORSEN), await joined(simulator, FORSEN, login=OTHER)]
        assert simulator.say(FORSEN, 2) == (1, 2)
        for client in clients:
            assert " :#1 forsen " in await client.until("PRIVMSG")
            assert " :#2 forsen " in await client.until("PRIVMSG")
        assert [(line.number, line.cluster, line.links) for line in simulator.ledger.lines.since()] == [
            (1, MAIN, (1, 2)),
            (2, MAIN, (1, 2)),
        ]


async def test_without_the_tags_capability_lines_have_no_tags() -> None:
    async with simulated() as simulator:
        client = await connect(simulator, *BOT, "JOIN #forsen")
        await client.until("366")
        simulator.say(FORSEN)
        assert (await client.until("PRIVMSG")).startswith(":viewer_")


async def test_what_a_client_says_reaches_the_others_and_not_itself() -> None:
    async with simulated() as simulator:
        speaker, hearer = await joined(simulator, FORSEN), await joined(simulator, FORSEN, login=OTHER)
        speaker.send("PRIVMSG #forsen :hello there")
        line = await hearer.until("PRIVMSG")
        assert line.endswith(":bot_one!bot_one@bot_one.tmi.twitch.tv PRIVMSG #forsen :hello there")
        assert re.search(r"[;@]id=[0-9a-f-]{36};.*room-id=22484600;.*tmi-sent-ts=\d+;", line)
        await speaker.until("USERSTATE #forsen")
        assert await speaker.silence() == []


async def test_the_same_text_again_is_a_duplicate() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        client.send("PRIVMSG #forsen :hi", "PRIVMSG #forsen :hi")
        assert (await client.until("NOTICE")).startswith("@msg-id=msg_duplicate ")


async def test_clearchat_reaches_those_joined() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        simulator.network.send_clearchat(FORSEN, "viewer_001")
        assert (await client.until("CLEARCHAT")).endswith(":tmi.twitch.tv CLEARCHAT #forsen :viewer_001")


async def test_chat_flows_in_live_channels_by_itself() -> None:
    async with simulated(lines_per_second=2000) as simulator:
        client = await joined(simulator, FORSEN, NYMN)
        simulator.set_live(NYMN, True)
        for number in range(1, 101):
            assert f" :#{number} nymn" in await client.until("PRIVMSG")
        assert simulator.ledger.lines.last_number(FORSEN) == 0


# Moves.


async def test_after_a_move_chat_goes_to_the_new_cluster_only() -> None:
    async with simulated(wrong_cluster="silent") as simulator:
        old, new = await joined(simulator, FORSEN), await joined(simulator, FORSEN, login=OTHER, cluster=AWS)
        simulator.move(FORSEN, AWS)
        simulator.say(FORSEN)
        assert "#1 forsen" in await new.until("PRIVMSG")
        assert await old.silence() == []


@pytest.mark.parametrize("mode", NOTICES)
async def test_a_move_is_told_to_everyone_joined(mode: WrongCluster) -> None:
    async with simulated(wrong_cluster=mode) as simulator:
        clients = [await joined(simulator, FORSEN), await joined(simulator, FORSEN, NYMN, login=OTHER)]
        outsider = await joined(simulator, NYMN)
        simulator.move(FORSEN, AWS)
        for client in clients:
            told = await client.until("CHANGE")
            expected = "SERVERCHANGE #forsen" if mode is WrongCluster.SERVERCHANGE else "CLUSTERCHANGE #forsen aws"
            assert told == f":tmi.twitch.tv {expected}"
        assert await outsider.silence() == []


@pytest.mark.parametrize("mode", NOTICES)
async def test_a_join_on_the_wrong_cluster_is_answered_with_the_notice_and_not_confirmed(mode: WrongCluster) -> None:
    async with simulated(wrong_cluster=mode) as simulator:
        client = await joined(simulator, cluster=AWS)
        client.send("JOIN #forsen")
        told = await client.until("CHANGE")
        assert told.split(" ")[1:] == (
            ["SERVERCHANGE", "#forsen"] if mode is WrongCluster.SERVERCHANGE else ["CLUSTERCHANGE", "#forsen", "main"]
        )
        assert await client.silence() == []


async def test_on_a_silent_platform_a_wrong_join_is_confirmed_and_a_move_told_to_nobody() -> None:
    async with simulated(wrong_cluster="silent") as simulator:
        stays, early = await joined(simulator, FORSEN), await joined(simulator, FORSEN, login=OTHER, cluster=AWS)
        simulator.say(FORSEN)
        assert await early.silence() == []
        simulator.move(FORSEN, AWS)
        assert "#1 forsen" in await stays.until("PRIVMSG")
        assert await stays.silence() == []


async def test_every_notice_can_be_lost() -> None:
    async with simulated(notice_loss=1.0) as simulator:
        client = await joined(simulator, FORSEN)
        simulator.move(FORSEN, AWS)
        assert await client.silence() == []
        assert simulator.ledger.count(EntryKind.NOTICE_LOST, channel=FORSEN, link=1) == 1


async def test_inquire_is_answered_with_the_cluster_and_a_server() -> None:
    async with simulated() as simulator:
        client = await joined(simulator)
        simulator.move(FORSEN, AWS)
        client.send("INQUIRE #forsen")
        server = simulator.addresses.clusters[AWS].plain
        assert await client.until("INQUIRE") == f":tmi.twitch.tv INQUIRE #forsen aws {server}"


# RECONNECT.


async def test_after_reconnect_both_links_get_each_line_in_different_order_until_the_old_one_closes() -> None:
    async with simulated(chat_tick_s=0.005) as simulator:
        old = await joined(simulator, FORSEN)
        simulator.reconnect(simulator.links(), close_after_s=0.5)
        await old.until("RECONNECT")
        new = await joined(simulator, FORSEN)
        simulator.say(FORSEN, 100)
        numbers = {}
        for name, client in (("old", old), ("new", new)):
            numbers[name] = [int(re.findall(r":#(\d+) ", await client.until("PRIVMSG"))[0]) for _ in range(100)]
        assert numbers["new"] == list(range(1, 101))
        assert numbers["old"] != numbers["new"]
        assert sorted(numbers["old"]) == numbers["new"]
        await old.to_the_end()
        closed = await simulator.ledger.wait_for(EntryKind.LINK_CLOSED, link=1)
        assert closed.detail == "after RECONNECT"


async def test_lines_that_are_held_back_leave_before_the_old_link_closes() -> None:
    async with simulated(chat_tick_s=1.0) as simulator:
        old = await joined(simulator, FORSEN)
        simulator.reconnect(simulator.links(), close_after_s=0.1)
        simulator.say(FORSEN, 50)
        lines = await old.to_the_end()
        assert sum("PRIVMSG" in line for line in lines) == 50


async def test_the_delay_after_reconnect_is_random_within_the_settings() -> None:
    async with simulated() as simulator:
        clients = [await joined(simulator) for _ in range(20)]
        simulator.reconnect(simulator.links())
        delays = [float(entry.detail or 0) for entry in simulator.ledger.find(EntryKind.RECONNECT_SENT)]
        assert len(set(delays)) == len(clients)
        assert all(5 <= delay <= 60 for delay in delays)


# Budgets.

ORDINARY = [{"login": "bot_one", "token": "simulated-token-of-bot-one", "tier": "ordinary"}]


async def test_joins_over_the_budget_get_no_answer_and_are_counted() -> None:
    async with simulated(channels=40, accounts=ORDINARY) as simulator:
        client = await joined(simulator)
        names = list(simulator.world.profiles)[:25]
        client.send("JOIN " + ",".join(f"#{name}" for name in names))
        await client.silence()
        assert sum(" 366 " in line for line in client.lines) == 20
        assert simulator.ledger.violations == {"join-budget": 5}


async def test_the_join_budget_holds_over_all_links_of_an_account() -> None:
    async with simulated(channels=40, accounts=ORDINARY) as simulator:
        names = list(simulator.world.profiles)[:11]
        clients = [await joined(simulator) for _ in range(2)]
        for client in clients:
            client.send("JOIN " + ",".join(f"#{name}" for name in names))
            await client.silence()
        assert simulator.ledger.violations == {"join-budget": 2}


async def test_a_join_over_the_budget_can_end_the_link() -> None:
    async with simulated(channels=40, accounts=ORDINARY, excess_join="disconnect") as simulator:
        client = await joined(simulator)
        client.send("JOIN " + ",".join(f"#{name}" for name in list(simulator.world.profiles)[:30]))
        lines = await client.to_the_end()
        assert sum(" 366 " in line for line in lines) == 20
        assert simulator.ledger.violations == {"join-budget": 1}


async def test_a_login_over_the_budget_is_refused() -> None:
    async with simulated(accounts=ORDINARY) as simulator:
        for _ in range(20):
            await joined(simulator)
        lines = await (await connect(simulator, *BOT)).to_the_end()
        assert lines == [":tmi.twitch.tv NOTICE * :Login unsuccessful"]
        assert simulator.ledger.violations == {"login-budget": 1}


async def test_a_message_over_the_budget_mutes_the_account() -> None:
    async with simulated(channels=40, accounts=ORDINARY) as simulator:
        client = await joined(simulator)
        names = [name for name in simulator.world.profiles if simulator.world.cluster_of[name] == MAIN][:22]
        client.send(*(f"PRIVMSG #{name} :hi" for name in names))
        await client.silence()
        assert simulator.ledger.count(EntryKind.PRIVMSG) == 20
        assert simulator.ledger.violations["message-budget"] == 2


async def test_the_channel_limit_is_told_by_a_notice() -> None:
    async with simulated(channel_limit=1) as simulator:
        await joined(simulator, FORSEN)
        second = await joined(simulator, FORSEN)
        second.send("JOIN #nymn")
        assert "msg_concurrent_channel_limit_reached" in await second.until("NOTICE")
        assert simulator.ledger.violations == {"channel-limit": 1}


# Links that end, faults.


async def test_a_client_that_answers_no_ping_is_closed() -> None:
    async with simulated(ping_interval_s=0.1, pong_timeout_s=0.1) as simulator:
        dead, alive = await joined(simulator), await joined(simulator)
        await alive.until("PING")
        alive.send("PONG :tmi.twitch.tv")
        await dead.to_the_end()
        assert (await simulator.ledger.wait_for(EntryKind.LINK_CLOSED, link=1)).detail == "no PONG"
        assert simulator.ledger.count(EntryKind.PONG_RECEIVED, link=2) >= 1


async def test_a_connection_that_never_logs_in_is_closed() -> None:
    async with simulated(login_timeout_s=0.1) as simulator:
        await (await connect(simulator)).to_the_end()
        assert (await simulator.ledger.wait_for(EntryKind.LINK_CLOSED)).detail == "no login"


async def test_a_dropped_link_leaves_its_rooms() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        simulator.drop(simulator.links())
        await client.to_the_end()
        simulator.say(FORSEN)
        assert next(iter(simulator.ledger.lines.since())).links == ()


async def test_a_swallowed_join_leaves_the_healthy_channels_alone() -> None:
    async with simulated() as simulator:
        simulator.set_faults(Faults.model_validate({"joins_swallowed": [{"channel": "forsen", "link": 1}]}))
        first, second = await joined(simulator, NYMN), await joined(simulator)
        first.send("JOIN #forsen")
        assert await first.silence() == []
        second.send("JOIN #forsen")
        await second.until("366")


async def test_a_server_can_close_before_the_welcome() -> None:
    async with simulated() as simulator:
        simulator.set_faults(Faults.model_validate({"closed_before_welcome": [{"times": 1}]}))
        assert await (await connect(simulator, *BOT)).to_the_end() == []
        await (await connect(simulator, *BOT)).until("376")


async def test_a_hanging_server_answers_no_ping() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        simulator.set_faults(Faults.model_validate({"pings_ignored": [{"cluster": "main"}]}))
        client.send("PING one", "PRIVMSG #forsen :hi")
        await client.until("USERSTATE")
        assert not [line for line in client.lines if "PONG" in line]


async def test_dead_servers_refuse_connections() -> None:
    async with simulated() as simulator:
        await simulator.change_servers(MAIN, dead=1)
        dead, alive = simulator.listeners.listed(MAIN, "plain")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*dead.split(":"))
        _, writer = await asyncio.open_connection(*alive.split(":"))
        writer.close()


async def test_renewed_servers_leave_the_links_alone() -> None:
    async with simulated() as simulator:
        client = await joined(simulator, FORSEN)
        before = simulator.addresses.clusters[MAIN].plain
        await simulator.change_servers(MAIN, renew=True)
        assert simulator.addresses.clusters[MAIN].plain != before
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*before.split(":"))
        simulator.say(FORSEN)
        await client.until("PRIVMSG")


# Other carriers.


async def test_tls_is_verified_against_the_exported_authority() -> None:
    async with simulated() as simulator:
        host, port = simulator.addresses.clusters[MAIN].tls.split(":")
        context = ssl.create_default_context(cafile=simulator.addresses.ca_file)
        client = Client(*await asyncio.open_connection(host, int(port), ssl=context))
        client.send(*BOT)
        await client.until("376")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(host, int(port), ssl=ssl.create_default_context())


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_websocket_speaks_the_subprotocol_irc(scheme: str) -> None:
    async with simulated() as simulator:
        address = getattr(simulator.addresses.clusters[MAIN], scheme)
        context = ssl.create_default_context(cafile=simulator.addresses.ca_file) if scheme == "wss" else None
        async with (
            connect_websocket(f"{scheme}://{address}/", subprotocols=[Subprotocol("irc")], ssl=context) as socket,
            asyncio.timeout(WAIT_S),
        ):
            assert socket.subprotocol == "irc"
            for line in (CAPABILITIES, *BOT, "JOIN #forsen"):  # tmi.js sends lines without their end.
                await socket.send(line)
            heard = ""
            while "ROOMSTATE #forsen" not in heard:
                heard += str(await socket.recv())
            simulator.say(FORSEN, 3)
            while "#3 forsen" not in heard:
                heard += str(await socket.recv())
        assert (await simulator.ledger.wait_for(EntryKind.LINK_CLOSED)).account == "bot_one"


async def test_who_asked_for_membership_sees_others_come_and_go() -> None:
    async with simulated() as simulator:
        watcher = await connect(simulator, "CAP REQ :twitch.tv/membership", *OTHER, "JOIN #forsen")
        await watcher.until("366")
        plain = await joined(simulator, FORSEN)
        plain.send("PART #forsen")
        mask = ":bot_one!bot_one@bot_one.tmi.twitch.tv"
        assert await watcher.until("JOIN") == f"{mask} JOIN #forsen"
        assert await watcher.until("PART") == f"{mask} PART #forsen"
        assert "bot_two" not in "".join(plain.lines)


async def test_the_ledger_says_exactly_which_link_got_which_line() -> None:
    changes = {
        "channels": 12,
        "script": True,
        "time_scale": 1e6,
        "wrong_cluster": "silent",
        "lines_per_second": 4000,
        "chat_in_offline_channels": True,
        "chat_tick_s": 0.005,
    }
    async with simulated(**changes) as simulator:
        names = [name for name in simulator.world.profiles if not name.startswith("_")]
        clients = {}
        for cluster, login in ((MAIN, BOT), (MAIN, OTHER), (AWS, BOT), (AWS, OTHER)):
            clients[len(clients) + 1] = await joined(simulator, *names, login=login, cluster=cluster)
        reading = {number: asyncio.create_task(client.to_the_end()) for number, client in clients.items()}
        await simulator.ledger.wait_until(lambda: simulator.world.script.done)
        simulator.lines_per_second = 0
        simulator.reconnect(simulator.links(), close_after_s=0.1)
        got = {
            number: re.findall(r" PRIVMSG #(\w+) :#(\d+) ", "\n".join(await task)) for number, task in reading.items()
        }
        for number, lines in got.items():
            told = [line for line in simulator.ledger.lines.since() if number in line.links]
            assert sorted(lines) == sorted((line.channel, str(line.number)) for line in told)
            assert {line.cluster for line in told} == {MAIN if number <= 2 else AWS}
