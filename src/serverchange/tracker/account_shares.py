"""Which account joins which channel, where a fleet has several: a channel keeps its account for as long as it can.

The platform lets an account be in so many channels at once (100 since 2024, verified bots included), whatever the
number of links and processes; a channel that is handed over counts once while the same account joins it on both sides.
So the account belongs to the channel and not to the process that reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from serverchange.events import Channel


def share_out(
    asking: Iterable[tuple[Channel, str | None]],
    *,
    known: Mapping[Channel, str],
    counts: Mapping[str, int],
    accounts: Collection[str],
    limit: int,
) -> dict[Channel, str]:
    """Return an account for each channel that there is room for, in the order in which they ask.

    A channel keeps the account that it has; a new one goes to the account with the fewest channels, of several the
    first by name.

    Args:
        asking: channels, each with the account that it must be joined by, None where any will do.
        known: the account of those that have one.
        counts: account → how many channels it has, those of `known` included.
        accounts: who can join.
        limit: channels of one account at most; 0: any number.
    """
    used = {account: counts.get(account, 0) for account in accounts}
    shares: dict[Channel, str] = {}
    for channel, must in asking:
        before = shares.get(channel, known.get(channel))
        if before in used and must in (None, before):
            shares[channel] = before
            continue
        chosen = min(used, key=lambda account: (used[account], account), default=None) if must is None else must
        if chosen is None or chosen not in used or (limit and used[chosen] >= limit):
            continue
        used[chosen] += 1
        if before in used:
            used[before] -= 1
        shares[channel] = chosen
    return shares
