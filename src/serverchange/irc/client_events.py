"""What a `ClientDialogue` hears, as typed facts. No event decides anything; `tracker.handover` and the links do.

Every fact about membership carries the link's `generation`, so that an echo read from a link which has died in
the meantime cannot confirm its successor (Lucky 1395, BCUK-Bot-4 569).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from serverchange.events import Channel, Cluster
from serverchange.irc.line import Line


class IgnoredReason(StrEnum):
    """Why a line changed nothing; the bounded label under which it is counted."""

    FOREIGN_ECHO = "foreign-echo"
    """JOIN or PART of another nick (the membership capability)."""
    NEVER_ASKED = "never-asked"
    """About a channel that this link did not ask for."""
    NOT_THE_SERVER = "not-the-server"
    """A user's prefix on a line that only the server may say."""
    OUT_OF_PLACE = "out-of-place"
    """Right speaker, wrong moment, for example a second confirmation."""
    NO_INTEREST = "no-interest"
    """A command that no rule needs: numerics, MODE, WHISPER."""


class RejectedReason(StrEnum):
    """Why bytes from the server were no line."""

    TOO_LONG = "too-long"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The server's welcome is complete (376 or 422); JOIN may follow.

    Attributes:
        nick: The nick the server gave us, lower case.
        capabilities: Those that the server acknowledged.
    """

    generation: int
    nick: str
    capabilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class LoginRefused:
    """The server refused PASS or NICK and will close. `reason` is its text."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class JoinConfirmed:
    """Our own JOIN echo and one of 366 or ROOMSTATE have come on this very link.

    Attributes:
        room_id: The channel's lasting identity, when ROOMSTATE had come by then.
    """

    generation: int
    channel: Channel
    room_id: str | None


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """The server answered an open JOIN with a NOTICE. `reason` is its `msg-id`."""

    generation: int
    channel: Channel
    reason: str


@dataclass(frozen=True, slots=True)
class Parted:
    """Our own PART echo. `asked` is false when the server put us out of the channel by itself."""

    generation: int
    channel: Channel
    asked: bool


@dataclass(frozen=True, slots=True)
class ServerChangeHeard:
    """The server says that a channel of this link is not here.

    Attributes:
        target: The cluster that CLUSTERCHANGE named, of right syntax; the consumer decides whether it knows it.
        joining: Whether it came while our JOIN was unanswered, so that it is the answer.
    """

    generation: int
    channel: Channel
    target: Cluster | None
    joining: bool


@dataclass(frozen=True, slots=True)
class InquireAnswered:
    """The server's answer to INQUIRE: the cluster, and one server of it if it named one."""

    generation: int
    channel: Channel
    cluster: Cluster
    server: str | None


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The server will close this link soon, some 5 to 60 s from now; it is still served until then."""

    generation: int


@dataclass(frozen=True, slots=True)
class ChatLine:
    """A line for the readers of a channel: forward `line.raw`."""

    channel: Channel
    line: Line

    @property
    def raw(self) -> bytes:
        """The bytes as they came, without line end."""
        return self.line.raw


@dataclass(frozen=True, slots=True)
class StateLine:
    """ROOMSTATE or USERSTATE: not an event but a state; forward it when it differs from the last."""

    channel: Channel
    line: Line

    @property
    def raw(self) -> bytes:
        """The bytes as they came, without line end."""
        return self.line.raw


@dataclass(frozen=True, slots=True)
class PingReceived:
    """The server's PING; its PONG is queued already, before all else."""

    token: str


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The answer to one of our PINGs."""

    token: str


@dataclass(frozen=True, slots=True)
class LineRejected:
    """Bytes that are no line; the link lives on."""

    reason: RejectedReason
    what: str


@dataclass(frozen=True, slots=True)
class Unroutable:
    """A channel's line that names no channel of this link, such as ``CLEARCHAT ogprodigy``; counted, not forwarded."""

    line: Line


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The link is over, and these channels with it: those confirmed and those still asked for.

    An event that names the lost channels is what twitch-irc-rs 206 asks for.
    """

    generation: int
    confirmed: frozenset[Channel]
    asked: frozenset[Channel]


ClientEvent: TypeAlias = (
    LoggedIn
    | LoginRefused
    | JoinConfirmed
    | JoinRefused
    | Parted
    | ServerChangeHeard
    | InquireAnswered
    | Reconnecting
    | ChatLine
    | StateLine
    | PingReceived
    | PongReceived
    | LineRejected
    | Unroutable
    | LinkClosed
)
