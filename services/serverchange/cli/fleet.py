"""Everything on one machine, below one folder: Kafka, PostgreSQL, the simulated platform, every service, supervised.

`serverchange up` and `serverchange demo` differ in what they do with it. Services know nothing of this: each gets its
settings in its environment, as it would from a compose file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serverchange.adapters.kafka.topics import apply_topics
from serverchange.adapters.postgres.connections import connect_blocking
from serverchange.adapters.postgres.schema import migrate
from serverchange.adapters.settings import KafkaSettings, PostgresSettings
from serverchange.cli.faults import UnavailableFault
from serverchange.cli.processes import SERVICES
from serverchange.cli.supervisor import ProcessSpec, Report, Supervisor, tail
from serverchange.embedded.errors import EmbeddedError
from serverchange.embedded.ports import LOOPBACK, choose_ports
from serverchange.embedded.server import EmbeddedServer
from serverchange.embedded.stack import EmbeddedStack
from serverchange.simulator.addresses import Addresses
from serverchange.simulator.settings import SimulatorSettings

SIMULATOR: Final = "simulator"
PREFIX: Final = "SERVERCHANGE_"

READY_TIMEOUT_S: Final = 120.0
"""A service is ready in 1 to 5 s; five that start together on a busy machine take ten times as long."""

SERVER_CHECK_S: Final = 0.5
"""How often a dead Kafka or PostgreSQL is noticed."""

SERVER_FAILURES_MAX: Final = 5
"""Starts in a row that fail, after which all is given up: each takes up to a minute by itself."""

ALL_SERVICES: Final = tuple(service.command for service in SERVICES)

Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WriteToken:
    """What may write through the API: its name is the service in the events."""

    service: str
    token: str

    @property
    def setting(self) -> str:
        """As `SERVERCHANGE_API_TOKENS` has it: never the token itself."""
        return f"{self.service}={hashlib.sha256(self.token.encode()).hexdigest()}"


def simulator_environment(addresses: Addresses, *, account: str | None) -> dict[str, str]:
    """Return the settings that point every service at a simulated platform, with one of its accounts for shards."""
    seeds = {cluster: [servers.plain] for cluster, servers in addresses.clusters.items()}
    environment = {
        "PLATFORM_API_URL": addresses.api_url,
        "PLATFORM_SEEDS": json.dumps(seeds),
        "PLATFORM_ALLOWED_NETWORKS": json.dumps([f"{LOOPBACK}/32"]),
        "PLATFORM_PLAINTEXT_TOKEN_HOSTS": json.dumps([LOOPBACK]),
        "PLATFORM_TRANSPORT": "plain",
        "LISTENER_ACCOUNT_CLASS": "verified",
    }
    for known in addresses.accounts:
        if known.login == account:
            environment["RECONNECTOR_ACCOUNT"] = known.login
            environment["RECONNECTOR_TOKEN"] = known.token
            environment["RECONNECTOR_ACCOUNT_CLASS"] = known.tier.value
    return environment


class Fleet:
    """One running system. Use it as an async context manager; leaving it stops all that was started.

    Args:
        data_dir: folder of everything.
        partitions: of the keyed topics.
        tell: called with a sentence for people at each step.
        keep_environment: whether services see the caller's own `SERVERCHANGE_*`; the demo must not, lest it
            meets somebody's production.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        partitions: int,
        tell: Callable[[str], None],
        keep_environment: bool = False,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._tell = tell
        self._partitions = partitions
        self.stack = EmbeddedStack(self.data_dir, progress=tell)
        self.supervisor = Supervisor(self.data_dir / "logs", tell=self._tell_report)
        self._environment = {
            name: value for name, value in os.environ.items() if keep_environment or not name.startswith(PREFIX)
        }
        self._ports: dict[str, int] = {}
        self._watching: asyncio.Task[None] | None = None
        self.server_restarts = 0
        self._server_failures = 0
        self._restarted = asyncio.Condition()
        self.failure: str | None = None
        self.failed = asyncio.Event()

    async def __aenter__(self) -> Fleet:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        await self.supervisor.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.supervisor.stop([name for name in self.supervisor.names if name != SIMULATOR])
            await self.supervisor.__aexit__()
        finally:
            if self._watching is not None:
                self._watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._watching
            await asyncio.to_thread(self.stack.stop)

    @property
    def kafka(self) -> KafkaSettings:
        """How to reach the broker."""
        return KafkaSettings(bootstrap_servers=self.stack.kafka.bootstrap_servers, partitions=self._partitions)

    @property
    def postgres(self) -> PostgresSettings:
        """How to reach the database."""
        return PostgresSettings.model_validate({"dsn": self.stack.postgres.dsn})

    @property
    def api_url(self) -> str:
        """Where the state API listens, once it was started."""
        return f"http://{LOOPBACK}:{self._ports['api']}"

    def health_url(self, name: str) -> str:
        """Return where a service serves /readyz and /metrics, once it was started."""
        return f"http://{LOOPBACK}:{self._ports[name]}"

    def add_environment(self, environment: Environment) -> None:
        """Set settings (names without the prefix) for every service started from now on."""
        self._environment.update({PREFIX + name: value for name, value in environment.items()})

    async def start_servers(self) -> None:
        """Start Kafka and PostgreSQL, make topics and tables, and start again whichever of the two ends.

        Raises:
            EmbeddedError: one cannot start; its message says what to do.
        """
        await asyncio.to_thread(self.stack.start)
        self._watching = asyncio.create_task(self._watch_servers(), name="watch servers")
        self._tell("making topics and tables")
        await asyncio.to_thread(apply_topics, self.kafka)
        await asyncio.to_thread(self._migrate)
        self.add_environment(
            {
                "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
                "KAFKA_PARTITIONS": str(self._partitions),
                "POSTGRES_DSN": self.stack.postgres.dsn,
                "PROCESS_LOG_FORMAT": "json",
            }
        )

    async def start_simulator(self, settings: SimulatorSettings) -> Addresses:
        """Start the simulated platform and return its addresses once every port is open.

        Raises:
            UnavailableFault: it does not start; with the end of its log.
        """
        folder = self.data_dir / SIMULATOR
        folder.mkdir(exist_ok=True)
        settings = settings.model_copy(update={"data_dir": folder})
        settings_file, addresses_file = folder / "settings.json", folder / "addresses.json"
        _write_private(settings_file, _dump_with_tokens(settings))
        addresses_file.unlink(missing_ok=True)
        arguments = (SIMULATOR, "--settings", str(settings_file), "--addresses", str(addresses_file))
        self.supervisor.start(ProcessSpec(SIMULATOR, arguments, self._environment))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not addresses_file.exists() and not self.supervisor.failed.is_set():  # noqa: ASYNC110  (a file of another process)
                    await asyncio.sleep(0.05)
        if not addresses_file.exists():
            log = self.supervisor.log(SIMULATOR)
            raise UnavailableFault(f"the simulator did not start. The end of {log}:\n{tail(log)}")
        return Addresses.model_validate_json(addresses_file.read_text("utf-8"))

    async def start_services(self, names: Iterable[str] = ALL_SERVICES, *, token: WriteToken) -> None:
        """Start services and return once all are ready.

        Raises:
            UnavailableFault: one is not ready in time; says which, why, and where its log is.
        """
        chosen = tuple(names)
        ports = choose_ports(len(chosen) + 1)
        self._ports.update(zip((*chosen, "api"), ports, strict=True))
        for name in chosen:
            self.supervisor.start(self._spec(name, token))
        await self.supervisor.wait_ready(chosen, timeout_s=READY_TIMEOUT_S)

    async def wait_server_restarts(self, count: int, *, timeout_s: float) -> None:
        """Wait until Kafka and PostgreSQL together were started again so often.

        Raises:
            TimeoutError: they were not in time.
        """
        async with asyncio.timeout(timeout_s), self._restarted:
            await self._restarted.wait_for(lambda: self.server_restarts >= count)

    def _spec(self, name: str, token: WriteToken) -> ProcessSpec:
        state_dir = self.data_dir / "state" / name
        state_dir.mkdir(parents=True, exist_ok=True)
        own = {
            "PROCESS_NAME": f"{name}-1",
            "PROCESS_HEALTH_PORT": str(self._ports[name]),
            "PROCESS_STATE_DIR": str(state_dir),
        }
        if name == "state-api":
            own |= {"API_PORT": str(self._ports["api"]), "API_TOKENS": token.setting}
        environment = {**self._environment, **{PREFIX + key: value for key, value in own.items()}}
        if name != "reconnector":
            environment.pop(PREFIX + "RECONNECTOR_TOKEN", None)
        return ProcessSpec(name, (name,), environment, f"{self.health_url(name)}/readyz")

    async def _watch_servers(self) -> None:
        while True:
            await asyncio.sleep(SERVER_CHECK_S)
            for server in (self.stack.kafka, self.stack.postgres):
                if server.pid is None:
                    await self._restart(server)

    async def _restart(self, server: EmbeddedServer) -> None:
        self._tell(f"{server.title} ended; starting it again")
        self._server_failures += 1
        try:
            await asyncio.to_thread(server.start)
        except EmbeddedError as error:
            self._tell(str(error))
            if self._server_failures >= SERVER_FAILURES_MAX:
                self._fail(f"{server.title} cannot be started again: {error}")
            return
        self._server_failures = 0
        async with self._restarted:
            self.server_restarts += 1
            self._restarted.notify_all()

    def _migrate(self) -> None:
        with connect_blocking(self.postgres, application="serverchange-up") as connection:
            migrate(connection)

    def _tell_report(self, report: Report) -> None:
        if report.again_in_s is not None:
            self._tell(f"{report.name} ended with code {report.code}; starting it again in {report.again_in_s:g} s")
        if self.supervisor.failure is not None:
            self._fail(self.supervisor.failure)

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self.failed.set()


def _dump_with_tokens(settings: SimulatorSettings) -> str:
    """Return the settings as JSON, the accounts' tokens in clear: they open nothing but this simulator."""
    accounts = [
        {"login": account.login, "token": account.token.get_secret_value(), "tier": account.tier}
        for account in settings.accounts
    ]
    return json.dumps({**settings.model_dump(mode="json", exclude={"accounts"}), "accounts": accounts})


def make_token(service: str, path: Path) -> WriteToken:
    """Return the write token kept in `path`, made on the first call; only the owner may read the file."""
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(32))
    return WriteToken(service, path.read_text("utf-8").strip())


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
