"""Which partitions the members of a consumer group hold, as the brokers know it. Blocking: call it on a thread."""

from __future__ import annotations

from typing import Any

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.kafka.topics import topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import Topic


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
    admin = make_admin(settings, client_id=client_id)
    try:
        name = settings.topic_prefix + group
        described: dict[str, Any] = admin.describe_groups([name])[name]
    finally:
        admin.close()
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


def _assigned_topics(member: dict[str, Any]) -> list[dict[str, Any]]:
    assignment = member["member_assignment"]
    return list(assignment["assigned_partitions"]) if isinstance(assignment, dict) else []
