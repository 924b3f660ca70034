"""The Faust app: its settings, each with the reason, and the agent that hands every fetch to the worker.

What Faust 0.15.3 does is from its source; the traps are the reasons given here.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import faust

from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings, Settings
from serverchange.materializer.runs import Fetched, RunsApp, RunsSchema
from serverchange.topics import CHANNEL_EVENTS

GROUP: Final = "materializer"

HEARTBEAT_S: Final = 1.0
REBALANCE_S: Final = 15.0
REQUEST_S: Final = 30.0
MAX_POLL_INTERVAL_S: Final = 2_000_000.0
"""For ever, within a 32-bit count of milliseconds: a worker without partitions would leave the group after it and
never come back (aiokafka issue 1187). Our own watchdog looks for progress."""

FETCHES_WAITING_MAX: Final = 2
"""Fetches between Faust and the agent: one more than is being applied keeps the fold busy."""

METADATA_AGE_MS: Final = 10_000
FETCH_BYTES_MAX: Final = 1_048_576
"""Of one partition in one request, Kafka's own default."""


def make_app(settings: Settings, agent: Callable[[Fetched], Awaitable[None]]) -> RunsApp:
    """Return the app, not started; `agent` is called with every fetch, one at a time."""
    app = RunsApp(
        settings.kafka.topic_prefix + GROUP,
        broker=[f"kafka://{server}" for server in settings.kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings.kafka),
        broker_client_id=settings.process.name,
        broker_session_timeout=settings.kafka.session_timeout_s,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_rebalance_timeout=REBALANCE_S,
        broker_request_timeout=REQUEST_S,
        broker_max_poll_records=settings.materializer.fetch_records_max,
        broker_max_poll_interval=MAX_POLL_INTERVAL_S,
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        # A topic deleted and made anew is noticed within this; Kafka's default is five minutes.
        consumer_metadata_max_age_ms=METADATA_AGE_MS,
        # Nothing is committed to Kafka, so a fresh assignment has no offset there until Postgres positions it.
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=FETCHES_WAITING_MAX,
        # Waiting for messages under way would hold up a rebalance, and acks are off: there is nothing to wait for.
        stream_wait_empty=False,
        table_standby_replicas=0,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        autodiscover=False,
        # One folder, not one a process: Faust never tidies them up.
        datadir=str(_existing(settings.process.state_dir / "materializer")),
    )
    app.lost = set()
    app.drained = lambda: None
    topic = app.topic(topic_name(settings.kafka, CHANNEL_EVENTS), schema=RunsSchema(), acks=False)

    async def fold(stream: Any) -> None:
        async for event in stream.events():
            await agent(event.message.value)

    app.agent(topic, name="fold")(fold)
    return app


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def _credentials(settings: KafkaSettings) -> faust.auth.Credentials | None:
    """Return Faust's credentials; TLS always with its context, since SASL alone silently means plaintext."""
    context = None
    if settings.security_protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)
    if settings.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password.get_secret_value() if settings.sasl_password else None,
            mechanism=settings.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None
