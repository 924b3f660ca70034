"""The budget of JOINs and logins that a whole fleet shares, as pure arithmetic on a ledger.

The platform counts in a fixed window that begins with the first event, at a phase nobody knows. So the rule is a
sliding log: at most `count` in **any** window of `window_s` + 1 s; the second is for what the network may bunch up.
The ledger hands out *leases*, small portions that a holder may spend within `LEASE_S`. What a lease counts for:

- not reported: in full, because all of it may have been spent this very moment, until `UNREPORTED_S` plus one window
  after it was granted (a holder may be paused for so long with bytes on their way);
- reported: what was spent, for one window from the report, since it was spent before that.

The ledger's clock is PostgreSQL's; a holder counts the expiry on its own monotonic clock, from before it asked, so that
no two clocks are ever compared. The SQL beside `adapters/postgres/join_budget.py` states this very rule; one suite
(`tests/integration/test_join_budget.py`) compares the two on random histories.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

BUNCHING_S: Final = 1.0
"""Added to the platform's window: bytes that left a second apart may arrive together."""

PORTION_PERCENT: Final = 2
"""Largest lease, in percent of the budget: what a killed holder takes out of use for two minutes."""

LEASE_S: Final = 5.0
"""How long a holder may spend a lease. Longer than any honest queue to the socket, shorter than a window."""

UNREPORTED_S: Final = 120.0
"""Longest pause of a holder that the promise covers."""


class AccountClass(StrEnum):
    """What the platform grants an account."""

    ORDINARY = "ordinary"
    KNOWN = "known"
    VERIFIED = "verified"


class Kind(StrEnum):
    """What is counted; each has its own budget."""

    JOIN = "join"
    LOGIN = "login"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` events in `window_s` seconds, as the platform counts."""

    count: int
    window_s: float

    @property
    def portion(self) -> int:
        """The largest lease."""
        return max(1, self.count * PORTION_PERCENT // 100)

    @property
    def span_s(self) -> float:
        """The window that we keep to."""
        return self.window_s + BUNCHING_S


LIMITS: Final = {
    (AccountClass.ORDINARY, Kind.JOIN): Limit(20, 10.0),
    (AccountClass.ORDINARY, Kind.LOGIN): Limit(20, 10.0),
    (AccountClass.KNOWN, Kind.JOIN): Limit(20, 10.0),
    (AccountClass.KNOWN, Kind.LOGIN): Limit(20, 10.0),
    (AccountClass.VERIFIED, Kind.JOIN): Limit(2000, 10.0),
    (AccountClass.VERIFIED, Kind.LOGIN): Limit(200, 10.0),
}
"""The platform's published rates of 2021 and after. It changed them several times: they are defaults of settings."""


def published_limits(account_class: AccountClass) -> dict[Kind, Limit]:
    """Return the published limits of a class of accounts."""
    return {kind: LIMITS[account_class, kind] for kind in Kind}


@dataclass(frozen=True, slots=True)
class Lease:
    """A row of the ledger.

    Attributes:
        amount: Events granted.
        granted_at: The ledger's clock, seconds.
        reported_at: When the holder told what it spent; None before.
        spent: What it told.
    """

    amount: int
    granted_at: float
    reported_at: float | None = None
    spent: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """The ledger's answer: `amount` may be spent (0: none), or ask again after `retry_after_s`."""

    amount: int
    retry_after_s: float


def counts_until(lease: Lease, limit: Limit) -> float:
    """When a lease stops counting, if nothing more is heard of it."""
    if lease.reported_at is None:
        return lease.granted_at + UNREPORTED_S + limit.span_s
    return lease.reported_at + limit.span_s


def counted(leases: Iterable[Lease], limit: Limit, now: float) -> int:
    """How much of the budget is taken at `now`."""
    return sum(_weight(lease) for lease in leases if counts_until(lease, limit) > now)


def plan_lease(leases: Iterable[Lease], limit: Limit, wanted: int, now: float) -> Grant:
    """Decide on a request for `wanted` events: what is free, but no more than a portion.

    A refusal says when the next lease stops counting; a report may free some earlier, so it is the longest wait.
    """
    counting = [lease for lease in leases if counts_until(lease, limit) > now and _weight(lease)]
    free = limit.count - sum(map(_weight, counting))
    amount = max(0, min(wanted, free, limit.portion))
    if amount:
        return Grant(amount, 0.0)
    return Grant(0, min((counts_until(lease, limit) - now for lease in counting), default=0.0))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one holder takes of a budget.

    Attributes:
        used: Events spent within the window.
        leased: Events granted and not reported yet: they may be spent this very moment.
    """

    used: int = 0
    leased: int = 0


def usage_by_holder(leases: Iterable[tuple[str, Lease]], limit: Limit, now: float) -> dict[str, Usage]:
    """Return who takes what of the budget at `now`, by name; together it is what `counted` says."""
    usages: dict[str, Usage] = {}
    for holder, lease in leases:
        if counts_until(lease, limit) <= now or not _weight(lease):
            continue
        usage = usages.get(holder, Usage())
        if lease.reported_at is None:
            usages[holder] = replace(usage, leased=usage.leased + lease.amount)
        else:
            usages[holder] = replace(usage, used=usage.used + lease.spent)
    return dict(sorted(usages.items()))


def _weight(lease: Lease) -> int:
    return lease.amount if lease.reported_at is None else lease.spent


@dataclass(frozen=True, slots=True)
class Purse:
    """A holder's lease while it spends it; times are the holder's monotonic clock.

    Attributes:
        left: Events that may still be sent.
        expires_at: `LEASE_S` after the holder **asked**: the grant is younger than that, so this errs on the safe side.
        spent: Events sent; report them.
    """

    left: int = 0
    expires_at: float = 0.0
    spent: int = 0

    @classmethod
    def of_grant(cls, amount: int, asked_at: float) -> "Purse":
        """A purse for a grant that was asked for at `asked_at`."""
        return cls(amount, asked_at + LEASE_S)

    def take(self, wanted: int, now: float) -> tuple["Purse", int]:
        """Spend up to `wanted` events. Send them at once: the expiry is checked here and nowhere after."""
        taken = min(wanted, self.left) if now < self.expires_at else 0
        return replace(self, left=self.left - taken, spent=self.spent + taken), taken

    def is_over(self, now: float) -> bool:
        """Nothing can be spent any more: report, and ask for another lease."""
        return self.left == 0 or now >= self.expires_at


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What it takes to join so many channels with one account.

    Attributes:
        links: Connections.
        join_s: Seconds of JOINs at the platform's rate; what the platform would allow at best.
        login_s: Seconds of logins at the platform's rate.
        paced_s: Seconds until the last channel is asked for at our own pace, logins running beside JOINs.
    """

    links: int
    join_s: float
    login_s: float
    paced_s: float


def what_if(channels: int, limits: Mapping[Kind, Limit], channels_per_link: int = 90) -> WhatIf:
    """Arithmetic for capacity planning: 200,000 channels take 27.8 h at 20 JOINs in 10 s, 16.7 min at 2,000."""
    join, login = limits[Kind.JOIN], limits[Kind.LOGIN]
    links = math.ceil(channels / channels_per_link)
    paced = max(paced_s(channels, join), paced_s(links, login))
    return WhatIf(links, channels / join.count * join.window_s, links / login.count * login.window_s, paced)


def paced_s(events: int, limit: Limit) -> float:
    """Return the seconds until the last of `events` may be sent, when each span's budget is spent at its beginning."""
    return max(0, math.ceil(events / limit.count) - 1) * limit.span_s
