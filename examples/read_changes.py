# ruff: noqa: T201 - a program for a terminal prints
"""Reads where every channel is, and every move as it happens, with kafka-python alone.

    python read_changes.py 127.0.0.1:9092

The topic `cluster-changes` is compacted, so reading it from the start gives a snapshot: the newest change of each
channel. After that come the changes. A channel's changes are ordered by (generation, version), whatever the arrival;
a record that is not newer than what is known is a repeat. A restart reads the snapshot again.
"""

import json
import sys

from kafka import KafkaConsumer, TopicPartition


def follow(bootstrap_servers, topic="cluster-changes"):
    """Yield (channel, change) for ever; `change` is the event's data: what, previous, cluster, version, since ..."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        isolation_level="read_committed",  # the writer's transactions: what it took back must not be seen
        enable_auto_commit=False,
    )
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    newest = {}
    for record in consumer:
        event = json.loads(record.value)
        channel, change = event["subject"], event["data"]
        order = (change["generation"], change["version"])
        if order > newest.get(channel, (0, 0)):
            newest[channel] = order
            yield channel, change


if __name__ == "__main__":
    for channel, change in follow(*sys.argv[1:]):
        print(f"{channel}: {change['what']}, {change.get('previous')} -> {change.get('cluster')}", flush=True)
