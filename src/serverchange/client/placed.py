"""Where one channel is, as subscribers keep it, and the parser that makes a million of them.

A record written by our materializer has one canonical form, and a regular expression that matches the whole of it
both checks and takes it apart, five times as fast as the general parser; every other record goes through
`events.parse_change`, so what is accepted is the same. Pure: no I/O.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, NamedTuple

from serverchange.events import (
    ChangeKind,
    Channel,
    ChannelKind,
    Cluster,
    ClusterChanged,
    Rejected,
    parse_change,
)


class Placed(NamedTuple):
    """The newest published change of a channel.

    Attributes:
        cluster: where the channel is; for an untracked one, where it last was.
        previous: where it was before.
        generation: raised by a rebuild under other rules.
        version: counts the published changes; order is (generation, version), whatever the arrival.
        since: when the log learned of it.
        what: what the change said.
        labels: what any service gave, sorted.
    """

    cluster: Cluster | None
    previous: Cluster | None
    generation: int
    version: int
    since: datetime
    what: ChangeKind
    kind: ChannelKind
    labels: tuple[str, ...]

    @property
    def tracked(self) -> bool:
        """Whether any service wants the channel."""
        return self.what is not ChangeKind.UNTRACKED

    @property
    def order(self) -> tuple[int, int]:
        """The (generation, version) that orders the changes of one channel."""
        return self.generation, self.version


_MOMENT: Final = rb"20[1-9]\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z"
_CLUSTER: Final = rb"[a-z0-9][a-z0-9_-]{0,31}"
_LABEL: Final = rb"[a-z0-9][a-z0-9_.:-]{0,30}"
_ID: Final = rb"[!#-\[\]-~]{1,100}"  # printable ASCII without quote and backslash: nothing that JSON would escape

_CANONICAL: Final = re.compile(
    rb'\{"specversion":"1\.0","id":"' + _ID + rb'","source":"[!#-\[\]-~]{1,200}","time":"' + _MOMENT + rb'",'
    rb'"datacontenttype":"application/json",(?:"traceparent":"[0-9a-f-]{55}",)?'
    rb'"subject":"([a-z0-9_]{1,25})",(?:"roomid":"[0-9]{1,20}",)?'
    rb'"type":"tv\.serverchange\.cluster\.changed\.v1","data":\{'
    rb'"what":"([a-z-]{5,10})",(?:"previous":"(' + _CLUSTER + rb')",)?(?:"cluster":"(' + _CLUSTER + rb')",)?'
    rb'"generation":([1-9]\d{0,8}),"version":([1-9]\d{0,14}),"since":"(' + _MOMENT + rb')","kind":"([a-z]{4,5})",'
    rb'"labels":\[((?:"' + _LABEL + rb'"(?:,"' + _LABEL + rb'")*)?)\],(?:"account":"[a-z0-9_]{1,25}",)?'
    rb'"evidence":\[(?:"' + _ID + rb'"(?:,"' + _ID + rb'"){0,7})?\]\}\}',
    re.ASCII,
).fullmatch

_WHATS: Final = {what.value.encode(): what for what in ChangeKind}
_KINDS: Final = {kind.value.encode(): kind for kind in ChannelKind}

INTERNED_MAX: Final = 65_536
"""Distinct clusters and sets of labels kept once for all channels; a topic gone mad must not fill the memory."""


class PlacedParser:
    """Parses records of `cluster-changes`; equal clusters and labels of all channels are one object in memory."""

    def __init__(self) -> None:
        self._clusters: dict[bytes | None, Cluster | None] = {None: None}
        self._labels: dict[bytes, tuple[str, ...]] = {b"": ()}

    def parse(self, key: bytes | None, value: bytes | None) -> tuple[Channel, Placed]:
        """Return the channel of a record and where it is.

        Raises:
            Rejected: the record is no change; count and skip it.
        """
        match = _CANONICAL(value) if value is not None else None
        if match is None or match[1] != key:
            return _from_event(parse_change(key, value))
        subject, what, previous, cluster, generation, version, since, kind, labels = match.groups()
        try:
            placed = Placed(
                self._cluster(cluster),
                self._cluster(previous),
                int(generation),
                int(version),
                datetime.fromisoformat(since.decode()),
                _WHATS[what],
                _KINDS[kind],
                self._label_set(labels),
            )
        except (KeyError, ValueError):  # e.g. 31 February, which the expression lets pass
            return _from_event(parse_change(key, value))
        return Channel(subject.decode()), placed

    def _cluster(self, name: bytes | None) -> Cluster | None:
        found = self._clusters.get(name)
        if found is None and name is not None:
            found = Cluster(name.decode())
            if len(self._clusters) < INTERNED_MAX:
                self._clusters[name] = found
        return found

    def _label_set(self, text: bytes) -> tuple[str, ...]:
        found = self._labels.get(text)
        if found is None:
            found = tuple(text.decode().strip('"').split('","'))
            if len(self._labels) < INTERNED_MAX:
                self._labels[text] = found
        return found


def _from_event(event: ClusterChanged) -> tuple[Channel, Placed]:
    data = event.data
    placed = Placed(
        data.cluster, data.previous, data.generation, data.version, data.since, data.what, data.kind, data.labels
    )
    return event.subject, placed


__all__ = ["Placed", "PlacedParser", "Rejected"]
