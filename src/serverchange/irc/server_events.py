"""What a `ServerDialogue` is asked by its client. Whoever carries it decides and answers with its methods."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from serverchange.events import Channel
from serverchange.irc.client_events import LineRejected


@dataclass(frozen=True, slots=True)
class LoginRequested:
    """PASS and NICK are here. Answer with `accept_login` or `refuse_login`.

    Attributes:
        nick: Lower case, of right syntax.
        token: What PASS said without ``oauth:``, or None when no PASS came. Never log it.
        anonymous: The nick is `justinfan` and digits; the token means nothing then.
    """

    nick: str
    token: str | None = field(repr=False)
    anonymous: bool


@dataclass(frozen=True, slots=True)
class JoinRequested:
    """JOIN of one line, in its order, repeats included. Answer each with `confirm_join`, a notice, or silence."""

    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class PartRequested:
    """PART of one line. Answer with `confirm_part` for those that were joined."""

    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class MessageSent:
    """PRIVMSG. The text is as it came: its length and its rate are for the carrier to judge."""

    channel: Channel
    text: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InquireRequested:
    """INQUIRE. Answer with `answer_inquire`, or not at all."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The client's answer to our PING."""

    token: str


@dataclass(frozen=True, slots=True)
class QuitRequested:
    """The link must end now: write what `data_to_send` holds, then close. `reason` says why, for the ledger."""

    reason: str


ServerEvent: TypeAlias = (
    LoginRequested
    | JoinRequested
    | PartRequested
    | MessageSent
    | InquireRequested
    | PongReceived
    | QuitRequested
    | LineRejected
)
