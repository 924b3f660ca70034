"""Every log event's name, `noun.past_participle`; what varies goes into fields.

Levels: info, an operator would tell a colleague; warning, it healed by itself; error, someone must act.
"""

from __future__ import annotations

from enum import StrEnum


class LogEvent(StrEnum):
    """The names; `docs/logs.md` lists them."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPING = "process.stopping"
    PROCESS_STOPPED = "process.stopped"
    PROCESS_FAILED = "process.failed"
    HEALTH_SERVED = "health.served"
    API_SERVED = "api.served"
    READINESS_CHANGED = "readiness.changed"
    TOPIC_CREATED = "topic.created"
    KAFKA_LOST = "kafka.lost"
    KAFKA_FOUND = "kafka.found"
    POSTGRES_LOST = "postgres.lost"
    POSTGRES_FOUND = "postgres.found"
    MIGRATION_APPLIED = "migration.applied"
    BATCH_APPLIED = "batch.applied"
    BATCH_RETRIED = "batch.retried"
    BATCH_SPLIT = "batch.split"
    RECORD_REFUSED = "record.refused"
    LOG_HOLE_PASSED = "log_hole.passed"
    LOG_MISMATCH_FOUND = "log_mismatch.found"
    OUTBOX_PUBLISHED = "outbox.published"
    OUTBOX_COMPARED = "outbox.compared"
    OUTBOX_REPAIRED = "outbox.repaired"
    OUTBOX_FENCED = "outbox.fenced"
    PARTITIONS_ASSIGNED = "partitions.assigned"
    MEMBERSHIP_LOST = "membership.lost"
    PARTITIONS_REVOKED = "partitions.revoked"
    LOOKUP_FAILED = "lookup.failed"
    CLUSTER_OBSERVED = "cluster.observed"
    SERVERS_CHANGED = "servers.changed"
    CLUSTER_CHANGED = "cluster.changed"
    NOTICE_HEARD = "notice.heard"
    LINK_OPENED = "link.opened"
    LINK_CLOSED = "link.closed"
    LINK_REFUSED = "link.refused"
    HOST_REFUSED = "host.refused"
    HANDOVER_STARTED = "handover.started"
    HANDOVER_CONFIRMED = "handover.confirmed"
    HANDOVER_ENDED = "handover.ended"
    MOVES_HELD = "moves.held"
    MOVES_RESUMED = "moves.resumed"
    CHANNEL_PASSED_OVER = "channel.passed_over"
    ACCOUNTS_FULL = "accounts.filled"
    JOIN_UNCONFIRMED = "join.unconfirmed"
    TOKEN_CHECKED = "token.checked"  # noqa: S105  (an event's name, no secret)
    TOKEN_UNCHECKED = "token.unchecked"  # noqa: S105
    TOKEN_REFUSED = "token.refused"  # noqa: S105
    LINES_DROPPED = "lines.dropped"
    REPORTS_HELD = "reports.held"
    DRAIN_ORDERED = "drain.ordered"
    DRAIN_STARTED = "drain.started"
    DRAIN_ENDED = "drain.ended"
    REQUEST_FAILED = "request.failed"
