"""Who is joined where: a link is in a room of its cluster, whether or not the channel lives there.

A room on the wrong cluster is silent; it begins to speak when the channel moves to that cluster. That is why joining
in advance worked (platform forum, thread 4877, post 28), and why a wrong JOIN could go unnoticed for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from serverchange.events import Channel, Cluster
from serverchange.simulator.link import Link


@dataclass(frozen=True, slots=True)
class Audience:
    """Those joined to a channel on one cluster, as it was when it was asked for."""

    links: tuple[Link, ...]
    numbers: tuple[int, ...]


NOBODY: Final = Audience((), ())


class Rooms:
    """Membership by cluster and channel. An audience is kept until somebody comes or goes."""

    def __init__(self) -> None:
        self._members: dict[tuple[Cluster, Channel], dict[int, Link]] = {}
        self._audiences: dict[tuple[Cluster, Channel], Audience] = {}

    def enter(self, link: Link, channel: Channel) -> None:
        """Put a link into the room of its cluster."""
        room = (link.cluster, channel)
        self._members.setdefault(room, {})[link.number] = link
        self._audiences.pop(room, None)

    def leave(self, link: Link, channel: Channel) -> None:
        """Take it out again; nothing happens if it is not there."""
        room = (link.cluster, channel)
        members = self._members.get(room)
        if members is None or members.pop(link.number, None) is None:
            return
        self._audiences.pop(room, None)
        if not members:
            del self._members[room]

    def audience(self, cluster: Cluster, channel: Channel) -> Audience:
        """Return who is joined to `channel` on `cluster`, in the order of joining."""
        room = (cluster, channel)
        found = self._audiences.get(room)
        if found is None:
            members = self._members.get(room)
            if members is None:
                return NOBODY
            found = self._audiences[room] = Audience(tuple(members.values()), tuple(members))
        return found
