"""What can be set about the simulated platform, in one frozen model.

Every rate is a setting because the platform changed each of them several times. Two kinds of time: the migration
script, streaming habits and the API's lag follow `time_scale`; rate windows, PING, timeouts and the delay after
RECONNECT are real seconds, always.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from serverchange.events import AccountField, Cluster, ClusterField

DAY_S: Final = 86_400.0
"""Simulated seconds in a day."""

SCRIPT_DAYS: Final = 14.0
"""The default script's length; its last batches may wait a few hours for streams to end."""

CLUSTERS: Final = (Cluster("main"), Cluster("event"), Cluster("aws"), Cluster("group"))
"""The clusters of 2016."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]


class WrongCluster(StrEnum):
    """What the platform does when a channel is joined, or stays joined, where it does not live."""

    SILENT = "silent"
    """The JOIN is confirmed and nothing ever comes; a move is announced to nobody (seen with `event`)."""
    SERVERCHANGE = "serverchange"
    """The line `SERVERCHANGE #channel` instead of a confirmation, and to everyone joined at a move."""
    CLUSTERCHANGE = "clusterchange"
    """The same with the target: `CLUSTERCHANGE #channel aws`."""


class Tier(StrEnum):
    """How much an account may do; the anonymous login of one address has a tier, too."""

    ORDINARY = "ordinary"
    KNOWN = "known"
    VERIFIED = "verified"


class ExcessJoin(StrEnum):
    """What follows a JOIN over the budget."""

    IGNORE = "ignore"
    DISCONNECT = "disconnect"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Rate(_Settings):
    """At most `count` events in a window that opens with its first event."""

    count: Annotated[int, Field(ge=1)]
    """Events allowed in one window."""
    window_s: Seconds
    """Length of the window in real seconds."""


class TierRates(_Settings):
    """The budgets of one tier (platform documentation; pajbot/tmi-rate-limits)."""

    join: Rate
    """Channels named in JOIN lines."""
    login: Rate
    """PASS and NICK, counted when they arrive, successful or not."""
    message: Rate
    """PRIVMSG lines, dropped ones included."""


ORDINARY: Final = TierRates(
    join=Rate(count=20, window_s=10), login=Rate(count=20, window_s=10), message=Rate(count=20, window_s=30)
)
KNOWN: Final = TierRates(
    join=Rate(count=20, window_s=10), login=Rate(count=20, window_s=10), message=Rate(count=50, window_s=30)
)
VERIFIED: Final = TierRates(
    join=Rate(count=2000, window_s=10), login=Rate(count=200, window_s=10), message=Rate(count=7500, window_s=30)
)


class Account(_Settings):
    """A login that may log in with its token."""

    login: AccountField
    """Lower case, as in NICK."""
    token: SecretStr
    """What stands after `oauth:` in PASS."""
    tier: Tier = Tier.VERIFIED
    """Which budgets it has."""


DEMO_ACCOUNTS: Final = (
    Account(login="bot_one", token=SecretStr("simulated-token-of-bot-one")),
    Account(login="bot_two", token=SecretStr("simulated-token-of-bot-two")),
)
"""The demo's fleet: two verified accounts. Their tokens open nothing but this simulator."""


