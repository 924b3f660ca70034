"""Waits until a run has come to rest, and collects the facts by which it is judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import httpx
import psycopg

from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.postgres.connections import connect
from serverchange.adapters.postgres.projection import load_states
from serverchange.adapters.settings import KafkaSettings, PostgresSettings
from serverchange.cli.channels import tracked
from serverchange.cli.demo.checks import count_missing
from serverchange.cli.demo.facts import Belief, Facts
from serverchange.cli.demo.ledger import Platform, SimulatedChannel
from serverchange.cli.demo.reader import count_dead_letters, fold_log, read_changes
from serverchange.cli.demo.watching import ChatWatch, StateApi
from serverchange.cli.faults import UnavailableFault
from serverchange.events import Channel
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.channel_state import ChannelState

SERVICE: Final = "demo"
POLL_S: Final = 0.25
JOIN_TIMEOUT_S: Final = 120.0
JOIN_TIMEOUT_EACH_S: Final = 0.15
"""A channel is looked up, folded, published and joined: 3 ms on an idle machine; one with a load of 20 took 100."""

REST_TIMEOUT_S: Final = 120.0
"""After the last move: notices are followed in 3 s, a silent move is found in one round of lookups; but a shard that
was refused a JOIN, because the channel had moved on, may wait a minute before it asks again."""

TELL_INTERVAL_S: Final = 5.0
DRAIN_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the facts are.

    Attributes:
        accounts: the logins of our readers.
    """

    platform: Platform
    api: StateApi
    chat: ChatWatch
    kafka: KafkaSettings
    postgres: PostgresSettings
    accounts: Collection[str]


async def track_all(kafka: KafkaSettings, channels: Sequence[SimulatedChannel]) -> None:
    """Say that we want every channel of the platform.

    Raises:
        PublishError: Kafka did not take one of the events.
    """
    events = [tracked(one.name, SERVICE, one.labels, one.kind, None) for one in channels]
    async with EventPublisher(kafka, client_id="serverchange-demo") as publisher:
        await publisher.publish_all(CHANNEL_EVENTS, [(event.subject, event.to_record()) for event in events])


async def wait_joined(
    sources: Sources, channels: Collection[Channel], tell: Callable[[str], None], *, timeout_s: float
) -> set[Channel]:
    """Wait until our readers are confirmed where every channel lives; returns those still missing at the end."""
    said = _Seldom(tell)

    async def missing() -> set[Channel]:
        truth = await sources.platform.truth()
        joined = await sources.platform.joined(sources.accounts)
        left = {channel for channel in channels if (channel, truth[channel]) not in joined}
        said(f"{len(channels) - len(left)} of {len(channels)} channels are joined where they live")
        return left

    return await _until_empty(missing, timeout_s)


async def wait_joined_or_fail(sources: Sources, channels: Collection[Channel], tell: Callable[[str], None]) -> None:
    """Wait for all JOINs at the start.

    Raises:
        UnavailableFault: some are still missing at the end; names a few.
    """
    timeout_s = JOIN_TIMEOUT_S + JOIN_TIMEOUT_EACH_S * len(channels)
    left = await wait_joined(sources, channels, tell, timeout_s=timeout_s)
    if left:
        raise UnavailableFault(
            f"{len(left)} of {len(channels)} channels were not joined within {timeout_s:.0f} s, e.g."
            f" {', '.join(sorted(left)[:5])}: see the logs of reconnector, poller and materializer"
        )


