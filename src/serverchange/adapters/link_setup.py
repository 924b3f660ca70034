"""What a fleet of links is made from, as the settings say: the same for shards and listeners."""

from __future__ import annotations

import random
from collections.abc import Callable

from pydantic import SecretStr

from serverchange.adapters.hosts import HostRules
from serverchange.adapters.links import LinkRules, Login, make_tls_context
from serverchange.adapters.settings import PlatformSettings

ANONYMOUS_ACCOUNT = "anonymous"
"""Whose budget nameless logins use: that of the address, shared by all processes behind it."""


def make_link_rules(settings: PlatformSettings) -> LinkRules:
    """Return what all links share.

    Raises:
        ValueError: `allowed_networks` names something that is no network.
        OSError: `ca_file` cannot be read.
    """
    encrypted = settings.transport in {"tls", "websocket-tls"}
    tls = make_tls_context(settings.ca_file) if encrypted else None
    return LinkRules(HostRules.from_settings(settings), settings.transport, tls)


def make_logins(account: str, token: SecretStr | None) -> Callable[[], Login]:
    """Return what makes the login of each link: the account's, or (no account) a fresh nameless nick."""
    if account:
        login = Login(account, token)
        return lambda: login
    return lambda: Login(f"justinfan{random.randint(10_000, 999_999_999)}")  # noqa: S311  (a nick, no secret)
