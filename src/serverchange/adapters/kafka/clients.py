"""The one place where Kafka clients are made: kafka-python's for services, aiokafka's for the fold and its outbox.

All producers write with `acks=all` and idempotence, so an acknowledged event is in the log once; all consumers read
committed records only and never commit an offset behind the caller's back.
"""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from serverchange.adapters.settings import KafkaSettings

RECONNECT_BACKOFF_MAX_MS = 1_000
"""Longest pause before a broker is tried again (Kafka's Java clients: one second). kafka-python 3.0 takes thirty, and a
broker that was away for a minute was noticed half a minute after its return."""

LINGER_MS = 5
"""A notice must not wait; 5 ms still makes batches under load (kafka-python's default is 0)."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options that all kafka-python clients share: where the brokers are and who we are."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "request_timeout_ms": round(settings.request_timeout_s * 1000),
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password and settings.sasl_password.get_secret_value()
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)


def make_producer(settings: KafkaSettings, *, client_id: str, **options: Any) -> KafkaProducer:
    """Return an idempotent producer; the caller closes it.

    Raises:
        kafka.errors.KafkaError: no broker answered.
    """
    return KafkaProducer(
        **{
            **connection_options(settings),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": LINGER_MS,
            "allow_auto_create_topics": False,
            **options,
        }
    )


def make_consumer(settings: KafkaSettings, *, client_id: str, group: str | None, **options: Any) -> KafkaConsumer:
    """Return a consumer of committed records that commits nothing by itself; the caller closes it.

    Members of a group use the cooperative-sticky assignor: an eager one would take every partition from everyone
    at each deploy.
    """
    member: dict[str, Any] = {}
    if group is not None:
        member = {
            "group_id": settings.topic_prefix + group,
            "session_timeout_ms": round(settings.session_timeout_s * 1000),
            "heartbeat_interval_ms": 1000,
            "partition_assignment_strategy": [CooperativeStickyAssignor],
        }
    return KafkaConsumer(
        **{
            **connection_options(settings),
            "client_id": client_id,
            "isolation_level": "read_committed",
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "allow_auto_create_topics": False,
            **member,
            **options,
        }
    )


def make_admin(settings: KafkaSettings, *, client_id: str, **options: Any) -> KafkaAdminClient:
    """Return an admin client; the caller closes it."""
    return KafkaAdminClient(**{**connection_options(settings), "client_id": client_id, **options})


def _async_options(settings: KafkaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "request_timeout_ms": round(settings.request_timeout_s * 1000),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password and settings.sasl_password.get_secret_value()
    return options


def make_async_consumer(settings: KafkaSettings, *, client_id: str, **options: Any) -> AIOKafkaConsumer:
    """Return an aiokafka consumer of committed records, without a group unless `options` name one."""
    return AIOKafkaConsumer(
        **{
            **_async_options(settings),
            "client_id": client_id,
            "isolation_level": "read_committed",
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            **options,
        }
    )


def make_async_producer(settings: KafkaSettings, *, client_id: str, **options: Any) -> AIOKafkaProducer:
    """Return an idempotent aiokafka producer (transactional where `options` name an id)."""
    return AIOKafkaProducer(
        **{
            **_async_options(settings),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            **options,
        }
    )
