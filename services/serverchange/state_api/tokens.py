"""Who may write: tokens that have a name and are known by their hash alone.

The name is the service in the events. Two tokens of one name may be valid at once, so that a token can be replaced
without a moment in which neither works.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from serverchange.adapters.settings import SettingsError

_ENTRY: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9_.-]{0,62})=(?P<sha256>[0-9a-f]{64})", re.ASCII)

TOKENS_PER_NAME_MAX: Final = 2
TOKEN_CHARACTERS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """The hashes that are valid, with their names."""

    entries: tuple[tuple[str, bytes], ...]

    def service_of(self, token: str) -> str | None:
        """Return the name of the service that this token belongs to, None where it is not known.

        All hashes are compared, each in constant time: how long it takes says nothing about them.
        """
        if len(token) > TOKEN_CHARACTERS_MAX:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        service = None
        for name, known in self.entries:
            if hmac.compare_digest(digest, known):
                service = name
        return service


def parse_tokens(text: str) -> Tokens:
    """Return the tokens of the setting `api.tokens`: `name=SHA-256-in-hex`, comma separated.

    Raises:
        SettingsError: an entry is not of that form, or a name has more than two. Never shows the entry.
    """
    entries: list[tuple[str, bytes]] = []
    for number, part in enumerate(filter(None, re.split(r"[,\s]+", text)), start=1):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise SettingsError(
                f"setting api.tokens: entry {number} is not name=SHA-256-in-hex "
                "(printf %s TOKEN | sha256sum; set SERVERCHANGE_API_TOKENS)"
            )
        entries.append((match["name"], bytes.fromhex(match["sha256"])))
        if sum(name == match["name"] for name, _ in entries) > TOKENS_PER_NAME_MAX:
            raise SettingsError(f"setting api.tokens: {match['name']} has more than {TOKENS_PER_NAME_MAX} tokens")
    return Tokens(tuple(entries))
