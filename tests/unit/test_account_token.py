"""An account's token against an API that knows it, refuses it, knows another, or is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from serverchange.adapters import account_token
from serverchange.adapters.account_token import AccountToken, TokenBudget, TokenFile
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import PlatformSettings, secret_file
from serverchange.tracker.budget import Kind

WAIT_S = 15
OURS = b'{"login": "bot", "client_id": "c", "expires_in": 14400}'
OTHERS = b'{"login": "stranger", "expires_in": 14400}'


@dataclass
class Api:
    """Answers a request by the token that it carries; `answers` maps tokens to status and body."""

    answers: dict[str, tuple[str, bytes]]
    url: str = ""
    tokens: list[str] = field(default_factory=list)


@asynccontextmanager
async def api(answers: dict[str, tuple[str, bytes]]) -> AsyncIterator[Api]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("GET /oauth2/validate ")
        token = head.lower().partition("authorization: oauth ")[2].partition("\r\n")[0]
        status, body = answers.get(token, ("401 Unauthorized", b'{"status": 401}'))
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n".encode())
        writer.write(b"location: http://127.0.0.1:1/stolen\r\n\r\n" + body)
        writer.close()
        found.tokens.append(token)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found = Api(answers)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield found


class Told(Readiness):
    """Wakes whoever waits for what `/readyz` says."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def wait_for(self, part: str, reason: str) -> None:
        super().wait_for(part, reason)
        self.heard.set()


def token(url: str, text: str | None = "good", *, file: Path | None = None, **changes: object) -> AccountToken:
    platform = {"api_url": url, "plaintext_token_hosts": ("127.0.0.1",), "request_timeout_s": 5, **changes}
    return AccountToken(
        PlatformSettings.model_validate(platform),
        account="bot",
        token=None if text is None else SecretStr(text),
        file=None if file is None else TokenFile(file),
        readiness=Told(),
    )


async def refused(account: AccountToken) -> str:
    """Wait until the token is refused; return what /readyz says."""
    readiness = account._readiness
    assert isinstance(readiness, Told)
    async with asyncio.timeout(WAIT_S):
        while "no login" not in readiness.missing.get("token of bot", ""):
            readiness.heard.clear()
            await readiness.heard.wait()
    return readiness.missing["token of bot"]


async def test_a_token_of_the_account_admits_logins() -> None:
    async with api({"good": ("200 OK", OURS)}) as found, token(found.url).running() as account:
        await asyncio.wait_for(account.admitted.wait(), WAIT_S)
        assert account._readiness.ready
        assert found.tokens == ["good"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [(("401 Unauthorized", b"{}"), "the platform refuses it"), (("200 OK", OTHERS), "it belongs to stranger")],
)
async def test_a_token_that_is_not_ours_admits_no_login(answer: tuple[str, bytes], said: str) -> None:
    async with api({"good": answer}) as found, token(found.url).running() as account:
        assert said in await refused(account)
        assert not account.admitted.is_set()


async def test_an_account_without_a_token_admits_no_login() -> None:
    async with token("http://127.0.0.1:1", "").running() as account:
        assert "it has none" in await refused(account)


@pytest.mark.parametrize("text", ["canary\nx: y", "canary\0", "cänary", "can ary"])
async def test_a_token_that_no_header_can_carry_is_refused_unseen(
    text: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with api({}) as found, token(found.url, text).running() as account:
        said = await refused(account)
        assert found.tokens == []
    shown = said + caplog.text + "".join(capfd.readouterr())
    assert "can" not in shown.replace("cannot", "")


@pytest.mark.parametrize("status", ["500 Oops", "404 Not Found", "200 OK", "302 Found", "429 Slow"])
async def test_what_is_no_information_leaves_the_token_as_it_was(status: str) -> None:
    async with api({"good": (status, b"<html>")}) as found, token(found.url).running() as account:
        await asyncio.wait_for(account.admitted.wait(), WAIT_S)
        assert account._readiness.ready
        assert found.tokens == ["good"]  # a redirect was not followed


async def test_an_api_that_is_away_leaves_the_token_as_it_was() -> None:
    async with token("http://127.0.0.1:1").running() as account:
        await asyncio.wait_for(account.admitted.wait(), WAIT_S)


async def test_a_refused_token_is_read_again_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_token, "FILE_INTERVAL_S", 0.05)
    file = tmp_path / "token"
    file.write_text("old")
    async with api({"new": ("200 OK", OURS)}) as found, token(found.url, "old", file=file).running() as account:
        await refused(account)
        file.write_text("new\n")
        await asyncio.wait_for(account.admitted.wait(), WAIT_S)
        shown = account.login().token
        assert shown is not None
        assert shown.get_secret_value() == "new"
        assert found.tokens == ["old", "new"]


async def test_a_refused_login_asks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_token, "ASK_INTERVAL_MIN_S", 0.01)
    answers = {"good": ("200 OK", OURS)}
    async with api(answers) as found, token(found.url).running() as account:
        await asyncio.wait_for(account.admitted.wait(), WAIT_S)
        answers.clear()
        account.check_soon()
        await refused(account)
        assert len(found.tokens) == 2


async def test_a_token_in_clear_goes_to_no_host_that_is_not_named() -> None:
    async with (
        api({"good": ("200 OK", OURS)}) as found,
        token(found.url, plaintext_token_hosts=()).running() as account,
    ):
        await asyncio.wait_for(account.admitted.wait(), WAIT_S)
        assert found.tokens == []


class OneBudget:
    """Grants when told to, and remembers what came back."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Event()
        self.back = 0

    async def take(self, kind: Kind, wanted: int) -> int:  # noqa: ARG002
        self.asked.set()
        await self.open.wait()
        return wanted

    def sent(self, kind: Kind, count: int) -> None:
        """Nothing to do."""

    def unused(self, kind: Kind, count: int) -> None:  # noqa: ARG002
        self.back += count


async def test_a_login_waits_for_the_token_and_a_join_does_not() -> None:
    account, purse = token("http://127.0.0.1:1"), OneBudget()
    budget = TokenBudget(purse, account)
    purse.open.set()
    assert await budget.take(Kind.JOIN, 3) == 3
    login = asyncio.create_task(budget.take(Kind.LOGIN, 1))
    await asyncio.sleep(0)
    assert not login.done()
    account.admitted.set()
    assert await asyncio.wait_for(login, WAIT_S) == 1


async def test_a_login_paid_for_while_the_token_was_refused_is_given_back() -> None:
    account, purse = token("http://127.0.0.1:1"), OneBudget()
    account.admitted.set()
    login = asyncio.create_task(TokenBudget(purse, account).take(Kind.LOGIN, 1))
    await purse.asked.wait()
    account.admitted.clear()
    purse.open.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert purse.back == 1
    assert not login.done()
    account.admitted.set()
    assert await asyncio.wait_for(login, WAIT_S) == 1


def test_the_environment_wins_over_the_secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERCHANGE_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("SERVERCHANGE_RECONNECTOR_TOKEN", raising=False)
    assert secret_file("reconnector", "token") is None
    (tmp_path / "serverchange_reconnector_token").write_text("t")
    assert secret_file("reconnector", "token") == tmp_path / "serverchange_reconnector_token"
    monkeypatch.setenv("SERVERCHANGE_RECONNECTOR_TOKEN", "t")
    assert secret_file("reconnector", "token") is None
