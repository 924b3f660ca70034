"""What tells one log from another: the topic's id, the ends of a partition, the digest of one record, a key's home.

A topic that was deleted and made anew, restored from a backup or truncated has the same name; its id, its ends or
the record at a known offset differ.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from kafka.partitioner.default import murmur2

_HOMES_CACHED: Final = 65_536
"""Keys whose partition is remembered: hashing one in Python takes 3 microseconds."""


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """A topic as the brokers know it: `topic_id` differs for a topic made anew under the same name."""

    name: str
    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Ends:
    """A partition's first offset (the low watermark) and the offset behind its last record."""

    low: int
    end: int


def record_sha256(key: bytes | None, value: bytes | None, timestamp_ms: int) -> bytes:
    """Return the digest of a record: lengths go first, so that no two records run into the same bytes."""
    digest = hashlib.sha256()
    for part in (key, value):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    digest.update(b"%d" % timestamp_ms)
    return digest.digest()


@lru_cache(maxsize=_HOMES_CACHED)
def home_partition(key: bytes, partitions: int) -> int:
    """Return the partition where every record with `key` belongs: Kafka's default (murmur2) of Java and kafka-python.

    librdkafka's default is another (CRC32): with `partitioner=murmur2_random` it agrees.
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