async def wait_at_rest(sources: Sources, channels: Collection[Channel], tell: Callable[[str], None]) -> None:
    """Wait until nothing is left to ask and everyone is where the channels are, or the time is over.

    It returns in both cases: what is still wrong then, the checks will tell. `tell` hears what it waits for.
    """
    said = _Seldom(tell)

    async def unsettled() -> set[Channel]:
        truth = await sources.platform.truth()
        rows = await load_rows(sources, channels)
        wrong = {channel for channel in channels if channel not in rows or rows[channel].cluster != truth[channel]}
        unasked = {channel for channel, row in rows.items() if row.needs_lookup}
        said(f"{len(wrong)} channels are believed elsewhere, {len(unasked)} are to be asked again")
        return wrong | unasked

    timeout_s = REST_TIMEOUT_S + JOIN_TIMEOUT_EACH_S * len(channels)
    deadline = time.monotonic() + timeout_s
    await _until_empty(unsettled, timeout_s)
    await wait_joined(sources, channels, tell, timeout_s=max(POLL_S, deadline - time.monotonic()))


class _Seldom:
    """Passes a sentence on, but at most one every `TELL_INTERVAL_S`, and none before that."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told_at_s = time.monotonic()

    def __call__(self, sentence: str) -> None:
        if time.monotonic() - self._told_at_s >= TELL_INTERVAL_S:
            self._told_at_s = time.monotonic()
            self._tell(sentence)


async def _until_empty(remaining: Callable[[], Awaitable[set[Channel]]], timeout_s: float) -> set[Channel]:
    deadline = time.monotonic() + timeout_s
    left: set[Channel] = set()
    while time.monotonic() < deadline:
        try:
            left = await remaining()
        except (psycopg.OperationalError, httpx.TransportError):
            left = {Channel("?")}  # a server restarts right now: no answer is no information
        if not left:
            return left
        await asyncio.sleep(POLL_S)
    return left


async def load_rows(sources: Sources, channels: Collection[Channel]) -> dict[Channel, ChannelState]:
    """Return the rows of `channel_state` for `channels`.

    Raises:
        psycopg.OperationalError: PostgreSQL does not answer.
    """
    connection = await connect(sources.postgres, application="serverchange-demo")
    async with connection:
        states, _ = await load_states(connection, range(sources.kafka.partitions))
    wanted = set(channels)
    return {state.channel: state for state in states if state.channel in wanted}


async def collect(sources: Sources, channels: Sequence[SimulatedChannel]) -> Facts:
    """Return the facts of a run at rest; what the caller measured itself is left at its default.

    Raises:
        UnavailableFault: Kafka, PostgreSQL or the API does not answer.
    """
    names = [one.name for one in channels]
    history = await sources.platform.history(sources.accounts)
    lines = await sources.platform.lines(history.links)
    await sources.chat.drain(expected=sum(line.reached for line in lines), timeout_s=DRAIN_TIMEOUT_S)
    status = await sources.platform.status()
    try:
        answers, _ = await sources.api.lookup(names)
        rows = await load_rows(sources, names)
    except (httpx.HTTPError, psycopg.OperationalError) as error:
        raise UnavailableFault(f"the state cannot be read at the end: {error}") from error
    facts = Facts(
        tracked={one.name: one.kind for one in channels},
        home={one.name: one.home for one in channels},
        truth=await sources.platform.truth(),
        moves=history.moves,
        lines=lines,
        stays=history.stays,
        streams=history.streams,
        rows={channel: Belief(state.cluster, state.status.value) for channel, state in rows.items()},
        answers=answers,
        received=sources.chat.reader.received,
        chat_records=sources.chat.reader.records,
        violations=history.violations,
        joined=await sources.platform.joined(sources.accounts),
        lookups=sum(status["api_requests"].values()),
        time_scale=status["time_scale"],
    )
    return await asyncio.to_thread(_add_topics, facts, sources.kafka)


def _add_topics(facts: Facts, kafka: KafkaSettings) -> Facts:
    """Add what the topics say; the outbox may be a moment behind the tables, so missing changes are waited for."""
    folded, decided = fold_log(kafka)
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while True:
        complete = replace(
            facts,
            changes=read_changes(kafka),
            decided=decided,
            folded={channel: belief for channel, belief in folded.items() if channel in facts.tracked},
            dead_letters=count_dead_letters(kafka),
        )
        if count_missing(complete) == 0 or time.monotonic() > deadline:
            return complete
