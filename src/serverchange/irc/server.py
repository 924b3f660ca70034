"""The server's side of one IRC link, without I/O: how the chat platform speaks. Policy is the carrier's.

The carrier calls `receive_data`, decides on the events, answers by the methods, and writes what `data_to_send`
returns. While `must_close` is true it writes what is left and closes. Manners that need no decision (CAP, PING,
unknown commands) are answered here, as the platform answers them (its documentation; pajbot/tmi-rate-limits).

Stock clients lean on exact texts: go-twitch-irc waits for ``:tmi.twitch.tv 001``, tmi.js for 376 and heeds no
prefix but ``tmi.twitch.tv``, TwitchIO for 353, and it sends CAP and JOIN without waiting for the welcome.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from serverchange.events import Channel, Cluster
from serverchange.irc.client_events import LineRejected, RejectedReason
from serverchange.irc.line import (
    MAX_BODY_BYTES,
    SERVER_PREFIX,
    DialogueError,
    Line,
    LineBuffer,
    LineError,
    format_line,
    parse_line,
)
from serverchange.irc.server_events import (
    InquireRequested,
    JoinRequested,
    LoginRequested,
    MessageSent,
    PartRequested,
    PongReceived,
    QuitRequested,
    ServerEvent,
)

TAGS, COMMANDS, MEMBERSHIP = "twitch.tv/tags", "twitch.tv/commands", "twitch.tv/membership"
CAPABILITIES = frozenset({TAGS, COMMANDS, MEMBERSHIP})

MAX_CLIENT_TAGS_BYTES = 4096
"""Tags that a client may send (IRCv3 message-tags: 4094 bytes of data)."""

MAX_HELD_EVENTS = 1000
"""Requests kept while a login is being decided (TwitchIO sends its JOINs at once); further ones are dropped."""

_ANONYMOUS = re.compile(r"justinfan[0-9]{1,15}")
_NICK = re.compile(r"[A-Za-z0-9_]{1,25}")
_CHANNEL = re.compile(r"#([A-Za-z0-9_]{1,25})")
_SILENT = frozenset({"MODE", "PASS", "USER"})

_WELCOME = (
    ("001", "Welcome, GLHF!"),
    ("002", "Your host is tmi.twitch.tv"),
    ("003", "This server is rather new"),
    ("004", "-"),
    ("375", "-"),
    ("372", "You are in a maze of twisty passages, all alike."),
    ("376", ">"),
)


class ServerState(StrEnum):
    """How far a client has come."""

    GREETING = "greeting"
    DECIDING = "deciding"
    WELCOMED = "welcomed"
    CLOSING = "closing"


class ServerInput(StrEnum):
    """What moves a client's link; the second and third are the carrier's."""

    NICK = "nick"
    ACCEPT = "accept"
    REFUSE = "refuse"
    QUIT = "quit"


SERVER_TRANSITIONS: Mapping[tuple[ServerState, ServerInput], ServerState] = MappingProxyType(
    {
        (ServerState.GREETING, ServerInput.NICK): ServerState.DECIDING,
        (ServerState.GREETING, ServerInput.QUIT): ServerState.CLOSING,
        (ServerState.DECIDING, ServerInput.ACCEPT): ServerState.WELCOMED,
        (ServerState.DECIDING, ServerInput.REFUSE): ServerState.CLOSING,
        (ServerState.DECIDING, ServerInput.NICK): ServerState.CLOSING,
        (ServerState.DECIDING, ServerInput.QUIT): ServerState.CLOSING,
        # A second NICK after the login disconnects; nobody may change names.
        (ServerState.WELCOMED, ServerInput.NICK): ServerState.CLOSING,
        (ServerState.WELCOMED, ServerInput.QUIT): ServerState.CLOSING,
    }
)
"""A pair that is absent is forbidden to the carrier and ignored from the client."""


class ServerDialogue:
    """The server's side of one client's link.

    Attributes:
        state: How far the client has come.
        nick: The client's nick, empty before NICK.
        anonymous: Whether that is a nameless reader.
        capabilities: Those that the client asked for and got; they decide which lines it may be sent.
        joined: Channels confirmed and not parted on this link.
        answers_pings: Set it to False to play a server that hangs: it reads, and says nothing when asked.
    """

    def __init__(self) -> None:
        self.state = ServerState.GREETING
        self.nick = ""
        self.anonymous = False
        self.capabilities: frozenset[str] = frozenset()
        self.joined: set[Channel] = set()
        self.answers_pings = True
        self._token: str | None = None
        self._buffer = LineBuffer(MAX_CLIENT_TAGS_BYTES + MAX_BODY_BYTES)
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._events: list[ServerEvent] = []
        self._held: list[ServerEvent] = []
        self._handlers: dict[str, Callable[[Line], None]] = {
            "CAP": self._on_cap,
            "PASS": self._on_pass,
            "NICK": self._on_nick,
            "JOIN": self._on_join,
            "PART": self._on_part,
            "PRIVMSG": self._on_privmsg,
            "PING": self._on_ping,
            "PONG": self._on_pong,
            "INQUIRE": self._on_inquire,
            "QUIT": self._on_quit,
        }

    @property
    def must_close(self) -> bool:
        """Whether the carrier must close after writing what waits."""
        return self.state is ServerState.CLOSING

    @property
    def tags(self) -> bool:
        """Whether the client asked for tags."""
        return TAGS in self.capabilities

    @property
    def unsent_bytes(self) -> int:
        """How much waits to be written, so that the carrier can drop a client that does not read."""
        return self._outgoing_bytes

    # Up: what the client asks.

    def receive_data(self, data: bytes) -> list[ServerEvent]:
        """Take bytes in and return what they ask for, in order.

        What comes before the login is decided is held back, and returned by `accept_login`. After the end
        nothing is returned.
        """
        refused = self._buffer.refused_lines
        for raw in self._buffer.receive_data(data):
            if self.must_close:
                break
            try:
                self._hear(parse_line(raw))
            except LineError as error:
                self._events.append(LineRejected(RejectedReason.MALFORMED, str(error)))
        if not self.must_close:
            for _ in range(self._buffer.refused_lines - refused):
                self._events.append(LineRejected(RejectedReason.TOO_LONG, "line: over the limit"))
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> bytes:
        """Return and forget all bytes that wait to be written."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        return data

    # Down: what the carrier decides.

    def accept_login(self, user_id: str = "0", display_name: str | None = None) -> list[ServerEvent]:
        """Welcome the client (001 to 376, and GLOBALUSERSTATE for an account).

        Returns:
            What the client asked for while the login was decided. Handle it like the result of `receive_data`.

        Raises:
            DialogueError: No login waits for a decision.
        """
        self._move(ServerInput.ACCEPT)
        for numeric, text in _WELCOME:
            self._send(format_line(numeric, self.nick, text, source=SERVER_PREFIX, trailing=True))
        if not self.anonymous and COMMANDS in self.capabilities:
            self._send_tagged("GLOBALUSERSTATE", tags=self._user_tags(display_name) | {"user-id": user_id})
        held, self._held = self._held, []
        return held

    def refuse_login(self, text: str = "Login authentication failed") -> None:
        """Say why and close.

        Raises:
            DialogueError: No login waits for a decision.
        """
        self._move(ServerInput.REFUSE)
        self._send(format_line("NOTICE", "*", text, source=SERVER_PREFIX, trailing=True))

    def confirm_join(self, channel: Channel, room_id: str, state: Mapping[str, str] | None = None) -> None:
        """Echo the JOIN, then 353 and 366, then ROOMSTATE and USERSTATE to those who asked for commands.

        Args:
            channel: As asked; confirming one that was not asked for is allowed (a late echo).
            room_id: The channel's lasting identity.
            state: Further ROOMSTATE tags; the platform's quiet defaults where not given.

        Raises:
            DialogueError: The client is not logged in.
        """
        self._require_welcomed()
        self.joined.add(channel)
        name, host = "#" + channel, f"{self.nick}.{SERVER_PREFIX}"
        self._send(format_line("JOIN", name, source=_mask(self.nick)))
        self._send(format_line("353", self.nick, "=", name, self.nick, source=host, trailing=True))
        self._send(format_line("366", self.nick, name, "End of /NAMES list", source=host, trailing=True))
        if COMMANDS not in self.capabilities:
            return
        if not self.anonymous:
            self.user_state(channel)
        quiet = {"emote-only": "0", "followers-only": "-1", "r9k": "0", "slow": "0", "subs-only": "0"}
        self._send_tagged("ROOMSTATE", name, tags=quiet | dict(state or {}) | {"room-id": room_id})

    def confirm_part(self, channel: Channel) -> None:
        """Echo the PART.

        Raises:
            DialogueError: The client is not logged in.
        """
        self._require_welcomed()
        self.joined.discard(channel)
        self._send(format_line("PART", "#" + channel, source=_mask(self.nick)))

    def show_member(self, command: str, channel: Channel, nick: str) -> None:
        """Tell of another user's JOIN or PART, to those who asked for membership."""
        if MEMBERSHIP in self.capabilities:
            self._send(format_line(command, "#" + channel, source=_mask(nick)))

    def user_state(self, channel: Channel, tags: Mapping[str, str] | None = None) -> None:
        """Send USERSTATE, as after a JOIN and after each PRIVMSG that went through."""
        if COMMANDS in self.capabilities:
            # TwitchIO 2 takes a USERSTATE without `subscriber` for an error.
            own = self._user_tags(None) | {"subscriber": "0"}
            self._send_tagged("USERSTATE", "#" + channel, tags=own | dict(tags or {}))

    def notice(self, channel: Channel | None, msg_id: str, text: str) -> None:
        """Send a NOTICE to a channel, or to the client itself (`None`)."""
        target = "*" if channel is None else "#" + channel
        self._send_tagged("NOTICE", target, text, tags={"msg-id": msg_id} if msg_id else {})

    def server_change(self, channel: Channel, target: Cluster | None = None) -> None:
        """Say that a channel is not here: SERVERCHANGE, or CLUSTERCHANGE when a target is named."""
        words = ("SERVERCHANGE", "#" + channel) if target is None else ("CLUSTERCHANGE", "#" + channel, target)
        self._send(format_line(*words, source=SERVER_PREFIX))

    def answer_inquire(self, channel: Channel, cluster: Cluster, server: str | None = None) -> None:
        """Name a channel's cluster, and one server of it."""
        params = ("#" + channel, cluster) if server is None else ("#" + channel, cluster, server)
        self._send(format_line("INQUIRE", *params, source=SERVER_PREFIX))

    def reconnect(self) -> None:
        """Tell the client that this link will end soon. Lines go on until the carrier closes."""
        self._send(format_line("RECONNECT", source=SERVER_PREFIX))

    def ping(self, token: str = SERVER_PREFIX) -> None:
        """Ask for a sign of life; `PongReceived` is the answer."""
        self._send(format_line("PING", token, trailing=True))

    def send_raw(self, data: bytes) -> None:
        """Queue whole lines with their line ends as they are: many links share one formatted chat line."""
        self._send(data)

    # The client's commands.

    def _hear(self, line: Line) -> None:
        handler = self._handlers.get(line.command)
        if handler is not None:
            handler(line)
        elif line.command not in _SILENT:
            params = (self.nick or "you", line.command, "Unknown command")
            self._send(format_line("421", *params, source=SERVER_PREFIX, trailing=True))

    def _on_cap(self, line: Line) -> None:
        verb = line.params[0].upper() if line.params else ""
        if verb == "LS":
            self._answer_cap("LS", " ".join(sorted(CAPABILITIES)))
        elif verb == "REQ":
            wanted = line.params[-1].split() if len(line.params) > 1 else []
            known = bool(wanted) and CAPABILITIES.issuperset(wanted)
            if known:
                self.capabilities |= frozenset(wanted)
            self._answer_cap("ACK" if known else "NAK", " ".join(wanted))

    def _answer_cap(self, verb: str, names: str) -> None:
        self._send(format_line("CAP", "*", verb, names, source=SERVER_PREFIX, trailing=True))

    def _on_pass(self, line: Line) -> None:
        if self.state is ServerState.GREETING and line.params:
            self._token = line.params[0].removeprefix("oauth:")

    def _on_nick(self, line: Line) -> None:
        if self.state is not ServerState.GREETING:
            self._end("second NICK")
            return
        nick = line.params[0] if line.params else ""
        if _NICK.fullmatch(nick) is None:
            self._send(format_line("NOTICE", "*", "Invalid NICK", source=SERVER_PREFIX, trailing=True))
            self._end("invalid NICK")
            return
        self.nick = nick.lower()
        self.anonymous = _ANONYMOUS.fullmatch(self.nick) is not None
        token, self._token = self._token, None
        self._move(ServerInput.NICK)
        self._events.append(LoginRequested(self.nick, token, self.anonymous))

    def _on_join(self, line: Line) -> None:
        if channels := _named_channels(line):
            self._ask(JoinRequested(channels))

    def _on_part(self, line: Line) -> None:
        if channels := _named_channels(line):
            self._ask(PartRequested(channels))

    def _on_privmsg(self, line: Line) -> None:
        channel = line.channel
        if channel is not None and len(line.params) > 1 and line.params[1]:
            self._ask(MessageSent(channel, line.params[1], line.tags))

    def _on_inquire(self, line: Line) -> None:
        if (channel := line.channel) is not None:
            self._ask(InquireRequested(channel))

    def _on_ping(self, line: Line) -> None:
        if not self.answers_pings:
            return
        if line.params:
            self._send(format_line("PONG", SERVER_PREFIX, line.params[0], source=SERVER_PREFIX, trailing=True))
        else:
            self._send(format_line("PONG", SERVER_PREFIX, trailing=True))

    def _on_pong(self, line: Line) -> None:
        self._events.append(PongReceived(line.params[-1] if line.params else ""))

    def _on_quit(self, _: Line) -> None:
        self._end("QUIT")

    def _ask(self, event: ServerEvent) -> None:
        """Pass a request up, or keep it while the login is undecided; before NICK it means nothing."""
        if self.state is ServerState.WELCOMED:
            self._events.append(event)
        elif self.state is ServerState.DECIDING and len(self._held) < MAX_HELD_EVENTS:
            self._held.append(event)

    def _end(self, reason: str) -> None:
        self._move(ServerInput.QUIT)
        self._events.append(QuitRequested(reason))

    # Writing.

    def _send(self, data: bytes) -> None:
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)

    def _send_tagged(self, command: str, *params: str, tags: Mapping[str, str]) -> None:
        shown = tags if self.tags else None
        trailing = len(params) > 1
        self._send(format_line(command, *params, tags=shown, source=SERVER_PREFIX, trailing=trailing, tag_equals=True))

    def _user_tags(self, display_name: str | None) -> dict[str, str]:
        shown = display_name or self.nick
        return {"badges": "", "color": "", "display-name": shown, "emote-sets": "0", "mod": "0", "user-type": ""}

    def _move(self, cause: ServerInput) -> None:
        after = SERVER_TRANSITIONS.get((self.state, cause))
        if after is None:
            raise DialogueError(f"{cause} is not allowed while the client is {self.state}")
        self.state = after

    def _require_welcomed(self) -> None:
        if self.state is not ServerState.WELCOMED:
            raise DialogueError(f"not allowed while the client is {self.state}")


def _named_channels(line: Line) -> tuple[Channel, ...]:
    """The channels of a JOIN or PART in order; names of bad syntax are passed over, as the platform does."""
    names: Iterable[str] = line.params[0].split(",") if line.params else ()
    matches = (_CHANNEL.fullmatch(name) for name in names)
    return tuple(Channel(match[1].lower()) for match in matches if match)


def _mask(nick: str) -> str:
    return f"{nick}!{nick}@{nick}.{SERVER_PREFIX}"
