"""The platform's own two answers, read by the very client that asks the platform."""

from __future__ import annotations

import pytest

from serverchange.adapters.platform_api import ClusterAnswer, NoInformation, PlatformApi, Reason
from serverchange.adapters.settings import PlatformSettings, Settings
from serverchange.events import Channel
from serverchange.tracker.channel_state import Status
from serverchange.views import AS_OF_HEADER

from .conftest import RunningApi, Tables, Topics, settled

FORSEN = Channel("forsen")


async def ask(api: RunningApi, via: str) -> ClusterAnswer | NoInformation:
    settings = PlatformSettings.model_validate({"api_url": api.url, "lookup_via": via})
    async with PlatformApi(settings, connections_max=1) as platform:
        return await platform.fetch_cluster(FORSEN)


@pytest.mark.parametrize("via", ["servers", "chat_properties"])
async def test_a_client_of_the_platform_reads_our_answer(
    api: RunningApi, tables: Tables, topics: Topics, via: str
) -> None:
    await topics.servers("aws", ["irc.chat.twitch.tv:6667"], ["irc-ws.chat.twitch.tv:80"])
    await tables.store([settled("forsen", on="aws", room_id="22484632")])
    await api.until("/servers?channel=forsen", lambda response: response.status_code == 200)

    answer = await ask(api, via)

    assert isinstance(answer, ClusterAnswer)
    assert answer.cluster == "aws"
    assert answer.servers == ("irc.chat.twitch.tv:6667",)
    assert answer.websocket_servers == ("irc-ws.chat.twitch.tv:80",)


async def test_the_older_shape_has_the_rooms_id_and_says_event(api: RunningApi, tables: Tables, topics: Topics) -> None:
    await topics.servers("event", ["192.16.64.146:6667"])
    await tables.store([settled("forsen", on="event", room_id="22484632")])

    path = "/api/channels/forsen/chat_properties"
    response = await api.until(path, lambda response: response.status_code == 200)

    assert response.json()["_id"] == 22484632
    assert response.json()["eventchat"] is True
    assert response.json()["chat_servers"] == ["192.16.64.146:6667"]
    assert response.headers["serverchange-status"] == "settled"
    assert response.headers[AS_OF_HEADER]


async def test_an_untracked_channel_is_no_information(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws", status=Status.UNTRACKED, wanting=())])

    answer = await ask(api, "servers")

    assert isinstance(answer, NoInformation)
    assert answer.reason is Reason.NOT_FOUND


async def test_with_track_on_lookup_an_unknown_channel_is_tracked_and_asked_again(settings: Settings) -> None:
    tracking = settings.api.model_copy(update={"track_on_lookup": True})
    async with RunningApi(settings.model_copy(update={"api": tracking})) as api:
        response = await api.client.get("/servers", params={"channel": "forsen"})
        behind = await api.until("/clusters", lambda answer: answer.json().get("behind_records") == 1)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert behind.json()["behind_records"] == 1


async def test_the_clusters_are_listed_with_their_servers(api: RunningApi, topics: Topics) -> None:
    await topics.servers("aws", ["irc.chat.twitch.tv:6667"])
    await topics.servers("main", ["199.9.250.1:6667"])

    response = await api.until("/clusters", lambda answer: len(answer.json().get("clusters", ())) == 2)

    assert [(one["cluster"], one["servers"]) for one in response.json()["clusters"]] == [
        ("aws", ["irc.chat.twitch.tv:6667"]),
        ("main", ["199.9.250.1:6667"]),
    ]
