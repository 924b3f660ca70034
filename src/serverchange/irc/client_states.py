"""The two transition tables of a `ClientDialogue`: the link's, and each channel's on that link.

A pair that is absent changes nothing; when the server caused it, it is counted as out of place.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class LinkState(StrEnum):
    """How far a link has come."""

    IDLE = "idle"
    LOGGING_IN = "logging-in"
    READY = "ready"
    DRAINING = "draining"
    REFUSED = "refused"
    CLOSED = "closed"


class LinkInput(StrEnum):
    """What moves a link."""

    LOGIN = "login"
    WELCOME = "welcome"
    REFUSAL = "refusal"
    RECONNECT = "reconnect"
    EOF = "eof"


LINK_TRANSITIONS: Mapping[tuple[LinkState, LinkInput], LinkState] = MappingProxyType(
    {
        (LinkState.IDLE, LinkInput.LOGIN): LinkState.LOGGING_IN,
        (LinkState.IDLE, LinkInput.EOF): LinkState.CLOSED,
        (LinkState.LOGGING_IN, LinkInput.WELCOME): LinkState.READY,
        (LinkState.LOGGING_IN, LinkInput.REFUSAL): LinkState.REFUSED,
        (LinkState.LOGGING_IN, LinkInput.RECONNECT): LinkState.DRAINING,
        (LinkState.LOGGING_IN, LinkInput.EOF): LinkState.CLOSED,
        (LinkState.READY, LinkInput.RECONNECT): LinkState.DRAINING,
        (LinkState.READY, LinkInput.EOF): LinkState.CLOSED,
        (LinkState.DRAINING, LinkInput.EOF): LinkState.CLOSED,
        (LinkState.REFUSED, LinkInput.EOF): LinkState.CLOSED,
    }
)


class ChannelState(StrEnum):
    """How far this link has come with one channel."""

    ABSENT = "absent"
    ASKED = "asked"
    ECHOED = "echoed"
    LISTED = "listed"
    CONFIRMED = "confirmed"
    PARTING = "parting"
    REJOINING = "rejoining"


class ChannelInput(StrEnum):
    """What moves a channel on a link. The first two are ours, the rest is the server's."""

    JOIN = "join"
    PART = "part"
    JOIN_ECHO = "join-echo"
    LISTING = "listing"
    PART_ECHO = "part-echo"
    REFUSAL = "refusal"


_S, _I = ChannelState, ChannelInput
CHANNEL_TRANSITIONS: Mapping[tuple[ChannelState, ChannelInput], ChannelState] = MappingProxyType(
    {
        (_S.ABSENT, _I.JOIN): _S.ASKED,
        (_S.ASKED, _I.JOIN): _S.ASKED,
        (_S.ASKED, _I.PART): _S.PARTING,
        (_S.ASKED, _I.JOIN_ECHO): _S.ECHOED,
        (_S.ASKED, _I.LISTING): _S.LISTED,
        (_S.ASKED, _I.REFUSAL): _S.ABSENT,
        (_S.ECHOED, _I.JOIN): _S.ECHOED,
        (_S.ECHOED, _I.PART): _S.PARTING,
        (_S.ECHOED, _I.LISTING): _S.CONFIRMED,
        (_S.ECHOED, _I.PART_ECHO): _S.ABSENT,
        (_S.ECHOED, _I.REFUSAL): _S.ABSENT,
        (_S.LISTED, _I.JOIN): _S.LISTED,
        (_S.LISTED, _I.PART): _S.PARTING,
        (_S.LISTED, _I.JOIN_ECHO): _S.CONFIRMED,
        (_S.LISTED, _I.REFUSAL): _S.ABSENT,
        (_S.CONFIRMED, _I.PART): _S.PARTING,
        (_S.CONFIRMED, _I.PART_ECHO): _S.ABSENT,
        (_S.PARTING, _I.JOIN): _S.REJOINING,
        (_S.PARTING, _I.PART_ECHO): _S.ABSENT,
        # The answers to the first JOIN may still be on their way when we part and join again: nothing counts
        # before the echo of the PART, which stands between the two.
        (_S.REJOINING, _I.PART): _S.PARTING,
        (_S.REJOINING, _I.PART_ECHO): _S.ASKED,
        (_S.REJOINING, _I.REFUSAL): _S.ABSENT,
    }
)

ASKED_STATES = frozenset({_S.ASKED, _S.ECHOED, _S.LISTED, _S.REJOINING})
"""A JOIN was sent and is neither confirmed nor refused."""
