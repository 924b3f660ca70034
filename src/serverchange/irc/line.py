"""The one IRC codec: bytes to lines and lines to bytes.

Nothing else in the product builds or splits an IRC line, so the rules against injected line ends stand in one
place (`format_line`) and every reader agrees on what a line says (`parse_line`). Rules: RFC 1459 section 2.3
with runs of spaces accepted, IRCv3 message tags, and the platform's published limits (a line to the server is
at most 4096 bytes with CRLF, the tags of a received line at most 8191 bytes).

A line is *forwarded* as the bytes that came (`Line.raw`), never as a line written anew: a writer cannot know
whether a one-word trailing had its colon (museun/twitch_message 43).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from serverchange.events import Channel

SERVER_PREFIX = "tmi.twitch.tv"
"""The source of the platform's own lines; clients such as tmi.js heed no other."""

MAX_TAGS_BYTES = 8191
"""Tags with the leading `@` and the space that ends them (IRCv3 message-tags, "Size limit")."""

MAX_BODY_BYTES = 4096
"""A line without its tags, with CRLF: what the platform takes from a client."""

MAX_RECEIVED_BYTES = MAX_TAGS_BYTES + MAX_BODY_BYTES
"""The longest line that a peer may send, line end included; beyond it the line is refused unread."""

PACKED_LINE_BYTES = 510
"""A line that names many channels is kept this short, CRLF not counted: the RFC's limit, which every server takes
(go-twitch-irc packs its JOINs as tightly)."""

_TAG_DECODED = {":": ";", "s": " ", "\\": "\\", "r": "\r", "n": "\n"}
_TAG_ENCODED = str.maketrans({";": "\\:", " ": "\\s", "\\": "\\\\", "\r": "\\r", "\n": "\\n"})
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_COMMAND = re.compile(r"[A-Za-z]+|[0-9]{3}")
_TAG_KEY = re.compile(r"\+?(?:[A-Za-z0-9.\-]+/)?[A-Za-z0-9\-]+")
_CHANNEL = re.compile(r"#([A-Za-z0-9_]{1,25})")
_NAME_SHOWN_CHARS = 40


class LineError(ValueError):
    """Bytes or words that are no IRC line.

    Attributes:
        what: The rule that was broken, in words.
        where: Which part broke it (`tags`, `source`, `command`, `params`, `line`).
    """

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{where}: {what}")
        self.what = what
        self.where = where


class DialogueError(RuntimeError):
    """We broke the protocol, not the peer: a command that the dialogue's state forbids. A bug in the caller."""


class Tags(Mapping[str, str]):
    """The tags of one line, decoded when first asked for.

    A shard forwards most lines without reading more than one tag of some of them, so decoding fifteen tags
    of each would be the dearest part of parsing. The text is kept instead and decoded once.
    """

    __slots__ = ("_decoded", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoded: dict[str, str] | None = None

    def _decode(self) -> dict[str, str]:
        if self._decoded is None:
            self._decoded = _decode_tags(self._text) if self._text else {}
        return self._decoded

    def __getitem__(self, key: str) -> str:
        return self._decode()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decode())

    def __len__(self) -> int:
        return len(self._decode())

    def __repr__(self) -> str:
        return f"Tags({self._decode()!r})"


_NO_TAGS = Tags("")


@dataclass(frozen=True, slots=True)
class Line:
    """One IRC line. Two lines are equal when their bytes are.

    Attributes:
        tags: Decoded tags; a key without value is there with the value ``""``; the last of repeated keys wins.
        source: What stands after the leading colon, or None.
        command: Upper-case word or three digits.
        params: Middle parameters and the trailing one, which is marked by nothing here (see `raw`).
        raw: The bytes as they came, without the line end. Forward these.
    """

    tags: Mapping[str, str] = field(compare=False, repr=False)
    source: str | None = field(compare=False, repr=False)
    command: str = field(compare=False, repr=False)
    params: tuple[str, ...] = field(compare=False, repr=False)
    raw: bytes

    @property
    def nick(self) -> str | None:
        """The user's nick in the source; None when there is no source or it names a server.

        The platform has sent ``:!@.tmi.twitch.tv`` (twitchdev/issues 604): that is the empty nick, not an error.
        """
        if self.source is None:
            return None
        nick, mark, _ = self.source.partition("!")
        if mark:
            return nick
        nick, mark, host = self.source.partition("@")
        return nick if mark or "." not in host + nick else None

    @property
    def channel(self) -> Channel | None:
        """The channel which the first parameter names, or None when it names none (no `#`, bad syntax)."""
        match = _CHANNEL.fullmatch(self.params[0]) if self.params else None
        return Channel(match[1].lower()) if match else None

    def is_from_server(self, prefix: str = SERVER_PREFIX) -> bool:
        """Whether the server itself speaks: its bare name, so that no user's prefix can pass for it."""
        return self.source == prefix


