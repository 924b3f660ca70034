"""Makes the topics of `serverchange.topics` on a real cluster, and says what differs; never adds partitions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import ALL_TOPICS, Topic

_log = get_logger("topics")

READY_TIMEOUT_MS: Final = 30_000


class TopicsError(Exception):
    """A topic exists with other partitions, or Kafka refused; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What `apply` would do for one topic."""

    name: str
    action: Literal["create", "alter", "keep"]
    partitions: int
    config: tuple[tuple[str, str], ...]
    differs: tuple[str, ...] = ()


def topic_name(settings: KafkaSettings, topic: Topic) -> str:
    """Return the topic's name on this fleet's cluster."""
    return settings.topic_prefix + topic.name


def partitions_of(settings: KafkaSettings, topic: Topic) -> int:
    """Return how many partitions the contract asks for."""
    return topic.partitions or settings.partitions


def topic_exists(settings: KafkaSettings, topic: Topic, *, client_id: str) -> bool:
    """Return whether the topic is there: kafka-python's `send` waits a minute for one that is not.

    Raises:
        kafka.errors.KafkaError: no broker answered.
    """
    admin = make_admin(settings, client_id=client_id)
    try:
        return topic_name(settings, topic) in admin.list_topics()
    finally:
        admin.close()


def plan_topics(settings: KafkaSettings, topics: Iterable[Topic] = ALL_TOPICS) -> list[TopicPlan]:
    """Return what `apply_topics` would do, without doing it.

    Raises:
        TopicsError: a topic exists with another number of partitions.
    """
    admin = make_admin(settings, client_id="serverchange-topics")
    try:
        existing = set(admin.list_topics())
        return [_plan(admin, settings, topic, existing) for topic in topics]
    finally:
        admin.close()


def apply_topics(settings: KafkaSettings, topics: Iterable[Topic] = ALL_TOPICS) -> list[TopicPlan]:
    """Make or alter the topics until they are as the contracts say, wait until all have leaders, return the plan.

    Raises:
        TopicsError: a topic exists with another number of partitions: keys would change homes and lose their order.
    """
    plans = plan_topics(settings, topics)
    admin = make_admin(settings, client_id="serverchange-topics")
    try:
        for plan in plans:
            _apply(admin, settings, plan)
        admin.wait_for_topics([plan.name for plan in plans], timeout_ms=READY_TIMEOUT_MS)
    finally:
        admin.close()
    return plans


def _plan(admin: Any, settings: KafkaSettings, topic: Topic, existing: set[str]) -> TopicPlan:
    name, wanted = topic_name(settings, topic), partitions_of(settings, topic)
    if name not in existing:
        return TopicPlan(name, "create", wanted, topic.config)
    partitions = len(admin.describe_topics([name])[0]["partitions"])
    if partitions != wanted:
        raise TopicsError(
            f"topic {name} has {partitions} partitions, the settings say {wanted}: a keyed topic's partitions never "
            f"change in place. Set SERVERCHANGE_KAFKA_PARTITIONS={partitions}, or copy it: serverchange topics copy"
        )
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    described = admin.describe_configs([resource], config_filter="all")
    current = _config_values(described, name)
    differs = tuple(key for key, value in topic.config if current.get(key) != value)
    return TopicPlan(name, "alter" if differs else "keep", wanted, topic.config, differs)


def _config_values(described: Any, name: str) -> dict[str, str]:
    entries = next(iter(described.values()))[name]
    return {key: entry["value"] if isinstance(entry, dict) else entry for key, entry in entries.items()}


def _apply(admin: Any, settings: KafkaSettings, plan: TopicPlan) -> None:
    if plan.action == "create":
        request = {
            plan.name: {
                "num_partitions": plan.partitions,
                "replication_factor": settings.replication_factor,
                "configs": dict(plan.config),
            }
        }
        try:
            admin.create_topics(request)
        except TopicAlreadyExistsError:
            return
        _log.info(LogEvent.TOPIC_CREATED, topic=plan.name, partitions=plan.partitions)
    elif plan.action == "alter":
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, plan.name, configs=dict(plan.config))])
