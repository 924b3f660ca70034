"""The bytes of what the platform says in a channel: numbered chat, and the lines that carry no id.

A numbered line's text begins with `#NUMBER CHANNEL`, counted per channel from 1, so that a reader can prove what it
lost or got twice. Each line is built once, in two forms (with tags and without), and shared by every link.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

from serverchange.simulator.world import Profile

_FILLERS: Final = (
    "Kappa",
    "that was close PogChamp",
    "did anyone see what happened just now? I was looking away for two seconds",
    "LUL",
    "first time here, hello everyone",
    "no way he makes that jump BibleThump no way no way",
)
_CHATTERS: Final = tuple((f"viewer_{index:03d}", f"Viewer_{index:03d}", 40_000_000 + index) for index in range(97))


@dataclass(frozen=True, slots=True)
class SharedLine:
    """One line in the two forms that links ask for, CRLF included."""

    tagged: bytes
    plain: bytes


class ChatWriter:
    """Writes the platform's lines about channels; ids are unique over all runs of the simulator."""

    def __init__(self, run: uuid.UUID) -> None:
        """Take `run`, any UUID of this run: the first half of each message id is made of it."""
        text = str(run)
        self._id_prefix = f"{text[:14]}4{text[15:19]}b{text[20:23]}-"
        self._written = 0

    def numbered(self, profile: Profile, number: int, wall_s: float, text: str | None = None) -> SharedLine:
        """Return the channel's line with that number; `text` follows the number instead of small talk."""
        said = f"#{number} {profile.name} {text if text is not None else _FILLERS[number % len(_FILLERS)]}"
        login, shown, user_id = _CHATTERS[(number * 31 + self._written) % len(_CHATTERS)]
        return self._privmsg(profile, login, shown, user_id, said, wall_s)

    def spoken(self, profile: Profile, login: str, user_id: int, text: str, wall_s: float) -> SharedLine:
        """Return what a client said, as the others in the channel see it."""
        return self._privmsg(profile, login, login, user_id, text, wall_s)

    def clearchat(self, profile: Profile, user: str | None, wall_s: float) -> SharedLine:
        """Return CLEARCHAT for a user, or for the whole channel: a line without id."""
        target = f";target-user-id={sum(user.encode()) + 40_000_000}" if user is not None else ""
        body = f":tmi.twitch.tv CLEARCHAT #{profile.name}" + (f" :{user}" if user is not None else "")
        return _share(f"room-id={profile.room_id}{target};tmi-sent-ts={int(wall_s * 1000)}", body)

    def _privmsg(self, profile: Profile, login: str, shown: str, user_id: int, text: str, wall_s: float) -> SharedLine:
        self._written += 1
        tags = (
            f"badge-info=;badges=;color=#1E90FF;display-name={shown};emotes=;first-msg=0;flags=;"
            f"id={self._id_prefix}{self._written:012x};mod=0;returning-chatter=0;room-id={profile.room_id};"
            f"subscriber=0;tmi-sent-ts={int(wall_s * 1000)};turbo=0;user-id={user_id};user-type="
        )
        return _share(tags, f":{login}!{login}@{login}.tmi.twitch.tv PRIVMSG #{profile.name} :{text}")


def _share(tags: str, body: str) -> SharedLine:
    plain = body.encode() + b"\r\n"
    return SharedLine(f"@{tags} ".encode() + plain, plain)
