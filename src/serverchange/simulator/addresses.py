"""Where a running simulator can be reached, as it tells others."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from serverchange.events import Cluster
from serverchange.simulator.settings import Tier


class ClusterAddresses(BaseModel):
    """The ports of one cluster, each `host:port`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plain: str
    tls: str
    ws: str
    wss: str


class AccountToken(BaseModel):
    """An account that may log in. The token opens nothing but this simulator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    login: str
    token: str
    tier: Tier


class Addresses(BaseModel):
    """Everything that a program needs to be pointed at the simulator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_url: str
    control_url: str
    ca_file: str
    clusters: dict[Cluster, ClusterAddresses]
    accounts: tuple[AccountToken, ...]
