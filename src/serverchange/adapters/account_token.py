"""An account's token: checked against the platform at start and hourly, and kept from links once it is refused.

The platform wants an hourly check of whoever keeps a session. Three answers count: the account's own login, another
login, 401. Everything else is no information: links stay, logins go on, and it is asked again. A token that is refused
is read again from its secret file, so whoever refreshes it (one process outside, or the operator) only writes that
file; we never refresh it: two refreshers make each other's tokens void. Links that are open stay until they end.

The token goes to the API's host alone, over TLS or where `platform.plaintext_token_hosts` names it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr, TypeAdapter

from serverchange.adapters.fleet_account import Budget
from serverchange.adapters.hosts import HostRules
from serverchange.adapters.links import Login
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.platform_api import NoInformation, PlatformApi, Reason
from serverchange.adapters.process import Readiness
from serverchange.adapters.settings import AccountSettings, PlatformSettings, secret_file
from serverchange.tracker.budget import Kind

_log = get_logger("account_token")

CHECK_INTERVAL_S: Final = 3600.0
"""The platform's documentation: validate once an hour."""

RETRY_S: Final = 30.0
"""After no information, and how often a refused token is asked about again: an API may say 401 by mistake."""

FILE_INTERVAL_S: Final = 2.0
"""How often the file of a refused token is looked at; a new one is tried at once."""

ASK_INTERVAL_MIN_S: Final = 10.0
"""Refused logins ask for a check at once, but not more often than this."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The secret file that an account's token came from: it may be written anew while a process runs.

    Attributes:
        login: the account in a file of `reconnector.accounts`; None: the file holds one token and nothing else.
    """

    path: Path
    login: str | None = None

    def read(self) -> str:
        """Return the token that the file holds now, empty where it has none for this account.

        Raises:
            OSError: it is away.
            ValueError: it is no text, or no list of accounts.
        """
        text = self.path.read_text("utf-8").strip()
        if self.login is None:
            return text
        tokens = {one.login: one.token for one in _ACCOUNTS.validate_json(text)}
        token = tokens.get(self.login)
        return "" if token is None else token.get_secret_value().strip()


_ACCOUNTS: Final = TypeAdapter(tuple[AccountSettings, ...])


def token_file(login: str) -> TokenFile | None:
    """Return where an account's token may be written anew; None: the environment sets it, or there is no such file."""
    if (several := secret_file("reconnector", "accounts")) is not None:
        return TokenFile(several, login)
    one = secret_file("reconnector", "token")
    return None if one is None else TokenFile(one)


