"""What `bench fleet` plays with: the simulated platform, shards, decisions and a reader, each a process or a thread.

The simulator and the shards are processes of their own, started as in production (`serverchange reconnector`, settings
in the environment). Decisions are written to `cluster-changes` by the bench itself: it is the fleet that is measured,
not the materializer. The reader is the SDK's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.cli.fleet import PREFIX, simulator_environment
from serverchange.client.chat_reader import ChatLines
from serverchange.embedded.ports import choose_ports
from serverchange.events import KAFKA_HEADERS, ChangedData, ChangeKind, Channel, Cluster, ClusterChanged, change_id
from serverchange.simulator.addresses import Addresses
from serverchange.topics import CLUSTER_CHANGES

READY_TIMEOUT_S: Final = 120.0
_NUMBERED: Final = re.compile(r"#(\d+) ")
LOOK_S: Final = 0.25

ENTRY_KINDS: Final = "joined,parted,link-logged-in,link-closed,moved,reconnect-sent,violation,login-refused"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the simulator's ledger; see `serverchange.simulator.ledger.Entry`."""

    sequence: int
    at: float
    kind: str
    channel: str | None = None
    cluster: str | None = None
    link: int | None = None
    account: str | None = None
    detail: str | None = None


class Platform:
    """The simulator as a process, driven and read over its control interface.

    Attributes:
        entries: the ledger as far as it was fetched.
        joined: channel → links that the platform has in it now, as far as fetched.
        home: channel → where it lives now.
        clusters: link → its cluster.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings = dict(settings)
        self.entries: list[Entry] = []
        self.joined: defaultdict[str, set[int]] = defaultdict(set)
        self.home: dict[str, str] = {}
        self.clusters: dict[int, str] = {}
        self.doomed: set[int] = set()
        self._channels_on: defaultdict[int, set[str]] = defaultdict(set)
        self.addresses: Addresses

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Platform]:
        """Start it; it is ended on leaving."""
        self._folder.mkdir(parents=True, exist_ok=True)
        settings, addresses = self._folder / "settings.json", self._folder / "addresses.json"
        settings.write_text(json.dumps({**self._settings, "data_dir": str(self._folder)}))
        addresses.unlink(missing_ok=True)  # of an earlier run whose logs were kept
        with (self._folder / "simulator.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "serverchange.simulator", "--settings", str(settings),
                "--addresses", str(addresses), stdout=log, stderr=log,
            )  # fmt: skip
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not addresses.exists():
                    assert process.returncode is None, (self._folder / "simulator.log").read_text()
                    await asyncio.sleep(LOOK_S)
            self.addresses = Addresses.model_validate_json(addresses.read_text())
            async with httpx.AsyncClient(
                base_url=self.addresses.control_url + "/control", timeout=READY_TIMEOUT_S, trust_env=False
            ) as self._client:
                found = await self.get("channels")
                self.home = {name: one["cluster"] for name, one in found.items()}
                yield self
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    async def get(self, route: str) -> Any:
        """Return the answer of a GET."""
        answer = await self._client.get("/" + route)
        answer.raise_for_status()
        return answer.json()

    async def post(self, route: str, **order: Any) -> Any:
        """Return the answer of a POST."""
        answer = await self._client.post("/" + route, json=order)
        answer.raise_for_status()
        return answer.json()

    async def refresh(self) -> None:
        """Fetch what is new in the ledger."""
        since = self.entries[-1].sequence + 1 if self.entries else 0
        async with self._client.stream("GET", f"/ledger?since={since}&kinds={ENTRY_KINDS}") as answer:
            async for line in answer.aiter_lines():
                row = json.loads(line)
                entry = Entry(**{name: row[name] for name in Entry.__slots__ if name in row})
                self.entries.append(entry)
                self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        link, channel = entry.link or 0, entry.channel or ""
        match entry.kind:
            case "link-logged-in":
                self.clusters[link] = entry.cluster or ""
            case "joined":
                self.joined[channel].add(link)
                self._channels_on[link].add(channel)
            case "parted":
                self.joined[channel].discard(link)
                self._channels_on[link].discard(channel)
            case "link-closed":
                for one in self._channels_on.pop(link, ()):
                    self.joined[one].discard(link)
                self.doomed.discard(link)
            case "moved":
                self.home[channel] = entry.cluster or ""
            case "reconnect-sent":
                self.doomed.add(link)

    def unjoined(self) -> list[str]:
        """Channels that no link is in where they live."""
        return [
            channel
            for channel, home in self.home.items()
            if not any(self.clusters.get(link) == home for link in self.joined[channel])
        ]

    def at_rest(self) -> bool:
        """Whether each channel is on exactly one link, where it lives, and no link is about to be closed."""
        return not self.doomed and not self.unjoined() and all(len(self.joined[channel]) == 1 for channel in self.home)

    async def wait_at_rest(self, timeout_s: float) -> bool:
        """Wait until all is at rest; false when it is not in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            await self.refresh()
            if self.at_rest():
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def lines(self) -> AsyncIterator[tuple[str, int, float, str, tuple[int, ...]]]:
        """Yield every numbered line: channel, number, when, cluster, and the links that it was sent to."""
        async with self._client.stream("GET", "/lines?links=1") as answer:
            async for line in answer.aiter_lines():
                row = json.loads(line)
                yield row["channel"], row["number"], row["at"], row["cluster"], tuple(row["links"])


