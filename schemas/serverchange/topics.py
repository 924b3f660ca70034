"""Every topic: its key, its settings, and what its records mean. `serverchange topics apply` makes them.

Partitions of a keyed topic are never added in place: keys would change homes and lose their order; the way is
`serverchange topics copy` and a rebuild.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PARTITIONS_DEFAULT: Final = 48
"""They cap the number of shards and of materializers; the demo uses 12."""

_DAY_MS: Final = 86_400_000
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic's contract.

    Attributes:
        name: as in Kafka, before the settings' prefix.
        key: what the records' key is.
        purpose: what the topic is for, in one sentence.
        partitions: fixed number, or None for the number that the fleet is set up with.
        config: Kafka's topic settings, as `serverchange topics apply` sets and `serverchange doctor` checks them.
    """

    name: str
    key: str
    purpose: str
    config: tuple[tuple[str, str], ...]
    partitions: int | None = None


CHANNEL_EVENTS: Final = Topic(
    name="channel-events",
    key="channel",
    purpose="The source of truth: every fact about a channel, kept for ever; every table can be rebuilt from it.",
    config=(
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "LogAppendTime"),
    ),
)
CLUSTER_CHANGES: Final = Topic(
    name="cluster-changes",
    key="channel",
    purpose="Decisions for subscribers; the newest record of each channel is a snapshot. No tombstones.",
    config=(
        ("cleanup.policy", "compact"),
        ("min.compaction.lag.ms", str(30 * _DAY_MS)),
    ),
)
CLUSTERS: Final = Topic(
    name="clusters",
    key="cluster",
    purpose="Which servers a cluster has.",
    config=(("cleanup.policy", "compact"),),
    partitions=1,
)
CHANNEL_LIVE: Final = Topic(
    name="channel-live",
    key="channel",
    purpose="Which channels stream, and since when: a hint for priorities and ghosts, never folded.",
    config=(("cleanup.policy", "compact"),),
)
SHARD_HOLDINGS: Final = Topic(
    name="shard-holdings",
    key="partition",
    purpose="Handing partitions of channels over between shards.",
    config=(("cleanup.policy", "delete"), ("retention.ms", str(_DAY_MS))),
    partitions=1,
)
CHAT_LINES: Final = Topic(
    name="chat-lines",
    key="channel",
    purpose="Chat that the shards received, for the fleet's bot services.",
    config=(("cleanup.policy", "delete"), ("retention.ms", str(_HOUR_MS))),
)
HANDOVERS: Final = Topic(
    name="handovers",
    key="channel",
    purpose="What shards report of the handovers that ended, for people who watch; nothing decides by it.",
    config=(("cleanup.policy", "delete"), ("retention.ms", str(_DAY_MS))),
    partitions=1,
)
DEAD_LETTERS: Final = Topic(
    name="dead-letters",
    key="as received",
    purpose="Records that could not be events: original bytes, reason, topic, partition, offset.",
    config=(("cleanup.policy", "delete"), ("retention.ms", str(30 * _DAY_MS))),
)

ALL_TOPICS: Final = (
    CHANNEL_EVENTS,
    CLUSTER_CHANGES,
    CLUSTERS,
    CHANNEL_LIVE,
    SHARD_HOLDINGS,
    CHAT_LINES,
    HANDOVERS,
    DEAD_LETTERS,
)
