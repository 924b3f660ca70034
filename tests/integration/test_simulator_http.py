"""The simulated platform's lookups, the control interface, and the simulator as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serverchange.events import Channel, Cluster
from serverchange.platform import ChatPropertiesAnswer, ServersAnswer, StreamsAnswer, TokenAnswer
from serverchange.simulator.addresses import Addresses
from serverchange.simulator.faults import Faults
from serverchange.simulator.ledger import EntryKind
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator

WAIT_S = 15
FORSEN, NYMN = Channel("forsen"), Channel("nymn")
MAIN, AWS = Cluster("main"), Cluster("aws")


def settings(**changes: object) -> SimulatorSettings:
    quiet = {
        "channels": 20,
        "names": (FORSEN, NYMN),
        "event_channels": 0,
        "script": False,
        "habits": False,
        "lines_per_second": 0,
        "api_lag_mean_minutes": 0,
    }
    return SimulatorSettings.model_validate({**quiet, **changes})


@asynccontextmanager
async def platform(**changes: object) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    """A simulator and a client of its API."""
    async with (
        Simulator(settings(**changes)) as simulator,
        httpx.AsyncClient(base_url=simulator.addresses.api_url, timeout=WAIT_S) as client,
    ):
        yield simulator, client


@asynccontextmanager
async def controlled(**changes: object) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    """A simulator and a client of its control interface."""
    async with (
        Simulator(settings(**changes)) as simulator,
        httpx.AsyncClient(base_url=simulator.addresses.control_url + "/control", timeout=WAIT_S) as client,
    ):
        yield simulator, client


async def log_in(simulator: Simulator, *channels: str) -> asyncio.StreamWriter:
    host, port = simulator.addresses.clusters[MAIN].plain.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PASS oauth:simulated-token-of-bot-one\r\nNICK bot_one\r\n")
    writer.write("".join(f"JOIN #{channel}\r\n" for channel in channels).encode())
    await reader.readuntil(b" 376 ")
    for channel in channels:
        await reader.readuntil(f"366 bot_one #{channel} ".encode())
    return writer


def rows(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


# The platform's API.


async def test_servers_names_the_cluster_and_its_own_ports() -> None:
    async with platform() as (simulator, client):
        answer = ServersAnswer.model_validate_json((await client.get("/servers?channel=forsen")).content)
        ports = simulator.addresses.clusters[MAIN]
        assert (answer.cluster, answer.servers, answer.websockets_servers) == ("main", (ports.plain,), (ports.ws,))


async def test_chat_properties_says_the_same_under_other_names() -> None:
    async with platform() as (simulator, client):
        simulator.move(FORSEN, Cluster("event"))
        response = await client.get("/api/channels/forsen/chat_properties")
        answer = ChatPropertiesAnswer.model_validate_json(response.content)
        assert (answer.cluster, answer.eventchat, answer.room) == ("event", True, 22_484_600)
        assert answer.chat_servers == (simulator.addresses.clusters[Cluster("event")].plain,)


async def test_a_channel_that_does_not_exist_is_not_found() -> None:
    async with platform() as (_, client):
        for path in ("/servers?channel=nobody", "/api/channels/nobody/chat_properties", "/servers", "/elsewhere"):
            assert (await client.get(path)).status_code == 404


async def test_streams_lists_those_asked_for_who_are_live() -> None:
    async with platform() as (simulator, client):
        simulator.set_live(NYMN, True)
        answer = StreamsAnswer.model_validate_json((await client.get("/streams?channel=forsen,nymn")).content)
        assert [stream.channel for stream in answer.streams] == ["nymn"]
        assert (answer.streams[0].started_at or "").startswith("2016-02-12T")


async def test_streams_heeds_the_first_hundred_names() -> None:
    async with platform() as (simulator, client):
        simulator.set_live(NYMN, True)
        names = ",".join([f"nobody_{index}" for index in range(100)] + ["nymn"])
        assert (await client.get(f"/streams?channel={names}")).json() == {"streams": []}


async def test_a_token_is_validated() -> None:
    async with platform() as (_, client):
        good = await client.get("/oauth2/validate", headers={"authorization": "OAuth simulated-token-of-bot-one"})
        assert TokenAnswer.model_validate_json(good.content).login == "bot_one"
        bad = await client.get("/oauth2/validate", headers={"authorization": "OAuth other"})
        assert bad.status_code == 401


async def test_the_api_lags_behind_a_move_and_the_chat_does_not() -> None:
    async with platform(api_lag_mean_minutes=1e9, api_lag_max_minutes=1e9) as (simulator, client):
        simulator.move(FORSEN, AWS)
        assert (await client.get("/servers?channel=forsen")).json()["cluster"] == "main"
        assert simulator.world.cluster_of[FORSEN] == AWS


async def test_tls_ports_are_named_if_the_settings_say_so() -> None:
    async with platform(api_servers_transport="tls") as (simulator, client):
        answer = (await client.get("/servers?channel=forsen")).json()
        assert answer["servers"] == [simulator.addresses.clusters[MAIN].tls]


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("404", 404, "error"),
        ("429", 429, "error"),
        ("500", 500, "error"),
        ("html", 200, "<html>"),
        ("error-body", 200, "error"),
        ("empty-list", 200, '"servers":[]'),
        ("wrong-types", 200, '"servers":"list"'),
        ("bad-cluster", 200, '"main "'),
        ("redirect", 302, ""),
    ],
)
async def test_a_fault_spoils_the_answer_as_asked(kind: str, status: int, said: str) -> None:
    async with platform() as (simulator, client):
        simulator.set_faults(Faults.model_validate({"api": [{"kind": kind, "retry_after_s": 7, "times": 1}]}))
        response = await client.get("/servers?channel=forsen")
        assert (response.status_code, said in response.text) == (status, True)
        assert response.headers.get("retry-after") == ("7" if kind == "429" else None)
        assert (await client.get("/servers?channel=forsen")).json()["cluster"] == "main"


@pytest.mark.parametrize("kind", ["html", "error-body", "wrong-types", "bad-cluster", "truncated"])
async def test_a_spoilt_answer_with_200_is_refused_by_the_contract(kind: str) -> None:
    async with platform() as (simulator, client):
        simulator.set_faults(Faults.model_validate({"api": [{"kind": kind}]}))
        response = await client.get("/servers?channel=forsen")
        with pytest.raises(ValidationError):
            ServersAnswer.model_validate_json(response.content)


async def test_a_cut_answer_ends_in_the_middle() -> None:
    async with platform() as (simulator, client):
        simulator.set_faults(Faults.model_validate({"api": [{"kind": "cut"}]}))
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/servers?channel=forsen")


@pytest.mark.parametrize("kind", ["slow", "drip"])
async def test_a_late_answer_is_the_true_one(kind: str) -> None:
    async with platform() as (simulator, client):
        simulator.set_faults(Faults.model_validate({"api": [{"kind": kind, "delay_s": 0.2}]}))
        assert (await client.get("/servers?channel=forsen")).json()["cluster"] == "main"
        simulator.set_faults(Faults.model_validate({"api": [{"kind": kind, "delay_s": 600}]}))
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/servers?channel=forsen", timeout=0.2)


async def test_a_gzip_bomb_is_small_on_the_wire() -> None:
    async with platform() as (simulator, client):
        simulator.set_faults(Faults.model_validate({"api": [{"kind": "gzip-bomb"}]}))
        async with client.stream("GET", "/servers?channel=forsen") as response:
            assert response.headers["content-encoding"] == "gzip"
            assert int(response.headers["content-length"]) < 100_000


# The control interface.


async def test_truth_follows_every_move() -> None:
    async with controlled() as (_, client):
        before = (await client.get("/truth")).json()
        assert (await client.post("/move", json={"channel": "forsen", "cluster": "aws"})).status_code == 200
        after = (await client.get("/truth")).json()
        assert (before["channels"]["forsen"], after["channels"]["forsen"]) == ("main", "aws")
        assert (before["moves"], after["moves"]) == (0, 1)
        assert after["at"] > before["at"]


async def test_all_channels_move_at_once_except_group_channels_and_never_while_one_is_live() -> None:
    async with controlled(group_channels=3) as (simulator, client):
        simulator.set_live(NYMN, True)
        assert (await client.post("/move", json={"cluster": "aws"})).status_code == 409
        assert (await client.get("/truth")).json()["moves"] == 0
        moved = await client.post("/move", json={"cluster": "aws", "force": True})
        assert moved.json() == {"cluster": "aws", "moved": 17}
        assert sorted((await client.get("/truth")).json()["channels"].values()) == ["aws"] * 17 + ["group"] * 3


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("move", {"channel": "forsen", "cluster": "main"}, 409),
        ("move", {"channel": "forsen"}, 400),
        ("move", {"channel": "forsen", "cluster": "aws", "more": 1}, 400),
        ("move", {"channel": "#forsen", "cluster": "aws"}, 400),
        ("live", {"channel": "nobody"}, 409),
        ("chat", {"channel": "forsen", "text": "a\r\nQUIT"}, 400),
        ("clearchat", {"channel": "nobody"}, 400),
        ("time", {"scale": 0}, 400),
        ("servers", {"cluster": "moon"}, 409),
        ("elsewhere", {}, 404),
    ],
)
async def test_a_senseless_order_is_refused_with_its_reason(route: str, body: object, status: int) -> None:
    async with controlled() as (_, client):
        response = await client.post(f"/{route}", json=body)
        assert response.status_code == status
        assert response.json()["error"]


async def test_a_body_that_is_no_json_is_refused() -> None:
    async with controlled() as (_, client):
        assert (await client.post("/move", content=b"{")).status_code == 400


async def test_lines_and_entries_come_as_ndjson() -> None:
    async with controlled() as (simulator, client):
        writer = await log_in(simulator, "forsen")
        assert (await client.post("/chat", json={"channel": "forsen", "count": 3})).json() == {"numbers": [1, 3]}
        lines = rows(await client.get("/lines?since=1&links=1"))
        assert [(line["channel"], line["number"], line["cluster"], line["links"]) for line in lines] == [
            ("forsen", 2, "main", [1]),
            ("forsen", 3, "main", [1]),
        ]
        entries = rows(await client.get("/ledger?kinds=joined,link-logged-in"))
        assert [entry["kind"] for entry in entries] == ["link-logged-in", "joined"]
        assert entries[1]["wall"] - entries[0]["wall"] == pytest.approx(entries[1]["at"] - entries[0]["at"], abs=1e-4)
        writer.close()


async def test_many_lines_come_whole() -> None:
    async with controlled() as (_, client):
        await client.post("/chat", json={"channel": "forsen", "count": 5001})
        numbers = [line["number"] for line in rows(await client.get("/lines"))]
        assert numbers == list(range(1, 5002))


async def test_wait_answers_with_the_entry_or_with_408() -> None:
    async with controlled() as (simulator, client):
        waiting = asyncio.create_task(client.get("/wait?kind=joined&channel=forsen&link=1"))
        writer = await log_in(simulator, "forsen")
        assert (await waiting).json()["account"] == "bot_one"
        late = await client.get("/wait?kind=joined&channel=nymn&timeout_s=0.05")
        assert (late.status_code, late.json()["error"]) == (
            408,
            "the ledger shows no joined, channel=nymn within 0.05 s",
        )
        assert (await client.get("/wait?kind=nonsense")).status_code == 400
        writer.close()


async def test_channels_links_and_status_say_what_is() -> None:
    async with controlled() as (simulator, client):
        writer = await log_in(simulator, "forsen")
        await client.post("/live", json={"channel": "forsen"})
        forsen = (await client.get("/channels")).json()["forsen"]
        assert (forsen["room_id"], forsen["kind"], forsen["live"]) == ("22484600", "chat", True)
        assert (await client.get("/links")).json() == [
            {
                "link": 1,
                "cluster": "main",
                "transport": "plain",
                "login": "bot_one",
                "joined": ["forsen"],
                "doomed": False,
            }
        ]
        status = (await client.get("/status")).json()
        assert (status["live"], status["links"], status["script"]["state"]) == (1, 1, "done")
        writer.close()


async def test_reconnect_goes_out_in_waves() -> None:
    async with controlled() as (simulator, client):
        writers = [await log_in(simulator) for _ in range(4)]
        order = {"waves": 2, "wave_interval_s": 0.05, "share": 0.75, "close_after_s": 0.01}
        assert (await client.post("/reconnect", json=order)).json() == {"links": [1, 2, 3]}
        await simulator.ledger.wait_for(EntryKind.LINK_CLOSED, link=3, detail="after RECONNECT")
        assert sorted(simulator.network.links) == [4]
        sent = [entry.link for entry in simulator.ledger.find(EntryKind.RECONNECT_SENT)]
        assert sent == [1, 2, 3]
        for writer in writers:
            writer.close()


async def test_raw_bytes_reach_the_chosen_links() -> None:
    async with controlled() as (simulator, client):
        host, port = simulator.addresses.clusters[MAIN].plain.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"NICK justinfan1\r\nJOIN #forsen\r\n")
        await reader.readuntil(b" 366 ")
        await reader.readline()
        ghost = "@room-id=1;tmi-sent-ts=2 :!@.tmi.twitch.tv CLEARCHAT ogprodigy"
        assert (await client.post("/raw", json={"line": ghost, "channel": "forsen"})).json() == {"links": [1]}
        assert await reader.readline() == ghost.encode() + b"\r\n"
        await client.post("/raw", json={"line_base64": "//4=", "channel": "forsen"})
        assert await reader.readline() == b"\xff\xfe\r\n"
        assert (await client.post("/raw", json={"line": ghost, "channel": "nymn"})).json() == {"links": []}
        writer.close()


async def test_faults_are_put_read_and_deleted() -> None:
    async with controlled() as (simulator, client):
        await client.put("/faults", json={"api": [{"kind": "429"}], "notice_loss": 0.5})
        assert (await client.get("/faults")).json()["api"][0]["kind"] == "429"
        assert simulator.faults.faults.notice_loss == 0.5
        assert (await client.put("/faults", json={"api": [{"kind": "fire"}]})).status_code == 400
        await client.delete("/faults")
        assert simulator.faults.faults == Faults()


async def test_servers_can_be_renewed_shut_and_be_dead() -> None:
    async with controlled() as (simulator, client):
        before = simulator.addresses.clusters[MAIN]
        await client.post("/servers", json={"cluster": "main", "renew": True, "dead": 2})
        assert simulator.addresses.clusters[MAIN] != before
        assert len(simulator.listeners.listed(MAIN, "plain")) == 3
        await client.post("/servers", json={"cluster": "main", "shut": True})
        for server in simulator.listeners.listed(MAIN, "plain"):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*server.split(":"))


async def test_the_script_can_be_held_and_started() -> None:
    async with controlled(script=True, script_starts_paused=True, time_scale=1e6) as (simulator, client):
        assert (await client.get("/status")).json()["script"]["state"] == "paused"
        await client.post("/script", json={"action": "start"})
        await simulator.ledger.wait_for(EntryKind.MOVED)
        await client.post("/script", json={"action": "pause"})
        assert (await client.get("/status")).json()["script"]["state"] == "paused"


async def test_two_weeks_pass_and_everyone_is_on_aws() -> None:
    async with controlled(script=True, habits=True, channels=100, time_scale=1e6, event_channels=None) as (
        simulator,
        client,
    ):
        await simulator.ledger.wait_until(lambda: simulator.world.script.done)
        clusters = (await client.get("/status")).json()["channels_by_cluster"]
        assert clusters == {"aws": 99, "group": 1}
        assert simulator.ledger.count(EntryKind.MOVED) == simulator.world.moves


# As a process.


def test_as_a_process_it_says_where_it_is_and_ends_on_sigterm(tmp_path: Path) -> None:
    settings_file, addresses_file = tmp_path / "settings.json", tmp_path / "addresses.json"
    settings_file.write_text(json.dumps({"channels": 5, "data_dir": str(tmp_path / "data")}))
    command = [sys.executable, "-m", "serverchange.simulator", "--settings", str(settings_file)]
    with subprocess.Popen([*command, "--addresses", str(addresses_file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        announced = Addresses.model_validate_json(process.stdout.readline())
        assert Addresses.model_validate_json(addresses_file.read_text()) == announced
        assert len(httpx.get(f"{announced.control_url}/control/truth").json()["channels"]) == 5
        assert Path(announced.ca_file).read_text().startswith("-----BEGIN CERTIFICATE-----")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_a_full_ledger_ends_the_process_loudly(tmp_path: Path) -> None:
    settings_file = tmp_path / "settings.json"
    settings_file.write_text(json.dumps({"channels": 5, "ledger_lines_max": 3, "chat_in_offline_channels": True}))
    command = [sys.executable, "-m", "serverchange.simulator", "--settings", str(settings_file)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert finished.returncode == 1
    assert "ledger_lines_max" in finished.stderr