class AccountToken:
    """The token of one account. Use it inside `running`.

    Args:
        platform: where to ask, and which hosts may see a token.
        account: the login that it must belong to.
        token: what the settings say.
        file: the secret file that it came from, None where it came from elsewhere.
        readiness: told while the token is refused.

    Attributes:
        admitted: set while logins may be tried: from the first answer that does not refuse the token.
    """

    def __init__(
        self,
        platform: PlatformSettings,
        *,
        account: str,
        token: SecretStr | None,
        file: TokenFile | None,
        readiness: Readiness,
    ) -> None:
        self.admitted = asyncio.Event()
        self._platform = platform
        self._account = account
        self._token = token
        self._file = file
        self._readiness = readiness
        self._part = f"token of {account}"
        self._wanted = asyncio.Event()
        self._refused = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[AccountToken]:
        """Check the token while inside."""
        self._readiness.wait_for(self._part, "the token has not been checked yet")
        async with (
            PlatformApi(self._platform, connections_max=1, carries_token=True) as api,
            asyncio.TaskGroup() as tasks,  # a bug in the check ends the process: nobody would notice otherwise
        ):
            checking = tasks.create_task(self._keep_checking(api), name="checks the token")
            yield self
            checking.cancel()

    def login(self) -> Login:
        """Return the login of the next link, with the newest token."""
        return Login(self._account, self._token)

    def check_soon(self) -> None:
        """A server refused our login: ask about the token now, not within the hour."""
        self._wanted.set()

    async def _keep_checking(self, api: PlatformApi) -> None:
        while True:
            self._wanted.clear()
            self._read_file()
            pause_s = await self._check(api)
            if self.admitted.is_set():
                await asyncio.sleep(min(ASK_INTERVAL_MIN_S, pause_s))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), pause_s)
            else:
                await self._wait_for_file(pause_s)

    async def _check(self, api: PlatformApi) -> float:
        """Ask once; return how long to wait before the next time."""
        if self._token is None or not self._token.get_secret_value():
            return self._refuse("it has none: put it into its secret file (docs/operations.md, Rotate tokens)")
        url = urlsplit(self._platform.api_url)
        if not HostRules.from_settings(self._platform).may_send_token(url.hostname or "", tls=url.scheme == "https"):
            reason = f"{self._platform.api_url} is no TLS, and not in platform.plaintext_token_hosts"
            _log.error(LogEvent.TOKEN_UNCHECKED, account=self._account, reason=reason)
            return self._admit(CHECK_INTERVAL_S)
        match await api.fetch_token_owner(self._token):
            case NoInformation(Reason.UNAUTHORIZED):
                return self._refuse("the platform refuses it: make a new one (docs/operations.md, Rotate tokens)")
            case NoInformation(reason, detail):
                _log.warning(LogEvent.TOKEN_UNCHECKED, account=self._account, reason=f"{reason}: {detail}")
                # What was refused stays so; what was good, or is asked about for the first time, may be tried.
                return RETRY_S if self._refused else self._admit(RETRY_S)
            case answer:
                if answer.login.lower() != self._account.lower():
                    return self._refuse(f"it belongs to {answer.login}")
                _log.info(LogEvent.TOKEN_CHECKED, account=self._account, expires_in_s=answer.expires_in)
                return self._admit(CHECK_INTERVAL_S)

    def _admit(self, pause_s: float) -> float:
        self._refused = False
        self._readiness.found(self._part)
        self.admitted.set()
        return pause_s

    def _refuse(self, reason: str) -> float:
        told = f"no login is tried with the token of {self._account}: {reason}"
        if not self._refused:
            _log.error(LogEvent.TOKEN_REFUSED, account=self._account, reason=told)
        self._refused = True
        self._readiness.wait_for(self._part, told)
        self.admitted.clear()
        return RETRY_S

    async def _wait_for_file(self, timeout_s: float) -> None:
        """Return once the file holds another token, or after `timeout_s`."""
        for _ in range(max(1, round(timeout_s / FILE_INTERVAL_S))):
            await asyncio.sleep(FILE_INTERVAL_S)
            if self._read_file():
                return

    def _read_file(self) -> bool:
        """Take the file's token; return whether it is another than before. A file that is away is no information."""
        if self._file is None:
            return False
        try:
            text = self._file.read()
        except (OSError, ValueError) as error:
            reason = f"{self._file.path}: {type(error).__name__}"
            _log.warning(LogEvent.TOKEN_UNCHECKED, account=self._account, reason=reason)
            return False
        known = self._token.get_secret_value() if self._token is not None else ""
        if not text or text == known:
            return False
        self._token = SecretStr(text)
        return True


class TokenBudget:
    """A fleet's `Budget` that grants no login while the token is refused; JOINs are not its business."""

    def __init__(self, budget: Budget, token: AccountToken) -> None:
        self._budget = budget
        self._token = token

    async def take(self, kind: Kind, wanted: int) -> int:
        """Wait until at least one event may be sent; a login also waits for the token."""
        if kind is not Kind.LOGIN:
            return await self._budget.take(kind, wanted)
        while True:
            await self._token.admitted.wait()
            taken = await self._budget.take(kind, wanted)
            if self._token.admitted.is_set():
                return taken
            self._budget.unused(kind, taken)  # it was refused while we waited for budget

    def sent(self, kind: Kind, count: int) -> None:
        """The bytes of `count` events have left."""
        self._budget.sent(kind, count)

    def unused(self, kind: Kind, count: int) -> None:
        """`count` events that were taken will not be sent."""
        self._budget.unused(kind, count)
