"""Our side of one IRC link, without I/O: bytes and commands in, typed events and bytes out.

The carrier calls `receive_data` with what it read, handles the events, and writes what `data_to_send` returns.
At the end of the stream it calls `receive_eof`. One dialogue lives as long as its connection; its successor is a
new object with a higher generation.

*Wanted* and *confirmed* are two different sets. A JOIN counts as confirmed only when the server has echoed it
**and** listed the room (366, or ROOMSTATE): the platform answers a JOIN of a missing channel with nothing at
all. The two tables of `client_states` are the whole of it: one for the link, one for each channel on it.
What they do not hold: which speaker may say what (each handler's first lines), and that channels are joined in
READY only.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable

from serverchange.events import CLUSTER_PATTERN, Channel, Cluster
from serverchange.irc.client_events import (
    ChatLine,
    ClientEvent,
    IgnoredReason,
    InquireAnswered,
    JoinConfirmed,
    JoinRefused,
    LineRejected,
    LinkClosed,
    LoggedIn,
    LoginRefused,
    Parted,
    PingReceived,
    PongReceived,
    Reconnecting,
    RejectedReason,
    ServerChangeHeard,
    StateLine,
    Unroutable,
)
from serverchange.irc.client_states import (
    ASKED_STATES,
    CHANNEL_TRANSITIONS,
    LINK_TRANSITIONS,
    ChannelInput,
    ChannelState,
    LinkInput,
    LinkState,
)
from serverchange.irc.line import (
    DialogueError,
    Line,
    LineBuffer,
    LineError,
    format_channel_lines,
    format_line,
    parse_line,
)

PLATFORM_CAPABILITIES = ("twitch.tv/tags", "twitch.tv/commands")
"""Tags carry message ids and times; commands brings ROOMSTATE, CLEARCHAT, RECONNECT and SERVERCHANGE. Membership is
left out: it brings a line for every viewer and no rule reads them."""

ANONYMOUS_PASS = "SCHMOOPIIE"  # noqa: S105  (not a secret: the word that tmi.js sends when nobody logs in)

MAX_PONGS_WAITING = 64
"""A server pings every few minutes. Of one that pings more often than we can write, the latest are answered."""

JOIN_REFUSALS = frozenset(
    {
        "msg_banned",
        "msg_channel_suspended",
        "msg_concurrent_channel_limit_reached",
        "msg_room_not_found",
        "msg_channel_blocked",
        "tos_ban",
    }
)
"""`msg-id` of the NOTICEs that answer a JOIN (the platform's published list)."""

_CLUSTER = re.compile(CLUSTER_PATTERN)
_CHAT_COMMANDS = frozenset({"PRIVMSG", "USERNOTICE", "CLEARCHAT", "CLEARMSG", "NOTICE", "HOSTTARGET"})


class ClientDialogue:
    """The client's side of one link.

    Args:
        generation: Number of this link, higher than that of any link before it; repeated in the events.

    Attributes:
        generation: As given.
        state: How far the link has come.
        nick: Our nick in lower case, once `login` was called.
        ignored: How many lines changed nothing, by reason.
    """

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.state = LinkState.IDLE
        self.nick = ""
        self.ignored: Counter[IgnoredReason] = Counter()
        self._buffer = LineBuffer()
        self._urgent: deque[bytes] = deque(maxlen=MAX_PONGS_WAITING)
        self._queued: list[bytes] = []
        self._capabilities: set[str] = set()
        self._channels: dict[Channel, ChannelState] = {}
        self._events: list[ClientEvent] = []
        self._handlers: dict[str, Callable[[Line], None]] = {
            "PING": self._on_ping,
            "PONG": self._on_pong,
            "JOIN": self._on_join,
            "PART": self._on_part,
            "366": self._on_names_end,
            "ROOMSTATE": self._on_state,
            "USERSTATE": self._on_state,
            "NOTICE": self._on_notice,
            "CAP": self._on_cap,
            "376": self._on_welcome,
            "422": self._on_welcome,
            "SERVERCHANGE": self._on_server_change,
            "CLUSTERCHANGE": self._on_server_change,
            "INQUIRE": self._on_inquire,
            "RECONNECT": self._on_reconnect,
        }

    # What we want.

    def login(self, nick: str, token: str | None, capabilities: Iterable[str] = PLATFORM_CAPABILITIES) -> None:
        """Queue CAP REQ, PASS and NICK. The token goes into the bytes and is kept nowhere else.

        Args:
            nick: The account's login, or `justinfan` and digits for a nameless reader.
            token: With or without ``oauth:``; None for a nameless reader.
            capabilities: Asked for in one line; empty for a plain IRC server.

        Raises:
            DialogueError: Called twice, or after the end.
            LineError: Nick or token cannot stand in a line. The message shows neither.
        """
        self._require(LinkState.IDLE)
        password = ANONYMOUS_PASS if token is None else "oauth:" + token.removeprefix("oauth:")
        wanted = " ".join(capabilities)
        lines = [format_line("CAP", "REQ", wanted, trailing=True)] if wanted else []
        lines += [format_line("PASS", password), format_line("NICK", nick)]
        self._queued.extend(lines)
        self.nick = nick.lower()
        self._move(LinkInput.LOGIN)

    def join(self, channels: Iterable[Channel]) -> None:
        """Queue JOINs, many channels to a line. A channel that is confirmed here already is not asked again.

        A confirm timeout starts when the bytes of `data_to_send` have been written, not here.

        Raises:
            DialogueError: The link is not ready (before the welcome a JOIN costs budget and may be lost; after
                RECONNECT it would die with the link).
        """
        self._require(LinkState.READY)
        asked = [channel for channel in channels if self._move_channel(channel, ChannelInput.JOIN)]
        self._queued.extend(format_channel_lines("JOIN", asked))

    def part(self, channels: Iterable[Channel]) -> None:
        """Queue PARTs for those of `channels` that this link has asked for.

        Raises:
            DialogueError: The link is not logged in or has ended.
        """
        self._require(LinkState.READY, LinkState.DRAINING)
        parted = [channel for channel in channels if self._move_channel(channel, ChannelInput.PART)]
        self._queued.extend(format_channel_lines("PART", parted))

    def ping(self, token: str) -> None:
        """Queue a PING; `PongReceived` with the same token is its answer.

        Raises:
            DialogueError: Before the login or after the end.
        """
        self._require(LinkState.LOGGING_IN, LinkState.READY, LinkState.DRAINING)
        self._queued.append(format_line("PING", token, trailing=True))

    def inquire(self, channel: Channel) -> None:
        """Ask the server where a channel lives (proposed in the platform forum's thread 4877, never shipped there).

        Raises:
            DialogueError: The link is not ready.
        """
        self._require(LinkState.READY)
        self._queued.append(format_line("INQUIRE", "#" + channel))

    def data_to_send(self) -> bytes:
        """Return and forget all bytes that wait to be written, PONGs first."""
        data = b"".join((*self._urgent, *self._queued))
        self._urgent.clear()
        self._queued.clear()
        return data

    # What we know.

    def channel_state(self, channel: Channel) -> ChannelState:
        """How far this link has come with `channel`."""
        return self._channels.get(channel, ChannelState.ABSENT)

    @property
    def confirmed(self) -> frozenset[Channel]:
        """Channels whose JOIN is confirmed on this link."""
        return frozenset(name for name, state in self._channels.items() if state is ChannelState.CONFIRMED)

    @property
    def asked(self) -> frozenset[Channel]:
        """Channels whose JOIN was queued and is neither confirmed nor refused."""
        return frozenset(name for name, state in self._channels.items() if state in ASKED_STATES)

    @property
    def channel_count(self) -> int:
        """How many channels this link carries in any state: what its capacity is measured by."""
        return len(self._channels)

    # What we hear.

    def receive_data(self, data: bytes) -> list[ClientEvent]:
        """Take bytes in and return what they say, in order. After the end it returns nothing, whatever comes."""
        if self.state is LinkState.CLOSED:
            return []
        refused = self._buffer.refused_lines
        for raw in self._buffer.receive_data(data):
            try:
                self._hear(parse_line(raw))
            except LineError as error:
                self._events.append(LineRejected(RejectedReason.MALFORMED, str(error)))
        for _ in range(self._buffer.refused_lines - refused):
            self._events.append(LineRejected(RejectedReason.TOO_LONG, "line: over the limit"))
        events, self._events = self._events, []
        return events

    def receive_eof(self) -> LinkClosed | None:
        """The connection has ended, by whomever. Returns what was lost with it, or None when told twice."""
        if self.state is LinkState.CLOSED:
            return None
        lost = LinkClosed(self.generation, self.confirmed, self.asked)
        self._channels.clear()
        self._urgent.clear()
        self._queued.clear()
        self._move(LinkInput.EOF)
        return lost

    def _hear(self, line: Line) -> None:
        if line.command == "PRIVMSG":  # Most lines by far: one comparison, before the table.
            self._on_chat(line)
        elif handler := self._handlers.get(line.command):
            handler(line)
        elif line.command in _CHAT_COMMANDS:
            self._on_chat(line)
        else:
            self._ignore(IgnoredReason.NO_INTEREST)

    def _on_chat(self, line: Line) -> None:
        channel = line.channel
        if channel is None or channel not in self._channels:
            self._events.append(Unroutable(line))
        else:
            self._events.append(ChatLine(channel, line))

    def _on_ping(self, line: Line) -> None:
        token = line.params[-1] if line.params else ""
        # The one refusal possible is a token of the very longest line; then the line is reported as rejected.
        self._urgent.append(format_line("PONG", token, trailing=True))
        self._events.append(PingReceived(token))

    def _on_pong(self, line: Line) -> None:
        self._events.append(PongReceived(line.params[-1] if line.params else ""))

    def _on_join(self, line: Line) -> None:
        if line.nick != self.nick:
            self._ignore(IgnoredReason.FOREIGN_ECHO)
        else:
            self._advance(line.channel, ChannelInput.JOIN_ECHO)

    def _on_part(self, line: Line) -> None:
        if line.nick != self.nick:
            self._ignore(IgnoredReason.FOREIGN_ECHO)
        else:
            self._advance(line.channel, ChannelInput.PART_ECHO)

    def _on_names_end(self, line: Line) -> None:
        # The platform sends 353 and 366 as `nick.tmi.twitch.tv`, plain servers under any name; never a user's mask.
        if line.source is not None and ("!" in line.source or "@" in line.source):
            self._ignore(IgnoredReason.NOT_THE_SERVER)
            return
        name = line.params[1] if len(line.params) > 1 else ""
        self._advance(Channel(name.removeprefix("#").lower()), ChannelInput.LISTING)

    def _on_state(self, line: Line) -> None:
        channel = line.channel
        if not line.is_from_server() or channel is None or channel not in self._channels:
            self._events.append(Unroutable(line))
            return
        if line.command == "ROOMSTATE" and self._is_asked(channel):
            self._advance(channel, ChannelInput.LISTING, line.tags.get("room-id"))
        self._events.append(StateLine(channel, line))

    def _on_notice(self, line: Line) -> None:
        reason = line.tags.get("msg-id", "")
        if line.channel is None:
            self._on_login_notice(line)
        elif reason in JOIN_REFUSALS and line.is_from_server() and self._is_asked(line.channel):
            self._advance(line.channel, ChannelInput.REFUSAL, reason)
        else:
            self._on_chat(line)

    def _on_login_notice(self, line: Line) -> None:
        if line.is_from_server() and self._move(LinkInput.REFUSAL):
            self._events.append(LoginRefused(self.generation, line.params[-1] if line.params else ""))
        else:
            self._ignore(IgnoredReason.NO_INTEREST)

    def _on_cap(self, line: Line) -> None:
        if line.is_from_server() and len(line.params) > 2 and line.params[1].upper() == "ACK":
            self._capabilities.update(line.params[-1].split())

    def _on_welcome(self, line: Line) -> None:
        if not self._move(LinkInput.WELCOME):
            self._ignore(IgnoredReason.OUT_OF_PLACE)
            return
        if line.params:
            self.nick = line.params[0].lower()
        self._events.append(LoggedIn(self.generation, self.nick, frozenset(self._capabilities)))

    def _on_server_change(self, line: Line) -> None:
        channel = line.channel
        if not line.is_from_server():
            self._ignore(IgnoredReason.NOT_THE_SERVER)
        elif channel is None or channel not in self._channels:
            self._ignore(IgnoredReason.NEVER_ASKED)
        else:
            named = line.params[1] if line.command == "CLUSTERCHANGE" and len(line.params) > 1 else ""
            target = Cluster(named) if _CLUSTER.fullmatch(named) else None
            self._events.append(ServerChangeHeard(self.generation, channel, target, self._is_asked(channel)))

    def _on_inquire(self, line: Line) -> None:
        if not line.is_from_server():
            self._ignore(IgnoredReason.NOT_THE_SERVER)
        elif line.channel is None or len(line.params) < 2 or not _CLUSTER.fullmatch(line.params[1]):
            self._events.append(Unroutable(line))
        else:
            server = line.params[2] if len(line.params) > 2 else None
            self._events.append(InquireAnswered(self.generation, line.channel, Cluster(line.params[1]), server))

    def _on_reconnect(self, line: Line) -> None:
        if not line.is_from_server():
            self._ignore(IgnoredReason.NOT_THE_SERVER)
        elif self._move(LinkInput.RECONNECT):
            self._events.append(Reconnecting(self.generation))
        else:
            self._ignore(IgnoredReason.OUT_OF_PLACE)

    def _is_asked(self, channel: Channel) -> bool:
        return self._channels.get(channel) in ASKED_STATES

    def _advance(self, channel: Channel | None, cause: ChannelInput, detail: str | None = None) -> None:
        """Let the server's word move a channel, and say what that means to those above."""
        before = ChannelState.ABSENT if channel is None else self.channel_state(channel)
        if channel is None or before is ChannelState.ABSENT:
            self._ignore(IgnoredReason.NEVER_ASKED)
            return
        if not self._move_channel(channel, cause):
            self._ignore(IgnoredReason.OUT_OF_PLACE)
            return
        after = self.channel_state(channel)
        if after is ChannelState.CONFIRMED:
            self._events.append(JoinConfirmed(self.generation, channel, detail))
        elif cause is ChannelInput.REFUSAL:
            self._events.append(JoinRefused(self.generation, channel, detail or ""))
        elif cause is ChannelInput.PART_ECHO and after is ChannelState.ABSENT:
            self._events.append(Parted(self.generation, channel, asked=before is ChannelState.PARTING))

    def _move(self, cause: LinkInput) -> bool:
        after = LINK_TRANSITIONS.get((self.state, cause))
        if after is None:
            return False
        self.state = after
        return True

    def _move_channel(self, channel: Channel, cause: ChannelInput) -> bool:
        after = CHANNEL_TRANSITIONS.get((self.channel_state(channel), cause))
        if after is None:
            return False
        if after is ChannelState.ABSENT:
            del self._channels[channel]
        else:
            self._channels[channel] = after
        return True

    def _require(self, *allowed: LinkState) -> None:
        if self.state not in allowed:
            raise DialogueError(f"not allowed while the link is {self.state}")

    def _ignore(self, reason: IgnoredReason) -> None:
        self.ignored[reason] += 1
