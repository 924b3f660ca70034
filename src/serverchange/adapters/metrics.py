"""Every metric, in one typed list with a line each; `docs/metrics.md` is generated from it.

Labels are bounded sets, never a channel; names end in their unit. Buckets are chosen where the promises are: an
event is visible within 20 ms, a handover within 3 s, a takeover within 15 s.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 15, 30, 60, 120, 300)

READY = Gauge("serverchange_ready", "1 while the process can do its work, 0 while /readyz answers 503.")
EVENTS_PUBLISHED = Counter(
    "serverchange_events_published_total", "Events that Kafka acknowledged, by topic.", ["topic"]
)
EVENTS_UNPUBLISHED = Gauge("serverchange_events_unpublished", "Events handed to the producer and not acknowledged yet.")
LOOKUPS = Counter(
    "serverchange_lookups_total", "Requests to the platform's lookup APIs, by route and outcome.", ["route", "outcome"]
)
RECORDS_FOLDED = Counter("serverchange_records_folded_total", "Records of channel-events folded into the tables.")
CHANGES_DECIDED = Counter("serverchange_changes_decided_total", "Changes decided by the fold, by what.", ["what"])
CHANGES_PUBLISHED = Counter("serverchange_changes_published_total", "Changes published to cluster-changes.")
DEAD_LETTERS = Counter("serverchange_dead_letters_total", "Records that could not be events.")
LOG_HOLES = Counter("serverchange_log_holes_total", "Offsets without a record that were passed.")
LAG = Gauge("serverchange_lag_records", "Records of owned partitions not yet folded.")
OUTBOX_LAG = Gauge("serverchange_outbox_lag_records", "Changes and dead letters decided and not yet published.")
OUTBOX_REPAIRS = Counter(
    "serverchange_outbox_repairs_total",
    "Channels whose last record on cluster-changes was missing or old, republished.",
)
BATCH_SECONDS = Histogram("serverchange_batch_seconds", "Seconds of one fold transaction.", buckets=_SECONDS)
PARTITIONS_OWNED = Gauge("serverchange_partitions_owned", "Partitions that this process holds.")
CHANNELS = Gauge("serverchange_channels", "Channels of this process, by set: wanted or confirmed.", ["set"])
CHANNEL_SIDES = Gauge(
    "serverchange_channel_sides",
    "Wanted channels of this process by how many links read them: 0, 1, or 2 and more, as in a handover's overlap.",
    ["sides"],
)
CHANNELS_FOREIGN = Gauge(
    "serverchange_channels_foreign",
    "Channels of this process's partitions that ask for another account: no shard here joins them.",
)
CHANNELS_WITHOUT_ACCOUNT = Gauge(
    "serverchange_channels_without_account", "Channels to be read for which no account of this process has room yet."
)
MOVES_HELD = Gauge("serverchange_moves_held", "Moves decided and held back by `serverchange fleet hold`.")
LINKS = Gauge("serverchange_links", "IRC links of this process, by state.", ["state"])
LINES_RECEIVED = Counter("serverchange_lines_received_total", "Chat lines received, by outcome.", ["outcome"])
NOTICES = Counter("serverchange_notices_total", "Notices heard on links, by outcome: written or repeated.", ["outcome"])
HANDOVERS = Counter("serverchange_handovers_total", "Handovers ended, by cause and outcome.", ["cause", "outcome"])
HANDOVER_SECONDS = Histogram(
    "serverchange_handover_seconds", "Seconds from a handover's start to the new side's confirmation.", buckets=_SECONDS
)
HANDOVER_OVERLAP_SECONDS = Histogram(
    "serverchange_handover_overlap_seconds",
    "Seconds for which both sides of a handover were confirmed.",
    buckets=_SECONDS,
)
HANDOVER_GAP_SECONDS = Histogram(
    "serverchange_handover_gap_seconds",
    "Seconds in which a channel had no confirmed side, from losing its last to confirming the next.",
    buckets=_SECONDS,
)
BUDGET_USED = Counter("serverchange_budget_used_total", "JOINs and logins sent, by kind.", ["kind"])
BUDGET_WAITING = Gauge("serverchange_budget_waiting", "JOINs and logins that wait for budget, by kind.", ["kind"])
API_REQUESTS = Histogram(
    "serverchange_api_request_seconds",
    "Seconds of one API request, by route and status.",
    ["route", "status"],
    buckets=_SECONDS,
)
API_STREAMS = Gauge("serverchange_api_streams", "Open streams of changes (SSE).")


def exposition(registry: CollectorRegistry = REGISTRY) -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest(registry)
