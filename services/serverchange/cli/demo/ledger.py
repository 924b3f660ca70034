"""Turns the simulator's ledger into facts: moves, streams, who stayed where, which lines reached us; and fetches it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from serverchange.cli.demo.facts import Move, SentLine, Stay, Stream
from serverchange.events import Channel, ChannelKind, Cluster

TIMEOUT_S: Final = 30.0
KINDS: Final = ("moved", "went-live", "went-offline", "link-logged-in", "link-closed", "joined", "parted", "violation")


@dataclass(slots=True)
class History:
    """What the ledger's entries tell."""

    moves: list[Move] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    links: set[int] = field(default_factory=set)
    violations: Counter[str] = field(default_factory=Counter)


def read_history(rows: Iterable[Mapping[str, Any]], *, accounts: Collection[str]) -> History:
    """Return the history that the ledger's rows tell; links are those of `accounts`, our readers."""
    history = History()
    live: dict[Channel, float] = {}
    rooms: dict[int, dict[Channel, tuple[Cluster, float]]] = defaultdict(dict)
    for row in rows:
        _take(row, history, live, rooms, accounts)
    history.streams += [Stream(channel, from_s) for channel, from_s in live.items()]
    history.stays += [
        Stay(channel, cluster, from_s) for room in rooms.values() for channel, (cluster, from_s) in room.items()
    ]
    return history


def _take(
    row: Mapping[str, Any],
    history: History,
    live: dict[Channel, float],
    rooms: dict[int, dict[Channel, tuple[Cluster, float]]],
    accounts: Collection[str],
) -> None:
    at_s = float(row["wall"])
    match row["kind"]:
        case "moved":
            history.moves.append(Move(row["channel"], row["previous"], row["cluster"], at_s))
        case "went-live":
            live[row["channel"]] = at_s
        case "went-offline":
            history.streams.append(Stream(row["channel"], live.pop(row["channel"], at_s), at_s))
        case "violation":
            history.violations[row.get("detail", "unknown")] += 1
        case "link-logged-in" if row["account"] in accounts:
            history.links.add(row["link"])
        case "joined" if row["link"] in history.links:
            rooms[row["link"]].setdefault(row["channel"], (row["cluster"], at_s))
        case "parted" if row["channel"] in rooms.get(row["link"], ()):
            history.stays.append(_end_stay(rooms[row["link"]], row["channel"], at_s))
        case "link-closed":
            room = rooms.pop(row["link"], {})
            history.stays += [_end_stay(room, channel, at_s) for channel in tuple(room)]


def _end_stay(room: dict[Channel, tuple[Cluster, float]], channel: Channel, at_s: float) -> Stay:
    cluster, from_s = room.pop(channel)
    return Stay(channel, cluster, from_s, at_s)


def read_lines(rows: Iterable[Mapping[str, Any]], *, links: Collection[int]) -> list[SentLine]:
    """Return the numbered lines; `links` are our readers'."""
    return [
        SentLine(
            channel=row["channel"],
            number=row["number"],
            at_s=float(row["wall"]),
            cluster=row["cluster"],
            reached=any(link in links for link in row["links"]),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class SimulatedChannel:
    """A channel of the platform, as its control interface tells."""

    name: Channel
    kind: ChannelKind
    labels: tuple[str, ...]
    home: Cluster


class Platform:
    """The simulator's control interface."""

    def __init__(self, control_url: str) -> None:
        self._http = httpx.AsyncClient(base_url=control_url + "/control/", timeout=TIMEOUT_S, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def channels(self) -> list[SimulatedChannel]:
        """Return all channels, the most popular first."""
        answer = await self._get("channels")
        return [
            SimulatedChannel(Channel(name), ChannelKind(one["kind"]), tuple(one["labels"]), Cluster(one["home"]))
            for name, one in answer.items()
        ]

    async def truth(self) -> dict[Channel, Cluster]:
        """Return where every channel lives now."""
        truth: dict[Channel, Cluster] = (await self._get("truth"))["channels"]
        return truth

    async def status(self) -> dict[str, Any]:
        """Return the simulator's status."""
        status: dict[str, Any] = await self._get("status")
        return status

    async def joined(self, accounts: Collection[str]) -> frozenset[tuple[Channel, Cluster]]:
        """Return the rooms in which links of `accounts` are confirmed now."""
        return frozenset(
            (Channel(channel), Cluster(link["cluster"]))
            for link in await self._get("links")
            if link["login"] in accounts
            for channel in link["joined"]
        )

    async def start_script(self) -> None:
        """Let the migration begin."""
        await self._post("script", {"action": "start"})

    async def set_chat_rate(self, lines_per_second: float) -> None:
        """Set how many numbered lines are sent a second."""
        await self._post("chat-rate", {"lines_per_second": lines_per_second})

    async def history(self, accounts: Collection[str]) -> History:
        """Return what the ledger tells of all that happened."""
        return read_history(await self._rows("ledger", kinds=",".join(KINDS)), accounts=accounts)

    async def lines(self, links: Collection[int]) -> list[SentLine]:
        """Return every numbered line."""
        return read_lines(await self._rows("lines", links="1"), links=links)

    async def _get(self, path: str) -> Any:
        answer = await self._http.get(path)
        answer.raise_for_status()
        return answer.json()

    async def _post(self, path: str, body: Mapping[str, object]) -> None:
        (await self._http.post(path, json=body)).raise_for_status()

    async def _rows(self, path: str, **query: str) -> list[dict[str, Any]]:
        answer = await self._http.get(path, params=query)
        answer.raise_for_status()
        return [json.loads(line) for line in answer.text.splitlines()]
