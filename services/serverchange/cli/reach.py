"""Says within seconds that a server is not there: Kafka's client would go on trying for minutes in silence."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from serverchange.cli.faults import UnavailableFault

if TYPE_CHECKING:
    from serverchange.adapters.settings import KafkaSettings

CONNECT_TIMEOUT_S: Final = 3.0


def check_kafka(settings: KafkaSettings) -> None:
    """Return if any of the bootstrap servers accepts a connection.

    Raises:
        UnavailableFault: none does; says which were tried and which setting names them.
    """
    if reasons := refusals(settings):
        raise UnavailableFault(
            f"Kafka does not answer ({'; '.join(reasons)}). Start it (serverchange up), or set"
            " SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS"
        )


def refusals(settings: KafkaSettings) -> list[str]:
    """Return why each of the bootstrap servers accepts no connection; nothing if one does."""
    reasons: list[str] = []
    for server in settings.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            reasons.append(f"{server}: {error}")
        else:
            return []
    return reasons
