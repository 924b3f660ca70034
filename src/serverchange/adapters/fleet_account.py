"""An account as a fleet of links uses it: whose login a link makes, and who pays for it and for its JOINs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serverchange.adapters.links import Login
from serverchange.tracker.budget import Kind

NAMELESS = ""
"""Name of the account of those who log in without one."""


class Budget(Protocol):
    """Where JOINs and logins are paid from."""

    async def take(self, kind: Kind, wanted: int) -> int:
        """Wait until at least one event may be sent; return how many, at most `wanted`. Send them at once."""

    def sent(self, kind: Kind, count: int) -> None:
        """The bytes of `count` events have left."""

    def unused(self, kind: Kind, count: int) -> None:
        """`count` events that were taken will not be sent."""


@dataclass(frozen=True, slots=True)
class FleetAccount:
    """One account of a fleet.

    Attributes:
        login: makes the login of the next link: always the same, or a fresh nameless nick each time.
        budget: where its JOINs and logins are paid from.
        on_login_refused: called whenever a server refuses a login.
    """

    login: Callable[[], Login]
    budget: Budget
    on_login_refused: Callable[[], None] = lambda: None
