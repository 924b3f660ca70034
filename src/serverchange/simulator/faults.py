"""Faults on request: which there are, and which of them strikes next.

A fault is a value with a probability or a number of times; nothing fails unless somebody asked for it. Sources: what
users of the platform reported about its lookups, its links and its notices.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serverchange.events import Channel, ChannelField, Cluster, ClusterField
from serverchange.simulator.settings import Probability


class ApiFaultKind(StrEnum):
    """How an answer of the platform's API goes wrong."""

    NOT_FOUND = "404"
    TOO_MANY = "429"
    """With `Retry-After: retry_after_s`."""
    SERVER_ERROR = "500"
    HTML = "html"
    """200 and an HTML page."""
    ERROR_BODY = "error-body"
    """200 and `{"error": …}`."""
    TRUNCATED = "truncated"
    """200 and half of the JSON."""
    EMPTY_LIST = "empty-list"
    """The true cluster, and not one server."""
    WRONG_TYPES = "wrong-types"
    """Right names, wrong types."""
    SLOW = "slow"
    """The true answer, `delay_s` late."""
    DRIP = "drip"
    """The true answer, a few bytes at a time, over `delay_s`."""
    CUT = "cut"
    """The connection ends in the middle of the body."""
    BAD_CLUSTER = "bad-cluster"
    """A cluster name that is none (`"main "`)."""
    GZIP_BOMB = "gzip-bomb"
    """A small compressed body that unpacks to 64 MiB."""
    REDIRECT = "redirect"
    """302 to a private address."""


class _Fault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    times: Annotated[int, Field(ge=1)] | None = None
    """How often it strikes before it is gone; None: for as long as it is set."""
    probability: Probability = 1.0
    """How likely it strikes where it could."""


class ApiFault(_Fault):
    """A fault of the platform's API."""

    kind: ApiFaultKind
    """What goes wrong."""
    route: Annotated[str, Field(pattern=r"^(\*|servers|chat_properties|streams|validate)$")] = "*"
    """Which route; `*` is all."""
    channel: ChannelField | None = None
    """Only for this channel."""
    retry_after_s: Annotated[int, Field(ge=0)] = 1
    """For 429."""
    delay_s: Annotated[float, Field(ge=0.0, le=600.0)] = 5.0
    """For slow and drip; real seconds."""


class JoinSwallowed(_Fault):
    """A JOIN that gets no answer and has no effect; fields that are None match everything."""

    channel: ChannelField | None = None
    """Which channel."""
    link: int | None = None
    """Which link, by its number."""
    cluster: ClusterField | None = None
    """Links of which cluster."""
    account: str | None = None
    """Links of which login."""


class ClosedBeforeWelcome(_Fault):
    """A server that closes after PASS and NICK, before 376."""

    cluster: ClusterField | None = None
    """Servers of which cluster; None: all."""


class PingsIgnored(BaseModel):
    """Servers that answer no PING, like one that hangs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cluster: ClusterField | None = None
    """Servers of which cluster; None: all."""


class Faults(BaseModel):
    """All faults that are on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    api: tuple[ApiFault, ...] = ()
    """The first that matches strikes."""
    joins_swallowed: tuple[JoinSwallowed, ...] = ()
    """JOINs without any answer."""
    closed_before_welcome: tuple[ClosedBeforeWelcome, ...] = ()
    """Logins that end in a closed connection."""
    pings_ignored: tuple[PingsIgnored, ...] = ()
    """PINGs without PONG."""
    notice_loss: Probability | None = None
    """Instead of the setting of that name."""


class FaultPlan:
    """The faults that are on, and how often each has struck."""

    def __init__(self, random: Callable[[], float]) -> None:
        """Start without faults; `random` gives numbers in [0, 1)."""
        self._random = random
        self._struck: dict[int, int] = {}
        self._faults = Faults()

    @property
    def faults(self) -> Faults:
        """What is on."""
        return self._faults

    def replace(self, faults: Faults) -> None:
        """Switch to other faults; all counts begin anew."""
        self._faults = faults
        self._struck = {}

    def api(self, route: str, channel: str | None) -> ApiFault | None:
        """Return the fault that strikes this request, if any."""
        for fault in self._faults.api:
            if fault.route in {"*", route} and fault.channel in {None, channel} and self._strikes(fault):
                return fault
        return None

    def swallows_join(self, channel: Channel, link: int, cluster: Cluster, account: str | None) -> bool:
        """Whether this JOIN gets no answer."""
        return any(
            fault.channel in {None, channel}
            and fault.link in {None, link}
            and fault.cluster in {None, cluster}
            and fault.account in {None, account}
            and self._strikes(fault)
            for fault in self._faults.joins_swallowed
        )

    def closes_before_welcome(self, cluster: Cluster) -> bool:
        """Whether this login ends before 376."""
        return any(
            fault.cluster in {None, cluster} and self._strikes(fault) for fault in self._faults.closed_before_welcome
        )

    def ignores_pings(self, cluster: Cluster) -> bool:
        """Whether the servers of `cluster` answer no PING."""
        return any(fault.cluster in {None, cluster} for fault in self._faults.pings_ignored)

    def _strikes(self, fault: _Fault) -> bool:
        struck = self._struck.get(id(fault), 0)
        if fault.times is not None and struck >= fault.times:
            return False
        if fault.probability < 1.0 and self._random() >= fault.probability:
            return False
        self._struck[id(fault)] = struck + 1
        return True
