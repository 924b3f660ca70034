"""What an account may do, counted as the platform counts it.

A window opens with its first event and ends a fixed time later, whatever comes in between (pajbot/tmi-rate-limits).
A budget belongs to an account, over all its links; anonymous logins of one IP address share one. Windows run in
real seconds, never in simulated ones.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final

from serverchange.events import Channel
from serverchange.simulator.settings import Rate, SimulatorSettings, Tier, TierRates

DUPLICATE_WINDOW_S: Final = 30.0
"""The same text by the same account in the same channel within this time is refused (platform documentation)."""


class Violation(StrEnum):
    """Which budget was exceeded."""

    JOIN = "join-budget"
    LOGIN = "login-budget"
    MESSAGE = "message-budget"
    MESSAGE_INTERVAL = "message-interval"
    CHANNEL_LIMIT = "channel-limit"


class FixedWindow:
    """Counts events in windows that open with their first event."""

    __slots__ = ("_opened_s", "_used")

    def __init__(self) -> None:
        self._opened_s: float | None = None
        self._used = 0

    def take(self, rate: Rate, now_s: float) -> bool:
        """Count one event; return whether it is within the rate. An event over it is counted, too."""
        if self._opened_s is None or now_s - self._opened_s >= rate.window_s:
            self._opened_s = now_s
            self._used = 0
        self._used += 1
        return self._used <= rate.count


class AccountBudget:
    """The budgets of one account, or of the anonymous logins of one address."""

    def __init__(self, name: str, tier: Tier, settings: SimulatorSettings) -> None:
        """Open the budgets with nothing used.

        Args:
            name: login, or `ip:` and the address.
            tier: which rates hold.
            settings: where the rates come from.
        """
        self.name = name
        self.tier = tier
        self._rates: TierRates = settings.rates(tier)
        self._channel_limit = settings.channel_limit
        self._mute_s = settings.mute_s
        self._interval_s = settings.channel_message_interval_s if tier is Tier.ORDINARY else 0.0
        self._joins = FixedWindow()
        self._logins = FixedWindow()
        self._messages = FixedWindow()
        self._muted_until_s = 0.0
        self._spoke_s: dict[Channel, tuple[float, str]] = {}
        self._links_in: dict[Channel, int] = {}

    @property
    def channels(self) -> Collection[Channel]:
        """The distinct channels that the account is joined to, over all its links."""
        return self._links_in.keys()

    def take_login(self, now_s: float) -> Violation | None:
        """Count a login try."""
        return None if self._logins.take(self._rates.login, now_s) else Violation.LOGIN

    def take_join(self, channel: Channel, now_s: float) -> Violation | None:
        """Count one channel of a JOIN line, and look at the channel limit."""
        if not self._joins.take(self._rates.join, now_s):
            return Violation.JOIN
        limit = self._channel_limit
        if limit is not None and channel not in self._links_in and len(self._links_in) >= limit:
            return Violation.CHANNEL_LIMIT
        return None

    def entered(self, channel: Channel) -> None:
        """One more link of the account is in `channel`."""
        self._links_in[channel] = self._links_in.get(channel, 0) + 1

    def left(self, channel: Channel) -> None:
        """One link less."""
        remaining = self._links_in[channel] - 1
        if remaining:
            self._links_in[channel] = remaining
        else:
            del self._links_in[channel]

    def is_muted(self, now_s: float) -> bool:
        """Whether nobody hears the account."""
        return now_s < self._muted_until_s

    def take_message(self, channel: Channel, now_s: float) -> Violation | None:
        """Count a message, dropped ones included; over the budget the account is muted for half an hour or more."""
        if not self._messages.take(self._rates.message, now_s):
            self._muted_until_s = now_s + self._mute_s
            return Violation.MESSAGE
        spoke = self._spoke_s.get(channel)
        if spoke is not None and now_s - spoke[0] < self._interval_s:
            return Violation.MESSAGE_INTERVAL
        return None

    def is_repetition(self, channel: Channel, text: str, now_s: float) -> bool:
        """Whether the account's last message in the channel was the same, less than 30 s ago; remembers this one."""
        spoke = self._spoke_s.get(channel)
        self._spoke_s[channel] = (now_s, text)
        return spoke is not None and spoke[1] == text and now_s - spoke[0] < DUPLICATE_WINDOW_S


class Budgets:
    """The budgets of everyone, made when first asked for."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._of: dict[str, AccountBudget] = {}
        self._tiers = {account.login: account.tier for account in settings.accounts}

    def of_account(self, login: str) -> AccountBudget:
        """Return the budgets of a login; one that has no account is counted as ordinary."""
        return self._get(login, self._tiers.get(login, Tier.ORDINARY))

    def of_anonymous(self, address: str) -> AccountBudget:
        """Return the budgets that the anonymous logins of one IP address share."""
        return self._get(f"ip:{address}", self._settings.anonymous_tier)

    def _get(self, name: str, tier: Tier) -> AccountBudget:
        budget = self._of.get(name)
        if budget is None:
            budget = self._of[name] = AccountBudget(name, tier, self._settings)
        return budget
