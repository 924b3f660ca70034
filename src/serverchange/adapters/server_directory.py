"""Which server of a cluster a link tries next: what the API named, in turn, and the seeds of the settings behind them.

A server that failed goes to the back, so that a list whose first entry is dead costs one attempt and not fourteen hours
(tatsuworks/gateway 87). Servers that the host rules refuse are never returned; a refusal is logged once a list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from serverchange.adapters.hosts import HostRules, Server
from serverchange.adapters.links import DEFAULT_PORTS, Transport, servers_for
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.events import Cluster

_log = get_logger("server_directory")


class ServerDirectory:
    """The servers of all clusters, as this process may use them.

    Args:
        hosts: decides who is allowed.
        transport: decides which ports are used.
        seeds: servers by cluster, for the time before the API named any and for when all that it named are dead.
    """

    def __init__(self, hosts: HostRules, transport: Transport, seeds: Mapping[str, Sequence[str]]) -> None:
        self._hosts = hosts
        self._transport = transport
        self._seeds = {Cluster(cluster): self._allowed(Cluster(cluster), entries) for cluster, entries in seeds.items()}
        self._learned: dict[Cluster, tuple[Server, ...]] = {}
        self._turns: dict[Cluster, deque[Server]] = {
            cluster: deque(servers) for cluster, servers in self._seeds.items() if servers
        }

    @property
    def clusters(self) -> frozenset[Cluster]:
        """Clusters with at least one server: those that links can be opened on."""
        return frozenset(self._turns)

    def learn(self, cluster: Cluster, servers: Sequence[str], websocket_servers: Sequence[str]) -> bool:
        """Take a cluster's server list. Returns whether it brought a change."""
        fitting = servers_for(self._transport, servers, websocket_servers)
        allowed = self._allowed(cluster, fitting)
        if self._learned.get(cluster) == allowed:
            return False
        self._learned[cluster] = allowed
        behind = tuple(server for server in self._seeds.get(cluster, ()) if server not in allowed)
        if allowed or behind:
            self._turns[cluster] = deque((*allowed, *behind))
        return True

    def next(self, cluster: Cluster) -> Server | None:
        """The server to try now, or None when the cluster has none."""
        turn = self._turns.get(cluster)
        return turn[0] if turn else None

    def failed(self, cluster: Cluster, server: Server) -> None:
        """A link to `server` was not welcomed: others come first."""
        turn = self._turns.get(cluster)
        if turn and server in turn:
            turn.remove(server)
            turn.append(server)

    def _allowed(self, cluster: Cluster, entries: Sequence[str]) -> tuple[Server, ...]:
        servers, refused = self._hosts.allowed(entries, default_port=DEFAULT_PORTS[self._transport])
        for refusal in refused:
            _log.error(LogEvent.HOST_REFUSED, cluster=cluster, reason=str(refusal))
        return tuple(dict.fromkeys(servers))
