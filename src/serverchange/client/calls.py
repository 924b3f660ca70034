"""The pure core of the API clients: each call as a request and how to read its answer; when to try again.

The two shells in `state_client` send requests and wait; nothing else differs between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, Generic, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from serverchange.client.errors import ClientError, RefusedError, UnavailableError
from serverchange.events import Rejected, parse_channel
from serverchange.views import (
    POSITION_HEADER,
    ChannelAnswer,
    ChannelAtAnswer,
    ChannelsPage,
    ChannelView,
    ClustersAnswer,
    HistoryPage,
    LookupAnswer,
    WriteAnswer,
    format_position,
    parse_position,
)

T = TypeVar("T")

NAMES_A_REQUEST: Final = 10_000
"""Names in one bulk request: an answer of some 4 MB, well within the usual time-outs."""

EVIDENCE_PAGE: Final = 20
"""Changes of one page with their evidence, at most: the API reads each from the log."""

TRIES_MAX: Final = 5
BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 5.0
RETRY_STATUSES: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read a successful answer to it."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    writes: bool = False


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The answer to a bulk look-up.

    Attributes:
        channels: those that are known, by name.
        unknown: those that nobody ever tracked.
    """

    channels: Mapping[str, ChannelView]
    unknown: tuple[str, ...]


def _reader(model: type[T]) -> Callable[[bytes], T]:
    return TypeAdapter(model).validate_json


_WHERE: Final = _reader(ChannelAnswer)
_WHERE_AT: Final = _reader(ChannelAtAnswer)
_LOOKUP: Final = _reader(LookupAnswer)
_PAGE: Final = _reader(ChannelsPage)
_HISTORY: Final = _reader(HistoryPage)
_CLUSTERS: Final = _reader(ClustersAnswer)
_WRITE: Final = _reader(WriteAnswer)


def _name(text: str) -> str:
    try:
        return parse_channel(text)
    except Rejected as error:
        raise ValueError(str(error)) from error


def where(name: str) -> Call[ChannelAnswer]:
    """Ask where one channel is."""
    return Call("GET", f"/channels/{_name(name)}", _WHERE)


def where_at(name: str, at: datetime) -> Call[ChannelAtAnswer]:
    """Ask where one channel was; a moment without a zone is refused."""
    if at.tzinfo is None:
        raise ValueError("say the zone of the moment, e.g. datetime(2016, 2, 1, tzinfo=UTC)")
    return Call("GET", f"/channels/{_name(name)}", _WHERE_AT, query={"at": at.astimezone(UTC).isoformat()})


def look_up(names: Sequence[str]) -> list[Call[LookupAnswer]]:
    """Ask where many are, in portions."""
    wanted = iter(dict.fromkeys(_name(name) for name in names))
    calls = []
    while portion := list(islice(wanted, NAMES_A_REQUEST)):
        calls.append(Call("POST", "/channels:lookup", _LOOKUP, body={"channels": portion}))
    return calls


def gather_look_ups(answers: Sequence[LookupAnswer]) -> LookedUp:
    """Return the portions' answers as one."""
    channels: dict[str, ChannelView] = {view.channel: view for answer in answers for view in answer.channels}
    unknown = tuple(name for answer in answers for name in answer.unknown)
    return LookedUp(channels, unknown)


def page(cursor: str | None, filters: Mapping[str, Any]) -> Call[ChannelsPage]:
    """Ask for the page of channels behind `cursor`."""
    query = {"limit": 1_000, **filters} | ({} if cursor is None else {"cursor": cursor})
    return Call("GET", "/channels", _PAGE, query=query)


def history(name: str, cursor: str | None, *, limit: int, evidence: bool) -> Call[HistoryPage]:
    """Ask for the changes of one channel, newest first."""
    query = {"limit": min(limit, EVIDENCE_PAGE) if evidence else limit, "evidence": evidence} | (
        {} if cursor is None else {"cursor": cursor}
    )
    return Call("GET", f"/channels/{_name(name)}/history", _HISTORY, query=query)


def clusters() -> Call[ClustersAnswer]:
    """Ask which servers each cluster has."""
    return Call("GET", "/clusters", _CLUSTERS)


def track(names: Sequence[str], *, labels: Sequence[str], kind: str, account: str | None) -> Call[WriteAnswer]:
    """Say that the token's service wants these channels."""
    body = {"channels": [_name(name) for name in names], "labels": list(labels), "kind": kind, "account": account}
    return Call("POST", "/channels", _WRITE, body=body, writes=True)


def untrack(names: Sequence[str]) -> Call[WriteAnswer]:
    """Say that the token's service no longer wants these channels."""
    return Call("DELETE", "/channels", _WRITE, body={"channels": [_name(name) for name in names]}, writes=True)


def pin(name: str, cluster: str) -> Call[WriteAnswer]:
    """Say where a channel is, whatever the evidence."""
    return Call("PUT", f"/channels/{_name(name)}/pin", _WRITE, body={"cluster": cluster}, writes=True)


def unpin(name: str) -> Call[WriteAnswer]:
    """Take that word back."""
    return Call("DELETE", f"/channels/{_name(name)}/pin", _WRITE, writes=True)


class Session:
    """What one client remembers: its token, and the position of its own writes.

    Reads of the same client demand that position, so that they see what the client wrote. Pass `position` to another
    client (`see`) and that one sees it, too.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._position: dict[int, int] = {}

    @property
    def position(self) -> str | None:
        """The place in `channel-events` of everything written or seen; None: nothing."""
        return format_position(self._position) if self._position else None

    def see(self, position: str) -> None:
        """Have later reads be at least as new as `position`."""
        for partition, offset in parse_position(position).items():
            self._position[partition] = max(offset, self._position.get(partition, -1))

    def headers(self, call: Call[Any]) -> dict[str, str]:
        """Return the headers of a request."""
        headers = {}
        if call.writes and self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        if not call.writes and self.position is not None:
            headers[POSITION_HEADER] = self.position
        return headers

    def read(self, call: Call[T], response: httpx.Response) -> T:
        """Return what a successful answer says.

        Raises:
            RefusedError: the request must be changed.
            UnavailableError: every try was told to come back later.
            ClientError: what answers is no state API.
        """
        if response.is_success:
            try:
                answer = call.read(response.content)
            except ValidationError as error:
                raise ClientError(f"{response.url} is no answer of a state API: {error}") from error
            if isinstance(answer, WriteAnswer):
                self.see(answer.position)
            return answer
        detail = _detail(response)
        if response.status_code in RETRY_STATUSES:
            raise UnavailableError(f"{response.url.host}: {detail}")
        raise RefusedError(response.status_code, detail)


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def retry_after_s(tried: int, outcome: httpx.Response | httpx.TransportError, chance: float) -> float | None:
    """Return how long to wait before trying again, or None for no more tries.

    All calls may be repeated: writes are idempotent. `chance` (0 to 1) spreads clients that were told off together.
    """
    if tried >= TRIES_MAX:
        return None
    backoff_s: float = min(BACKOFF_MAX_S, BACKOFF_S * 2**tried) * (0.5 + chance / 2)
    if isinstance(outcome, httpx.Response):
        if outcome.status_code not in RETRY_STATUSES:
            return None
        told: str = outcome.headers.get("retry-after", "")
        return max(backoff_s, min(float(told), BACKOFF_MAX_S)) if told.isdecimal() else backoff_s
    return backoff_s
