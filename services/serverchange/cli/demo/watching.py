"""Watches a run while it goes on: the truth beside the API's answers every half second, and the chat as it is read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from serverchange.adapters.settings import KafkaSettings
from serverchange.cli.demo.facts import Belief
from serverchange.cli.demo.ledger import Platform
from serverchange.cli.demo.reader import ChatReader
from serverchange.events import Channel, Cluster

SAMPLE_INTERVAL_S: Final = 0.5
API_TIMEOUT_S: Final = 5.0
DRAIN_SILENCE_S: Final = 2.0
"""No record for so long, with all lines in, and the chat is read to its end."""


class StateApi:
    """The demo's questions to the state API."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=API_TIMEOUT_S, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def lookup(self, channels: Collection[Channel]) -> tuple[dict[Channel, Belief], int | None]:
        """Return what the API says of `channels`, and by how many records its tables are behind.

        Raises:
            httpx.HTTPError: it does not answer, or not with 200.
        """
        answer = await self._http.post("/channels:lookup", json={"channels": list(channels)})
        answer.raise_for_status()
        body = answer.json()
        beliefs = {Channel(one["channel"]): Belief(one["cluster"], one["status"]) for one in body["channels"]}
        return beliefs, body["behind_records"]

    async def metric(self, health_url: str, name: str, **labels: str) -> float | None:
        """Return the sum of a process's metric over all series with these labels; None if it does not answer."""
        try:
            text = (await self._http.get(f"{health_url}/metrics")).text
        except httpx.HTTPError:
            return None
        return sum_metric(text, name, labels)


def sum_metric(text: str, name: str, labels: Mapping[str, str]) -> float:
    """Return the sum of the series of `name` in a Prometheus exposition that have all of `labels`."""
    total = 0.0
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        bare, _, rest = series.partition("{")
        if bare == name and all(label in rest for label in wanted):
            total += float(value)
    return total


@dataclass(frozen=True, slots=True)
class Sample:
    """How things stood at one moment.

    Attributes:
        elapsed_s: since the script began.
        step: the script's step, or None before the first and after the last.
        done: whether the script is through.
        moves: channels moved so far.
        true_by_cluster: channels by the cluster where they live.
        believed_by_cluster: the same as the API says; None while it does not answer.
        mismatches: channels that the API has elsewhere.
        behind_records: of the tables; None while unknown.
        handovers: ended so far; None while unknown.
        live: channels that stream.
        chat_sent, chat_read: numbered lines so far.
        violations: of the platform's budgets so far.
    """

    elapsed_s: float
    step: str | None
    done: bool
    moves: int
    true_by_cluster: Mapping[Cluster, int]
    believed_by_cluster: Mapping[Cluster | None, int] | None
    mismatches: int | None
    behind_records: int | None
    handovers: int | None
    live: int
    chat_sent: int
    chat_read: int
    violations: int


class ChatWatch:
    """Reads `chat-lines` on a thread of its own from the first record on."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.reader = ChatReader(settings)
        self._stopping = threading.Event()
        self._last_record_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="chat-reader", daemon=True)
        self.failure: Exception | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self.reader.poll():
                    self._last_record_s = time.monotonic()
        except Exception as error:  # noqa: BLE001  (handed to the demo's own task, which ends with it)
            self.failure = error
        finally:
            self.reader.close()

    @property
    def lines(self) -> int:
        """Numbered lines read so far."""
        return len(self.reader.received)

    async def drain(self, *, expected: int, timeout_s: float) -> None:
        """Wait until `expected` lines were read and no more come, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.failure is None:
            quiet_s = time.monotonic() - self._last_record_s
            if self.lines >= expected and quiet_s >= DRAIN_SILENCE_S:
                return
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop reading.

        Raises:
            Exception: what ended the reader before.
        """
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)
        if self.failure is not None:
            raise self.failure


@dataclass(slots=True)
class Watcher:
    """Takes samples and sums up what they show.

    Attributes:
        channels: all that are tracked.
        handovers_url: health address of the shard.
        show: called with each sample.
        mismatch_channel_seconds: channels that the API had elsewhere, times seconds.
        unanswered: samples to which the API gave no answer.
    """

    platform: Platform
    api: StateApi
    chat: ChatWatch
    channels: Collection[Channel]
    handovers_url: str
    show: Callable[[Sample], None]
    mismatch_channel_seconds: float = 0.0
    samples: int = 0
    unanswered: int = 0
    _started_s: float = field(default_factory=time.monotonic)

    async def watch_script(self, *, timeout_s: float) -> bool:
        """Sample until the script is through; returns False if the time was over before that."""
        last_s = time.monotonic()
        while True:
            sample = await self.sample()
            now_s = time.monotonic()
            self.mismatch_channel_seconds += (sample.mismatches or 0) * (now_s - last_s)
            last_s = now_s
            self.show(sample)
            if sample.done or sample.elapsed_s > timeout_s:
                return sample.done
            await asyncio.sleep(max(0.0, SAMPLE_INTERVAL_S - (time.monotonic() - now_s)))

    async def sample(self) -> Sample:
        """Return how things stand."""
        chat_read = self.chat.lines  # before the lines sent are counted: the other way round it may be more than them
        status: dict[str, Any] = await self.platform.status()
        truth = await self.platform.truth()
        believed, behind = await self._ask_api()
        handovers = await self.api.metric(self.handovers_url, "serverchange_handovers_total", cause="moved")
        return Sample(
            elapsed_s=time.monotonic() - self._started_s,
            step=status["script"]["step"],
            done=status["script"]["state"] == "done",
            moves=status["moves"],
            true_by_cluster=Counter(truth.values()),
            believed_by_cluster=None if believed is None else Counter(one.cluster for one in believed.values()),
            mismatches=None if believed is None else count_mismatches(truth, believed, self.channels),
            behind_records=behind,
            handovers=None if handovers is None else int(handovers),
            live=status["live"],
            chat_sent=status["lines_sent"],
            chat_read=chat_read,
            violations=sum(status["violations"].values()),
        )

    async def _ask_api(self) -> tuple[dict[Channel, Belief] | None, int | None]:
        self.samples += 1
        try:
            return await self.api.lookup(self.channels)
        except httpx.HTTPError:
            self.unanswered += 1
            return None, None


def count_mismatches(
    truth: Mapping[Channel, Cluster], believed: Mapping[Channel, Belief], channels: Collection[Channel]
) -> int:
    """Return how many channels are believed elsewhere than they are."""
    return sum(
        1 for channel in channels if (belief := believed.get(channel)) is None or belief.cluster != truth[channel]
    )