def parse_line(raw: bytes) -> Line:
    """Read one line.

    Bytes that are not UTF-8 become U+FFFD in the decoded parts; `Line.raw` keeps them.

    Args:
        raw: The line without its end, as `LineBuffer` returns it.

    Raises:
        LineError: It holds CR, LF or NUL, has no command, or is longer than the limits above.
    """
    if b"\r" in raw or b"\n" in raw or b"\0" in raw:
        raise LineError("CR, LF and NUL cannot be part of a line", "line")
    rest = raw.decode("utf-8", "replace")
    tags = _NO_TAGS
    source: str | None = None
    body_bytes = len(raw)
    if rest[:1] == "@":
        tag_text, _, rest = rest.partition(" ")
        block_bytes = raw.find(b" ") + 1 or len(raw)
        if block_bytes > MAX_TAGS_BYTES:
            raise LineError(f"{block_bytes} bytes of tags, at most {MAX_TAGS_BYTES} are allowed", "tags")
        body_bytes -= block_bytes
        tags = Tags(tag_text[1:])
        rest = rest.lstrip(" ")
    if body_bytes > MAX_BODY_BYTES - 2:
        raise LineError(f"{body_bytes} bytes without tags, at most {MAX_BODY_BYTES - 2} are allowed", "line")
    if rest[:1] == ":":
        source, _, rest = rest[1:].partition(" ")
    head, colon, trailing = rest.partition(" :")
    words = head.split(" ")
    if "" in words:
        words = [word for word in words if word]
    if not words or not _COMMAND.fullmatch(words[0]):
        raise LineError("a command is letters or three digits", "command")
    params = (*words[1:], trailing) if colon else tuple(words[1:])
    return Line(tags, source, words[0].upper(), params, raw)


def format_line(
    command: str,
    *params: str,
    tags: Mapping[str, str] | None = None,
    source: str | None = None,
    trailing: bool = False,
    tag_equals: bool = False,
) -> bytes:
    """Build one line with its CRLF, or refuse. The only way in the product to make bytes for an IRC peer.

    Args:
        command: Letters or three digits; sent in upper case.
        params: Only the last may be empty, hold spaces or begin with a colon.
        tags: Values are escaped; the empty value is written as the bare key.
        source: Server name or user mask, without the colon.
        trailing: Write the colon before the last parameter even where none is needed. Some readers look for
            it (go-twitch-irc compares the trailing of PONG).
        tag_equals: Write an empty tag as ``key=``, as the platform does and some of its clients expect. IRCv3
            gives both the same meaning.

    Raises:
        LineError: CR, LF or NUL anywhere, a misplaced space or colon, text that UTF-8 cannot carry (a lone
            surrogate), or a line over the limits above. Nothing is repaired: a caller that passes such text
            has a bug or an attacker.
    """
    if not _COMMAND.fullmatch(command):
        raise LineError("a command is letters or three digits", "command")
    block = _encode(_format_tags(tags, tag_equals), "tags") if tags else b""
    if len(block) > MAX_TAGS_BYTES:
        raise LineError(f"{len(block)} bytes of tags, at most {MAX_TAGS_BYTES} are allowed", "tags")
    words: list[str] = []
    if source is not None:
        _refuse_unless_middle(source, "source")
        words.append(":" + source)
    words.append(command.upper())
    for param in params[:-1]:
        _refuse_unless_middle(param, "params")
    words.extend(params[:-1])
    if params:
        last = params[-1]
        needs_colon = trailing or not last or last[0] == ":" or " " in last
        words.append(":" + last if needs_colon else last)
    body = _encode(" ".join(words), "params")
    if len(body) > MAX_BODY_BYTES - 2:
        raise LineError(f"{len(body)} bytes without tags, at most {MAX_BODY_BYTES - 2} are allowed", "line")
    return block + body + b"\r\n"


