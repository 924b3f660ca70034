"""Topics are made as the contracts say, and partitions of a keyed topic never change in place."""

import pytest

from serverchange.adapters.kafka.topics import TopicsError, apply_topics, plan_topics
from serverchange.adapters.settings import KafkaSettings
from serverchange.topics import ALL_TOPICS


def test_applied_topics_are_kept_by_the_next_apply(kafka: KafkaSettings) -> None:
    assert {plan.action for plan in apply_topics(kafka)} == {"keep"}


def test_every_topic_of_the_contracts_is_made_with_its_partitions(kafka: KafkaSettings) -> None:
    plans = {plan.name.removeprefix(kafka.topic_prefix): plan.partitions for plan in plan_topics(kafka)}
    assert plans == {topic.name: topic.partitions or kafka.partitions for topic in ALL_TOPICS}


def test_another_number_of_partitions_is_refused(kafka: KafkaSettings) -> None:
    more = kafka.model_copy(update={"partitions": kafka.partitions + 1})
    with pytest.raises(TopicsError, match="topics copy"):
        apply_topics(more)
