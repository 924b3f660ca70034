"""The one budget of lookups that all pollers share: a token bucket in PostgreSQL, leased in small portions.

A limiter in each process overspends as soon as there are two. Here a poller leases at most a fiftieth of what ten
seconds allow, by the database's clock, and what it has not used after `LEASE_EXPIRES_S` (its own monotonic clock,
from before it asked) is lost, never used late: a process that was paused wakes with an empty hand. So in any W
seconds the fleet sends at most `per_second * (W + LEASE_EXPIRES_S + 1)` requests. A 429 pauses everybody.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serverchange.adapters.postgres.connections import AsyncConnection
from serverchange.adapters.postgres.sql import queries

LEASE_EXPIRES_S: Final = 1.0
"""How long a leased request may wait for its use; a poller under load uses a portion in a fifth of that."""

PORTION_WINDOW_S: Final = 10.0
PORTION_SHARE: Final = 0.02
"""A portion is at most 2 % of what ten seconds allow, so that what a killed poller takes along is never noticed."""

CAPACITY_S: Final = 1.0
"""The bucket holds at most what one second allows: an idle fleet saves up no burst beyond it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Requests granted, and how long to wait for one more where none was."""

    granted: int
    wait_s: float


async def lease_requests(connection: AsyncConnection, *, name: str, per_second: float, wanted: int) -> Lease:
    """Take up to `wanted` requests out of the budget `name`; one statement, its own transaction.

    Raises:
        psycopg.Error: the database is away; nobody may ask then.
    """
    parameters = {
        "name": name,
        "capacity": max(1.0, per_second * CAPACITY_S),
        "per_second": per_second,
        "wanted": wanted,
    }
    statements = queries("request_budget")
    for _ in range(2):
        cursor = await connection.execute(statements["lease_requests"], parameters)
        row = await cursor.fetchone()
        if row is not None:
            return Lease(row[0], row[1])
        await connection.execute(statements["open_budget"], parameters)
    return Lease(0, CAPACITY_S)  # somebody deletes the row: no budget is no permission


async def pause_requests(connection: AsyncConnection, *, name: str, seconds: float) -> None:
    """Let nobody lease anything for `seconds`, as the platform asked in a Retry-After.

    Raises:
        psycopg.Error: the database is away; the caller still pauses by itself.
    """
    await connection.execute(queries("request_budget")["pause_requests"], {"name": name, "seconds": seconds})


class LeasedRequests:
    """The portions that this process holds. No I/O: told of leases, asked for permission.

    A portion is twice what was used of the one before, up to `portion_max`, so that a poller with little to ask
    takes little away from the others. `monotonic` is the clock by which leases expire.
    """

    def __init__(self, per_second: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._portions: deque[_Portion] = deque()
        self._used = 0
        self.portion_max = max(1, int(per_second * PORTION_WINDOW_S * PORTION_SHARE))

    def __len__(self) -> int:
        """Return how many leased requests are left and have not expired."""
        now_s = self._monotonic()
        while self._portions and (self._portions[0].left == 0 or now_s >= self._portions[0].expires_s):
            self._portions.popleft()
        return sum(portion.left for portion in self._portions)

    @property
    def wanted(self) -> int:
        """How many requests the next lease should ask for."""
        return min(self.portion_max, max(1, 2 * self._used))

    @property
    def low(self) -> bool:
        """Whether the next portion should be leased now, before the last request of this one is used."""
        return 2 * len(self) <= self.wanted

    def use(self) -> bool:
        """Use one leased request if one is left and has not expired; the oldest first."""
        if len(self) == 0:
            return False
        self._portions[0].left -= 1
        self._used += 1
        return True

    def give_back(self) -> None:
        """Undo one `use` that came to nothing."""
        if self._portions:
            self._portions[0].left += 1
            self._used -= 1

    def add(self, granted: int, *, asked_at_s: float) -> None:
        """Hold a portion that was asked for at `asked_at_s`, by the same clock."""
        self._portions.append(_Portion(granted, asked_at_s + LEASE_EXPIRES_S))
        self._used = 0

    def drop(self) -> None:
        """Forget what is left: the platform asked to pause."""
        self._portions.clear()


@dataclass(slots=True)
class _Portion:
    left: int
    expires_s: float
