"""Decides when a cluster's server list is worth an event on `clusters`: when it changed, and every so often.

Pure. A list without servers is no information: links would have nowhere to go. Order means nothing (the API turns
lists to spread clients), so lists are compared as sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from serverchange.adapters.platform_api import ClusterAnswer
from serverchange.events import Cluster

CLUSTERS_MAX: Final = 256
"""Clusters whose lists are kept; the platform has four. An API gone mad must not fill the topic or the memory."""

CHANGE_INTERVAL_S: Final = 1.0
"""Shortest time between two events of one cluster: replicas that disagree must not make a storm."""


@dataclass(frozen=True, slots=True)
class _Told:
    servers: frozenset[str]
    websocket_servers: frozenset[str]
    at_s: float


class ClusterServersBoard:
    """What this poller last told of each cluster; times are seconds of any clock that only goes forward."""

    def __init__(self, *, interval_s: float) -> None:
        self._interval_s = interval_s
        self._told: dict[Cluster, _Told] = {}

    def is_due(self, answer: ClusterAnswer, now_s: float) -> bool:
        """Return whether this list should be published now."""
        if not answer.servers and not answer.websocket_servers:
            return False
        told = self._told.get(answer.cluster)
        if told is None:
            return len(self._told) < CLUSTERS_MAX
        same = (told.servers, told.websocket_servers) == (
            frozenset(answer.servers),
            frozenset(answer.websocket_servers),
        )
        return now_s - told.at_s >= (self._interval_s if same else CHANGE_INTERVAL_S)

    def note(self, answer: ClusterAnswer, now_s: float) -> None:
        """Remember that this list was published."""
        self._told[answer.cluster] = _Told(frozenset(answer.servers), frozenset(answer.websocket_servers), now_s)
