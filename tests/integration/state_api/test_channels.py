"""Where channels are, asked over HTTP of a real Postgres."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from serverchange.tracker.channel_state import Status
from serverchange.views import ChannelAnswer, ChannelAtAnswer, ChannelsPage, HistoryPage, LookupAnswer, parse_position

from .conftest import BEARER, T0, RunningApi, Tables, settled


def at(minutes: float) -> str:
    return (datetime.fromtimestamp(T0 / 1000, UTC) + timedelta(minutes=minutes)).isoformat()


async def test_a_channel_says_where_it_is_and_how_fresh_that_is(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws", left_cluster="main", version=2)])
    await tables.execute("INSERT INTO channel_freshness VALUES ('forsen', 2, '2016-03-01T12:00Z')")

    response = await api.client.get("/channels/Forsen")

    answer = ChannelAnswer.model_validate_json(response.content, strict=False)
    assert (answer.cluster, answer.previous, answer.version, answer.status) == ("aws", "main", 2, "settled")
    assert answer.since == datetime.fromtimestamp(T0 / 1000, UTC)
    assert answer.verified_at == datetime(2016, 3, 1, 12, tzinfo=UTC)
    assert (answer.labels, answer.services, answer.evidence) == (("partner",), ("my-bot",), ("e-1",))


async def test_a_verification_of_an_older_version_does_not_count(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws", version=2)])
    await tables.execute("INSERT INTO channel_freshness VALUES ('forsen', 1, now())")

    assert (await api.client.get("/channels/forsen")).json()["verified_at"] is None


async def test_a_channel_that_moved_often_of_late_flaps(api: RunningApi, tables: Tables) -> None:
    now_ms = round(datetime.now(UTC).timestamp() * 1000)
    await tables.store(
        [
            settled("restless", on="aws", penalty=3_500, penalty_at_ms=now_ms),
            settled("calmed", on="aws", penalty=3_500, penalty_at_ms=now_ms - 3_600_000),
        ]
    )

    page = (await api.client.get("/channels", params={"flapping": True})).json()

    assert [row["channel"] for row in page["channels"]] == ["restless"]


async def test_an_unknown_channel_is_a_problem_that_says_what_to_do(api: RunningApi) -> None:
    response = await api.client.get("/channels/nobody")

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "POST /channels" in response.json()["detail"]


@pytest.mark.parametrize(
    "name",
    [
        "%23a%0D%0AQUIT",
        "a%00b",
        "%23a,%23b",
        "a%20b",
        "%23%23a",
        "a" * 26,
        "%D0%B0%D0%B1",
        "%E2%84%AA",
        "%C4%B0x",
        "';--",
    ],
)
async def test_what_is_no_name_is_refused(api: RunningApi, name: str) -> None:
    response = await api.client.get(f"/channels/{name}")

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


async def test_many_are_looked_up_at_once_in_portions(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled(f"c{number}", on="aws") for number in range(5_000)])
    names = [f"#C{number}" for number in range(5_001)]

    response = await api.client.post("/channels:lookup", json={"channels": [*names, "c1"]})

    answer = LookupAnswer.model_validate_json(response.content, strict=False)
    assert {row.channel for row in answer.channels} == {f"c{number}" for number in range(5_000)}
    assert len(answer.channels) == 5_000
    assert answer.unknown == ("c5000",)


async def test_pages_neither_skip_nor_repeat_while_rows_are_written(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled(f"c{number:03}", on="main") for number in range(0, 100, 2)])
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = ChannelsPage.model_validate_json(
            (await api.client.get("/channels", params=params)).content, strict=False
        )
        seen.extend(row.channel for row in page.channels)
        cursor = page.cursor
        if cursor is None:
            break
        await tables.store([settled(f"b{len(seen):03}", on="main"), settled(seen[-1], on="aws", version=9)])

    assert seen == [f"c{number:03}" for number in range(0, 100, 2)]


async def test_a_listing_is_filtered(api: RunningApi, tables: Tables) -> None:
    await tables.store(
        [
            settled("a", on="aws"),
            settled("b", on="main", status=Status.MOVING, verified=False),
            settled("c", on="aws", wanting=(), status=Status.UNTRACKED),
            settled("d", on="aws", pinned="aws", wanting=()),
        ]
    )

    async def names(**params: str | bool) -> list[str]:
        return [row["channel"] for row in (await api.client.get("/channels", params=params)).json()["channels"]]

    assert await names() == ["a", "b", "d"]
    assert await names(cluster="aws") == ["a", "d"]
    assert await names(status="moving") == ["b"]
    assert await names(status="untracked") == ["c"]
    assert await names(cluster="aws", label="partner") == ["a"]
    assert await names(verified=False) == ["b"]
    assert await names(pinned=True) == ["d"]


async def test_all_channels_are_exported_as_lines(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled(f"c{number}", on="aws") for number in range(4_500)])

    response = await api.client.get("/channels", headers={"accept": "application/x-ndjson"})

    assert response.headers["content-type"] == "application/x-ndjson"
    names = [json.loads(line)["channel"] for line in response.text.splitlines()]
    assert names == sorted(f"c{number}" for number in range(4_500))


async def test_history_is_paged_newest_first_with_its_evidence(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws", version=3)])
    await tables.store_history("forsen", ["main", "event", "aws"])

    newest = HistoryPage.model_validate_json(
        (await api.client.get("/channels/forsen/history", params={"limit": 2})).content, strict=False
    )
    oldest = HistoryPage.model_validate_json(
        (await api.client.get("/channels/forsen/history", params={"cursor": newest.cursor or ""})).content, strict=False
    )

    assert [(one.version, one.previous, one.cluster) for one in newest.changes] == [
        (3, "event", "aws"),
        (2, "main", "event"),
    ]
    assert [(one.version, one.what, one.cluster) for one in oldest.changes] == [(1, "first-seen", "main")]
    assert newest.changes[0].evidence == ("e-3",)
    assert newest.changes[0].decided_by.offset == 103
    assert oldest.cursor is None


async def test_at_a_past_moment_the_published_changes_answer(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws", version=3)])
    await tables.store_history("forsen", ["main", "event", "aws"])

    response = await api.client.get("/channels/forsen", params={"at": at(minutes=1.5)})
    answer = ChannelAtAnswer.model_validate_json(response.content, strict=False)
    assert (answer.cluster, answer.previous, answer.version) == ("event", "main", 2)

    before = await api.client.get("/channels/forsen", params={"at": at(minutes=-1)})
    assert before.status_code == 404


async def test_an_answer_that_the_asker_has_is_not_sent_again(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled("forsen", on="aws")])
    for path in ("/channels/forsen", "/channels", "/channels/forsen/history"):
        first = await api.client.get(path)
        again = await api.client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), path
        assert again.headers["etag"] == first.headers["etag"]

    etag = (await api.client.get("/channels/forsen")).headers["etag"]
    await tables.store([settled("forsen", on="main", version=2)])
    moved = await api.client.get("/channels/forsen", headers={"if-none-match": etag})
    assert moved.status_code == 200


async def test_long_answers_are_packed(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled(f"c{number}", on="aws") for number in range(100)])

    packed = await api.client.get("/channels", headers={"accept-encoding": "gzip"})
    plain = await api.client.get("/channels", headers={"accept-encoding": "identity"})

    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json()["channels"] == plain.json()["channels"]


async def test_history_shows_what_the_deciding_event_said(api: RunningApi, tables: Tables) -> None:
    written = await api.client.put("/channels/forsen/pin", headers=BEARER, json={"cluster": "aws"})
    ((partition, offset),) = parse_position(written.json()["position"]).items()
    await tables.store([settled("forsen", on="aws", version=2)])
    await tables.store_history("forsen", ["main", "aws"])
    await tables.execute("UPDATE cluster_change SET partition = %s, log_offset = %s", [partition, offset])

    response = await api.client.get("/channels/forsen/history", params={"evidence": True})

    event = HistoryPage.model_validate_json(response.content, strict=False).changes[0].decided_by.event
    assert event is not None
    assert (event["type"], event["data"]) == ("tv.serverchange.channel.pinned.v1", {"cluster": "aws"})


async def test_evidence_is_shown_for_a_short_page_alone(api: RunningApi) -> None:
    response = await api.client.get("/channels/forsen/history", params={"evidence": True, "limit": 21})

    assert response.status_code == 422
