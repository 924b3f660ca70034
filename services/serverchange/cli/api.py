"""One client of the state API for all commands: its address, its errors as faults, its pages and its stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx

from serverchange.adapters.settings import load_settings
from serverchange.cli.faults import CheckFault, Fault, UnavailableFault

TIMEOUT_S: Final = 30.0
STREAM_SILENCE_S: Final = 60.0
"""Longest silence of a stream: several of the API's heartbeats."""

STREAM_RETRY_S: Final = 1.0
API_VARIABLE: Final = "SERVERCHANGE_CLIENT_API"

_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def default_url() -> str:
    """Return where the settings say that the state API listens."""
    api = load_settings().api
    return f"http://{_ANYWHERE.get(api.host, api.host)}:{api.port}"


class Api:
    """The state API at `url`, or where the settings say."""

    def __init__(self, url: str | None) -> None:
        self.url = (url or default_url()).rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def get(self, path: str, **query: str | int | None) -> Any:
        """Return the JSON answer to a GET; parameters that are None are left out.

        Raises:
            Fault: the API says what is wrong with the request.
            CheckFault: it does not know what was asked for.
            UnavailableFault: it is not there, or cannot answer now.
        """
        given = {name: value for name, value in query.items() if value is not None}
        return self._answer(lambda: self._http.get(path, params=given))

    def send(self, method: str, path: str, body: Mapping[str, object], *, token: str | None = None) -> Any:
        """Return the JSON answer to a request with a JSON body. Raises like `get`."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return self._answer(lambda: self._http.request(method, path, json=body, headers=headers))

    def pages(self, path: str, member: str, **query: str | int | None) -> Iterator[Any]:
        """Yield the entries of every page of a list, following its cursor. Raises like `get`."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **query)
            yield from page[member]
            cursor = page["cursor"]
            if cursor is None:
                return

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Return whether the API is ready, and what it waits for.

        Raises:
            UnavailableFault: it does not answer at all.
        """
        try:
            answer = self._http.get("/readyz")
        except httpx.TransportError as error:
            raise self._away(error) from error
        if answer.status_code == httpx.codes.OK:
            return True, {}
        try:
            missing: dict[str, str] = answer.json()["missing"]
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(f"{self.url} is not a state API. Set --api or {API_VARIABLE}") from error
        return False, missing

    def stream(self, path: str, **query: str | None) -> Iterator[tuple[str, str]]:
        """Yield (event, data) of a server-sent stream for ever; a broken connection goes on where it broke.

        Raises:
            Fault, CheckFault: as `get`, for the first request and each renewed one.
            UnavailableFault: the API is not there at the first request.
        """
        given = {name: value for name, value in query.items() if value is not None}
        last_id: str | None = None
        connected = False
        while True:
            headers = {"accept": "text/event-stream", **({"last-event-id": last_id} if last_id else {})}
            try:
                with self._open(path, given, headers) as answer:
                    connected = True
                    for event, data, event_id in parse_stream(answer.iter_lines()):
                        last_id = event_id or last_id
                        yield event, data
            except (httpx.TransportError, UnavailableFault) as error:
                if not connected:
                    raise error if isinstance(error, UnavailableFault) else self._away(error) from error
            time.sleep(STREAM_RETRY_S)

    @contextmanager
    def _open(self, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
                raise _fault_of(answer, self.url)
            yield answer

    def _answer(self, ask: Callable[[], httpx.Response]) -> Any:
        try:
            answer = ask()
        except httpx.TransportError as error:
            raise self._away(error) from error
        if answer.is_error:
            raise _fault_of(answer, self.url)
        try:
            return answer.json()
        except ValueError as error:
            raise Fault(f"{self.url} is not a state API: it answers no JSON. Set --api or {API_VARIABLE}") from error

    def _away(self, error: httpx.TransportError) -> UnavailableFault:
        return UnavailableFault(
            f"the state API at {self.url} does not answer ({error}). Start it (serverchange up, or serverchange"
            f" state-api), or say where it is: --api URL, or {API_VARIABLE}"
        )


def _fault_of(answer: httpx.Response, url: str) -> Fault:
    """Return the fault that an error answer tells of; the API's problems say what to do themselves (RFC 9457)."""
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{url} answers {answer.status_code}"
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return UnavailableFault(detail)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return CheckFault(detail)
    if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return Fault(f"{detail} (the token is that of SERVERCHANGE_CLIENT_TOKEN)")
    return Fault(detail)


def parse_stream(lines: Iterator[str]) -> Iterator[tuple[str, str, str | None]]:
    """Yield (event, data, id) of a server-sent stream (WHATWG HTML, section 9.2.6); comments are heartbeats."""
    event, data, event_id = "message", list[str](), None
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "" if not line:
                if data:
                    yield event, "\n".join(data), event_id
                event, data, event_id = "message", [], None
            case "event":
                event = value
            case "data":
                data.append(value)
            case "id":
                event_id = value