class SimulatorSettings(_Settings):
    """Everything that can be set; the defaults are the demo's."""

    host: str = "127.0.0.1"
    """Address to bind; loopback, because whoever reaches the control interface owns the platform."""
    api_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of the platform's API; 0 takes a free one."""
    control_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of the control interface; 0 takes a free one."""
    data_dir: Path | None = None
    """Where the CA's certificate is written; a temporary folder by default."""

    seed: int = 1
    """Every decision of the script, the habits, the lags and the losses follows from it."""
    channels: Annotated[int, Field(ge=1, le=500_000)] = 500
    """Number of channels, group channels included."""
    names: tuple[AccountField, ...] = ()
    """Logins for the first channels, the most popular first; the rest is made up."""
    event_channels: Annotated[int, Field(ge=0)] | None = None
    """How many of the most popular channels live on `event` at first; None: one in a hundred, at least one of 8."""
    group_channels: Annotated[int, Field(ge=0)] | None = None
    """How many of the last channels are group rooms; None: as above."""
    clusters: Annotated[tuple[ClusterField, ...], Field(min_length=1, max_length=32)] = CLUSTERS
    """Clusters that have servers; the default script needs these four."""

    time_scale: Annotated[float, Field(gt=0.0, le=1_000_000.0)] = 20_160.0
    """Simulated seconds a real second; at 20,160 two weeks take 60 s."""
    script: bool = True
    """Whether the migration script is there at all."""
    script_days: Annotated[float, Field(gt=0.0, le=1_000.0)] = SCRIPT_DAYS
    """Simulated days that the script's two weeks take; habits keep their pace."""
    script_starts_paused: bool = False
    """Wait for `POST /control/script` before the script's time begins."""
    batch_channels: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Channels moved at once; small, so that the JOIN limits of those who follow do not bite."""
    habits: bool = True
    """Whether channels go live and offline by their habits; without, only the control interface says who is live."""

    wrong_cluster: WrongCluster = WrongCluster.SERVERCHANGE
    """How a wrong cluster shows."""
    notice_loss: Probability = 0.0
    """Share of SERVERCHANGE and CLUSTERCHANGE lines that never arrive (it was unreliable in 2016)."""
    api_lag_mean_minutes: Annotated[float, Field(ge=0.0)] = 10.0
    """Mean time for which an API replica shows the old cluster after a move; simulated time."""
    api_lag_max_minutes: Annotated[float, Field(ge=0.0)] = 60.0
    """No replica lags longer; simulated time."""
    api_replicas: Annotated[int, Field(ge=1, le=16)] = 2
    """Each lags by itself and each request reaches any of them, so answers flip for a while after a move."""
    api_servers_transport: Annotated[str, Field(pattern="^(plain|tls)$")] = "plain"
    """Which of a cluster's ports the API's `servers` name; the WebSocket list names the plain WebSocket port."""

    lines_per_second: Annotated[float, Field(ge=0.0, le=100_000.0)] = 200.0
    """Numbered lines a real second, in all channels together, weighted by popularity."""
    chat_in_offline_channels: bool = False
    """Whether channels have chat while they do not stream."""
    chat_tick_s: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    """How often the due lines are sent; one write a link and tick keeps thousands of lines a second cheap."""
    clearchat_share: Probability = 0.002
    """Share of numbered lines followed by a CLEARCHAT, which carries no id."""

    accounts: tuple[Account, ...] = DEMO_ACCOUNTS
    """Who may log in, beside anonymous readers."""
    ordinary: TierRates = ORDINARY
    """Budgets of ordinary accounts."""
    known: TierRates = KNOWN
    """Budgets of known bots."""
    verified: TierRates = VERIFIED
    """Budgets of verified bots."""
    anonymous_tier: Tier = Tier.VERIFIED
    """Budget of all anonymous logins of one IP address together."""
    channel_limit: Annotated[int, Field(ge=1)] | None = None
    """Distinct channels of an account over all its links (100 since 2024); None switches it off."""
    excess_join: ExcessJoin = ExcessJoin.IGNORE
    """A JOIN over the budget gets no answer, or ends the link."""
    mute_s: Seconds = 1800.0
    """How long an account over its message budget is heard by nobody (30-60 min)."""
    channel_message_interval_s: Annotated[float, Field(ge=0.0)] = 1.0
    """Shortest time between two messages of an ordinary account in one channel."""

    ping_interval_s: Seconds = 300.0
    """How often the server sends PING."""
    pong_timeout_s: Seconds = 10.0
    """How long it waits for PONG before it closes."""
    login_timeout_s: Seconds = 60.0
    """How long a connection may stay without a finished login."""
    reconnect_min_s: Seconds = 5.0
    """Earliest close after RECONNECT."""
    reconnect_max_s: Seconds = 60.0
    """Latest close after RECONNECT."""
    send_buffer_bytes_max: Annotated[int, Field(ge=65_536)] = 16 * 1024 * 1024
    """Unsent bytes at which the server gives up on a slow reader (an IRC server's SendQ)."""
    ledger_lines_max: Annotated[int, Field(ge=1)] = 5_000_000
    """Numbered lines that the ledger can hold (about 40 bytes each); at the limit chat stops, loudly."""

    def rates(self, tier: Tier) -> TierRates:
        """Return the budgets of `tier`."""
        return {Tier.ORDINARY: self.ordinary, Tier.KNOWN: self.known, Tier.VERIFIED: self.verified}[tier]
