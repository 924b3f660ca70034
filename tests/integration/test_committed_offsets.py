"""What was committed is known as soon as a restarted broker answers, or it is said to be unknown; never forgotten."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from serverchange.adapters.kafka.clients import make_consumer
from serverchange.adapters.kafka.committed_offsets import CommittedOffsets
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.embedded.kafka import EmbeddedKafka
from serverchange.topics import CHANNEL_EVENTS

pytestmark = pytest.mark.slow

GROUP = "outbox-test"
COMMITS = 300
"""So many that the coordinator is still loading them when the broker already answers."""
WAIT_S = 60


def test_an_offset_is_never_forgotten_while_a_restarted_broker_loads_it(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, partitions=4)
        apply_topics(settings)
        topic = topic_name(settings, CHANNEL_EVENTS)
        committer = make_consumer(settings, client_id="test", group=None, group_id=GROUP)
        for offset in range(1, COMMITS + 1):
            committer.commit({TopicPartition(topic, 1): OffsetAndMetadata(offset, "", -1)})
        committer.close()
        broker.kill()
        broker.start()
        offsets = CommittedOffsets(settings, client_id="test")
        answers: list[int | None] = []
        deadline_s = time.monotonic() + WAIT_S
        while COMMITS not in answers:
            assert time.monotonic() < deadline_s
            try:
                answers.append(offsets.read(GROUP, topic, 1))
            except KafkaError:
                offsets.close()
        assert answers == [COMMITS]
        assert offsets.read("another group", topic, 1) is None
        offsets.close()
