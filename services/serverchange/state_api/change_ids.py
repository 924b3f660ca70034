"""The id of an event on `GET /changes`: which topic, and the next offset of each of its partitions.

`1f2e3d4c-1a.0.7f3` is 8 hex digits of the topic's id and the offsets in hex, in partition order. A reader that sends
the newest id it saw as Last-Event-ID gets what came after, whatever partitions its events came from; a single offset
could not say that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from serverchange.events import Rejected

_ID: Final = re.compile(r"(?P<topic>[0-9a-f]{8})-(?P<offsets>[0-9a-f]{1,15}(\.[0-9a-f]{1,15})*)", re.ASCII)

ID_CHARACTERS_MAX: Final = 65_536
"""An id of 4,000 partitions with offsets of 15 digits; longer is refused before it is looked at."""


@dataclass(frozen=True, slots=True)
class ChangePosition:
    """A place in `cluster-changes`: `offsets[p]` is the next offset of partition p."""

    topic: str
    offsets: tuple[int, ...]


def short_topic_id(topic_id: str) -> str:
    """Return 8 hex digits that tell a re-created topic from the one before; Kafka gives ids as UUIDs."""
    digits = re.sub(r"[^0-9a-f]", "", topic_id.lower())
    return digits[:8].rjust(8, "0")


def format_change_id(topic: str, offsets: Iterable[int]) -> str:
    """Return the id of a place."""
    return topic + "-" + ".".join([format(offset, "x") for offset in offsets])


def parse_change_id(text: str) -> ChangePosition:
    """Return the place that an id names.

    Raises:
        Rejected: it is none of our ids.
    """
    match = _ID.fullmatch(text) if len(text) <= ID_CHARACTERS_MAX else None
    if match is None:
        raise Rejected(f"{text[:40]!r} is not an event id: send back the newest id that a stream gave, unchanged")
    return ChangePosition(match["topic"], tuple(int(offset, 16) for offset in match["offsets"].split(".")))