def format_channel_lines(command: str, channels: Iterable[Channel]) -> list[bytes]:
    """Build JOIN or PART lines that name all `channels` in order, as few as `PACKED_LINE_BYTES` allows.

    Raises:
        LineError: A name that is no channel, which the type should have prevented.
    """
    lines: list[bytes] = []
    names: list[str] = []
    room = PACKED_LINE_BYTES - len(command) - 1
    used = 0
    for channel in channels:
        name = "#" + channel
        if _CHANNEL.fullmatch(name) is None:
            raise LineError(f"{channel[:_NAME_SHOWN_CHARS]!r} is no channel", "params")
        if names and used + len(name) > room:
            lines.append(format_line(command, ",".join(names)))
            names, used = [], 0
        names.append(name)
        used += len(name) + 1
    if names:
        lines.append(format_line(command, ",".join(names)))
    return lines


class LineBuffer:
    r"""Cuts a byte stream into lines; any split of the same bytes gives the same lines.

    A line ends at LF, and CRs before it are dropped (`\r\n`, `\n` and `\r\r\n` are all seen in the field).
    Empty lines are dropped silently, as RFC 1459 asks. A line of more than `MAX_RECEIVED_BYTES` is refused
    as it comes in, without keeping it, and the stream goes on after it.
    """

    __slots__ = ("_limit", "_partial", "_refused", "_skipping")

    def __init__(self, limit_bytes: int = MAX_RECEIVED_BYTES) -> None:
        self._limit = limit_bytes - 1  # The LF itself is not in what we measure.
        self._partial = b""
        self._skipping = False
        self._refused = 0

    @property
    def refused_lines(self) -> int:
        """How many lines were refused for their length since the start. Only grows; compare it before and after."""
        return self._refused

    def receive_data(self, data: bytes) -> list[bytes]:
        """Take bytes in; return the lines that they complete, without line ends, in order."""
        *pieces, rest = data.split(b"\n")
        lines: list[bytes] = []
        limit = self._limit
        for piece in pieces:
            line = self._partial + piece if self._partial else piece
            if self._skipping:
                self._skipping = False
            elif len(line) > limit:
                self._refused += 1
            elif line := line.rstrip(b"\r"):
                lines.append(line)
            self._partial = b""
        self._keep(rest)
        return lines

    def _keep(self, rest: bytes) -> None:
        """Hold the unfinished line, unless it is already too long to ever be one."""
        if self._skipping:
            return
        self._partial += rest
        if len(self._partial) > self._limit:
            self._partial = b""
            self._skipping = True
            self._refused += 1


def _decode_tags(text: str) -> dict[str, str]:
    decoded: dict[str, str] = {}
    for item in text.split(";"):
        key, _, value = item.partition("=")
        decoded[key] = value
    decoded.pop("", None)
    if "\\" in text:
        return {key: _ESCAPED.sub(_unescape, value) for key, value in decoded.items()}
    return decoded


def _unescape(match: re.Match[str]) -> str:
    """One escape: an unknown one loses its backslash, a lone backslash at the end vanishes (IRCv3)."""
    return _TAG_DECODED.get(match[1], match[1])


def _format_tags(tags: Mapping[str, str], tag_equals: bool) -> str:
    items: list[str] = []
    for key, value in tags.items():
        if not _TAG_KEY.fullmatch(key):
            raise LineError(f"{key[:_NAME_SHOWN_CHARS]!r} is no tag key", "tags")
        if "\0" in value:
            raise LineError("NUL cannot be part of a tag", "tags")
        items.append(f"{key}={value.translate(_TAG_ENCODED)}" if value or tag_equals else key)
    return "@" + ";".join(items) + " "


def _refuse_unless_middle(word: str, where: str) -> None:
    if not word or " " in word or word[0] == ":":
        raise LineError("only the last parameter may be empty, hold a space or begin with a colon", where)


def _encode(text: str, where: str) -> bytes:
    """UTF-8, or a refusal: the last gate before bytes go to a peer, so line ends are looked for here."""
    if "\r" in text or "\n" in text or "\0" in text:
        raise LineError("CR, LF and NUL cannot be part of a line", where)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LineError("a lone surrogate cannot be sent", where) from error
