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
    admin = make_admin(settings, client_id=client_id)
    try:
        name = settings.topic_prefix + group
        described: dict[str, Any] = admin.describe_groups([name])[name]
    finally:
        admin.close()
    wanted = topic_name(settings, topic)
    return frozenset(
        int(partition)
        for member in described["members"]
        for assigned in _assigned_topics(member)
        if assigned["topic"] == wanted
        for partition in assigned["partitions"]
    )


def _assigned_topics(member: dict[str, Any]) -> list[dict[str, Any]]:
    assignment = member["member_assignment"]
    return list(assignment["assigned_partitions"]) if isinstance(assignment, dict) else []
