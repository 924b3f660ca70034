"""Which partitions the members of a consumer group hold, as the brokers know it. Blocking: call it on a thread."""

from __future__ import annotations

from typing import Any, Final

from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import Topic

COORDINATOR_TIMEOUT_S: Final = 15.0
"""A cluster that just started makes the topic of its groups' offsets with the first group it is asked for."""


def assigned_partitions(settings: KafkaSettings, *, group: str, topic: Topic, client_id: str) -> frozenset[int]:
    """Return the partitions of `topic` that members of `group` hold; a killed member's until its session is over.

    During a rebalance the brokers name no assignment: then the answer is empty, so ask more than once before believing
    that nobody holds a partition.

    Raises:
        kafka.errors.KafkaError: no broker answered.
    """
    held = member_partitions(settings, group=group, topic=topic, client_id=client_id)
    return frozenset().union(*held.values())


def member_partitions(
    settings: KafkaSettings, *, group: str, topic: Topic, client_id: str
) -> dict[str, frozenset[int]]:
    """Return what each member of `group` holds of `topic`, by its client id; nothing during a rebalance.

    Raises:
        kafka.errors.KafkaError: no broker answered.
    """
    described = _describe_group(settings, settings.topic_prefix + group, client_id)
    wanted = topic_name(settings, topic)
    held: dict[str, frozenset[int]] = {}
    for member in described["members"]:
        own = {
            int(partition)
            for assigned in _assigned_topics(member)
            if assigned["topic"] == wanted
            for partition in assigned["partitions"]
        }
        # A predecessor that still gives and its successor bear one name.
        held[member["client_id"]] = held.get(member["client_id"], frozenset()) | own
    return held


@retry(
    retry=retry_if_exception_type((CoordinatorLoadInProgressError, CoordinatorNotAvailableError)),
    stop=stop_after_delay(COORDINATOR_TIMEOUT_S),
    wait=wait_random(0.1, 0.5),
    reraise=True,
)
def _describe_group(settings: KafkaSettings, name: str, client_id: str) -> dict[str, Any]:
    admin = make_admin(settings, client_id=client_id)
    try:
        described: dict[str, Any] = admin.describe_groups([name])[name]
    finally:
        admin.close()
    return described


def _assigned_topics(member: dict[str, Any]) -> list[dict[str, Any]]:
    assignment = member["member_assignment"]
    return list(assignment["assigned_partitions"]) if isinstance(assignment, dict) else []