@dataclass(slots=True)
class ShardProcess:
    """One `serverchange reconnector`, under a name that its successor takes over."""

    name: str
    environment: Mapping[str, str]
    log: Path
    port: int = 0
    process: asyncio.subprocess.Process = field(init=False)

    async def start(self) -> None:
        """Start it on a port of its own."""
        (self.port,) = choose_ports(1)
        own = {"PROCESS_NAME": self.name, "PROCESS_HEALTH_PORT": str(self.port)}
        environment = {**self.environment, **{PREFIX + key: value for key, value in own.items()}}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "serverchange.cli", "reconnector",
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    async def ready(self) -> None:
        """Wait until it says that it is."""
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(READY_TIMEOUT_S):
            while True:
                try:
                    if (await http.get(f"http://127.0.0.1:{self.port}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    assert self.process.returncode is None, self.log.read_text()[-4_000:]
                await asyncio.sleep(LOOK_S)

    async def confirmed(self) -> int:
        """Return how many channels it reads, as it says itself."""
        async with httpx.AsyncClient(trust_env=False) as http:
            told = (await http.get(f"http://127.0.0.1:{self.port}/metrics")).text
        found = re.search(r'^serverchange_channels\{set="confirmed"\} (\S+)$', told, re.MULTILINE)
        return 0 if found is None else int(float(found[1]))

    def terminate(self) -> None:
        """Ask it to give its channels away and end."""
        self.process.send_signal(signal.SIGTERM)

    async def end(self) -> None:
        """End it at once."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that it has."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def count(self, event: str, since: int = 0) -> int:
        """How often its log tells of `event`, from byte `since` on."""
        return self.log.read_bytes()[since:].count(f'"{event}"'.encode())


def shard_environment(settings: Settings, platform: Platform, accounts: Sequence[str], **own: str) -> dict[str, str]:
    """Return the environment of a shard on this Kafka, this PostgreSQL and this platform, with some of its accounts."""
    several = [
        {"login": known.login, "token": known.token, "account_class": known.tier.value}
        for known in platform.addresses.accounts
        if known.login in accounts
    ]
    found = simulator_environment(platform.addresses, account=None)
    return process_environment(settings, **found, RECONNECTOR_ACCOUNTS=json.dumps(several), **own)


def process_environment(settings: Settings, **own: str) -> dict[str, str]:
    """Return the environment of a process on this Kafka and this PostgreSQL, with settings of its own."""
    values = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": settings.kafka.topic_prefix,
        "KAFKA_PARTITIONS": str(settings.kafka.partitions),
        "POSTGRES_DSN": settings.postgres.dsn.get_secret_value(),
        "PROCESS_LOG_FORMAT": "json",
        **own,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return inherited | {PREFIX + name: value for name, value in values.items()}


class Decisions:
    """Writes to `cluster-changes` what a materializer would have decided."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._producer = make_producer(kafka, client_id="bench-decisions", linger_ms=5)
        self._topic = topic_name(kafka, CLUSTER_CHANGES)
        self._producer.partitions_for(self._topic)  # connects

    def prepare(self, channels: Iterable[str], cluster: str, version: int) -> list[tuple[bytes, bytes]]:
        """Return the records that say that these channels live on `cluster`."""
        now = datetime.now(UTC)
        what = ChangeKind.FIRST_SEEN if version == 1 else ChangeKind.MOVED
        return [
            (
                name.encode(),
                ClusterChanged(
                    id=change_id(Channel(name), 1, version),
                    source="bench",
                    time=now,
                    subject=Channel(name),
                    data=ChangedData(what=what, cluster=Cluster(cluster), generation=1, version=version, since=now),
                ).to_record(),
            )
            for name in channels
        ]

    def publish(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Append the records, in this order."""
        for key, value in records:
            self._producer.send(self._topic, key=key, value=value, headers=list(KAFKA_HEADERS))
        self._producer.flush()

    def close(self) -> None:
        """End the connection."""
        self._producer.close()


def line_number(text: str) -> int | None:
    """Return the number that the simulator wrote into a line's text, None where there is none."""
    found = _NUMBERED.match(text)
    return None if found is None else int(found[1])


class Reader:
    """The SDK's reader of `chat-lines` in a thread; remembers every numbered line that it was given.

    Attributes:
        read: channel → numbers.
        duplicates: lines that the reader was given again.
        repeated: copies that the reader itself dropped.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._lines = ChatLines(kafka.bootstrap_servers, topic_prefix=kafka.topic_prefix)
        self._lines.open()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.read: defaultdict[str, set[int]] = defaultdict(set)
        self.count = 0
        self.duplicates = 0
        self._thread.start()

    @property
    def repeated(self) -> int:
        """Copies that the reader dropped."""
        return self._lines.repeated

    def _run(self) -> None:
        for received in self._lines:
            if received.line.command != "PRIVMSG":
                continue
            number = line_number(received.line.params[-1])
            if number is None:
                continue
            numbers = self.read[received.channel]
            if number in numbers:
                self.duplicates += 1
            numbers.add(number)
            self.count += 1

    async def wait_quiet(self) -> None:
        """Wait until nothing more comes."""
        await wait_quiet(lambda: self.count)

    def close(self) -> None:
        """End the thread."""
        self._lines.close()
        self._thread.join(10)


async def wait_quiet(count: Callable[[], int], *, quiet_s: float = 5.0, timeout_s: float = 120.0) -> None:
    """Wait until a count of what was read has stood still for `quiet_s`."""
    deadline = time.monotonic() + timeout_s
    known, since = count(), time.monotonic()
    while time.monotonic() < min(deadline, since + quiet_s):
        await asyncio.sleep(LOOK_S)
        if count() != known:
            known, since = count(), time.monotonic()


def resident_bytes(shards: Iterable[ShardProcess]) -> int:
    """Memory of these processes together."""
    return sum(shard.resident_bytes for shard in shards)
