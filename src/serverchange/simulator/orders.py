"""The bodies of the control interface's requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serverchange.events import ChannelField, ClusterField


class _OrderModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ScriptOrder(_OrderModel):
    """`POST /control/script`."""

    action: Literal["start", "pause"]
    """Run the migration script or hold it."""


class TimeOrder(_OrderModel):
    """`POST /control/time`."""

    scale: Annotated[float, Field(gt=0.0, le=1_000_000.0)]
    """Simulated seconds a real second."""


class MoveOrder(_OrderModel):
    """`POST /control/move`."""

    channel: ChannelField | None = None
    """Which channel; None: all that live elsewhere, group channels left out."""
    cluster: ClusterField
    """Where to."""
    force: bool = False
    """Even while it is live."""


class LiveOrder(_OrderModel):
    """`POST /control/live`."""

    channel: ChannelField
    """Which channel."""
    live: bool = True
    """Streaming or not."""


class SuspendOrder(_OrderModel):
    """`POST /control/suspend`."""

    channel: ChannelField
    """Which channel."""
    suspended: bool = True
    """Whether JOINs are answered with `msg_channel_suspended`."""


class ChatOrder(_OrderModel):
    """`POST /control/chat`."""

    channel: ChannelField
    """Where."""
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How many lines."""
    text: Annotated[str, Field(max_length=450, pattern=r"^[^\r\n\x00]*$")] | None = None
    """What stands after the number and the channel; small talk by default."""


class ChatRateOrder(_OrderModel):
    """`POST /control/chat-rate`."""

    lines_per_second: Annotated[float, Field(ge=0.0, le=100_000.0)]
    """Numbered lines a real second in all channels together."""


class ClearChatOrder(_OrderModel):
    """`POST /control/clearchat`."""

    channel: ChannelField
    """Where."""
    user: ChannelField | None = None
    """Whose lines; None: everyone's."""


class LinksOrder(_OrderModel):
    """Which links: those that match all that is given; with nothing given, all."""

    link: int | None = None
    """One link, by its number."""
    cluster: ClusterField | None = None
    """The links to a cluster."""
    account: str | None = None
    """The links of a login."""


class RawOrder(LinksOrder):
    """`POST /control/raw`: bytes to links, as they are."""

    line: str | None = None
    """Text; lone surrogates leave as the bytes that UTF-8 forbids."""
    line_base64: str = ""
    """Any bytes, if there is no `line`."""
    channel: ChannelField | None = None
    """Only links that are joined to this channel."""


class ReconnectOrder(LinksOrder):
    """`POST /control/reconnect`."""

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the chosen links, the oldest first."""
    waves: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Into how many waves they are divided."""
    wave_interval_s: Annotated[float, Field(ge=0.0, le=600.0)] = 0.0
    """Real seconds between waves."""
    close_after_s: Annotated[float, Field(ge=0.0, le=600.0)] | None = None
    """Real seconds until each closes; random within the settings' bounds by default."""


class DropOrder(LinksOrder):
    """`POST /control/drop`."""

    abort: bool = True
    """Cut (what waits is lost) instead of closing."""


class ServersOrder(_OrderModel):
    """`POST /control/servers`."""

    cluster: ClusterField
    """Whose servers."""
    renew: bool = False
    """Open new ports and close the old ones; links stay."""
    shut: bool = False
    """Close all its ports while its lists still name them."""
    dead: Annotated[int, Field(ge=0, le=16)] | None = None
    """So many servers that refuse connections stand first in its lists."""


class ApiLagOrder(_OrderModel):
    """`POST /control/api-lag`."""

    mean_minutes: Annotated[float, Field(ge=0.0)]
    """Mean lag of a replica, simulated minutes."""
    max_minutes: Annotated[float, Field(ge=0.0)]
    """No lag is longer."""
