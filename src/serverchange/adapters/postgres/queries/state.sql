-- Reads of the state API. `now_ms` and the limits of flapping are parameters: a penalty is stored as of its time and
-- decays when read. A verification counts only for the version that it was about.

-- name: find_channels
SELECT s.channel, s.status, s.cluster, s.left_cluster, s.verified, f.verified_at, s.since_ms, s.version, s.kind,
       s.labels, s.wanting::text, s.pinned, s.room_id,
       s.penalty > %(flapping_above)s AND
       s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s) > %(flapping_above)s,
       s.evidence
FROM channel_state AS s
LEFT JOIN channel_freshness AS f ON f.channel = s.channel AND f.version = s.version
WHERE s.channel = ANY(%(channels)s)

-- name: find_channel
-- The same for one name: a plain comparison is planned faster than an array of one.
SELECT s.channel, s.status, s.cluster, s.left_cluster, s.verified, f.verified_at, s.since_ms, s.version, s.kind,
       s.labels, s.wanting::text, s.pinned, s.room_id,
       s.penalty > %(flapping_above)s AND
       s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s) > %(flapping_above)s,
       s.evidence
FROM channel_state AS s
LEFT JOIN channel_freshness AS f ON f.channel = s.channel AND f.version = s.version
WHERE s.channel = %(channel)s

-- name: list_channels
-- One page in order of name: the key never changes, so pages neither skip nor repeat a channel while rows are written.
SELECT s.channel, s.status, s.cluster, s.left_cluster, s.verified, f.verified_at, s.since_ms, s.version, s.kind,
       s.labels, s.wanting::text, s.pinned, s.room_id,
       s.penalty > %(flapping_above)s AND
       s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s) > %(flapping_above)s,
       s.evidence
FROM channel_state AS s
LEFT JOIN channel_freshness AS f ON f.channel = s.channel AND f.version = s.version
WHERE s.channel > %(after)s
  AND (CASE WHEN %(status)s::text IS NULL THEN s.status <> 'untracked' ELSE s.status = %(status)s END)
  AND (%(label)s::text IS NULL OR %(label)s = ANY(s.labels))
  AND (%(kind)s::text IS NULL OR s.kind = %(kind)s)
  AND (%(verified)s::boolean IS NULL OR s.verified = %(verified)s)
  AND (%(pinned)s::boolean IS NULL OR (s.pinned IS NOT NULL) = %(pinned)s)
  AND (NOT %(flapping)s OR (
       s.penalty > %(flapping_above)s AND
       s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s) > %(flapping_above)s))
ORDER BY s.channel
LIMIT %(limit)s

-- name: list_channels_of_cluster
-- The same by cluster, along the index of cluster and channel.
SELECT s.channel, s.status, s.cluster, s.left_cluster, s.verified, f.verified_at, s.since_ms, s.version, s.kind,
       s.labels, s.wanting::text, s.pinned, s.room_id,
       s.penalty > %(flapping_above)s AND
       s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s) > %(flapping_above)s,
       s.evidence
FROM channel_state AS s
LEFT JOIN channel_freshness AS f ON f.channel = s.channel AND f.version = s.version
WHERE s.cluster = %(cluster)s AND s.status <> 'untracked' AND s.channel > %(after)s
  AND (%(status)s::text IS NULL OR s.status = %(status)s)
  AND (%(label)s::text IS NULL OR %(label)s = ANY(s.labels))
  AND (%(kind)s::text IS NULL OR s.kind = %(kind)s)
  AND (%(verified)s::boolean IS NULL OR s.verified = %(verified)s)
  AND (%(pinned)s::boolean IS NULL OR (s.pinned IS NOT NULL) = %(pinned)s)
  AND (NOT %(flapping)s OR (
       s.penalty > %(flapping_above)s AND
       s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s) > %(flapping_above)s))
ORDER BY s.channel
LIMIT %(limit)s

-- name: list_changes_of_channel
-- Newest first; `before_version` and `before_generation` are the last entry of the page before.
SELECT generation, version, what, previous, cluster, since_ms, labels, evidence, partition, log_offset
FROM cluster_change
WHERE channel = %(channel)s AND (version, generation) < (%(before_version)s, %(before_generation)s)
ORDER BY version DESC, generation DESC
LIMIT %(limit)s

-- name: find_change_at
-- The newest change at that moment. A change of labels keeps the `since` of the move before it, and its cluster.
SELECT version, what, previous, cluster, since_ms
FROM cluster_change
WHERE channel = %(channel)s AND since_ms <= %(at_ms)s
ORDER BY version DESC, generation DESC
LIMIT 1

-- name: load_progress
-- Where the fold stands, and since when each partition is known to have been complete.
SELECT partition, position, caught_up_at FROM log_position ORDER BY partition

-- name: count_verification_ages
-- How long ago lookups last agreed, for the overview; a join of both tables, so asked for rarely.
SELECT count(*) FILTER (WHERE f.verified_at > n.now - interval '10 minutes'),
       count(*) FILTER (WHERE f.verified_at <= n.now - interval '10 minutes' AND f.verified_at > n.now - interval '1 hour'),
       count(*) FILTER (WHERE f.verified_at <= n.now - interval '1 hour' AND f.verified_at > n.now - interval '1 day'),
       count(*) FILTER (WHERE f.verified_at <= n.now - interval '1 day'),
       count(*) FILTER (WHERE f.verified_at IS NULL),
       min(f.verified_at)
FROM channel_state AS s
CROSS JOIN (SELECT COALESCE(%(now)s::timestamptz, clock_timestamp()) AS now) AS n
LEFT JOIN channel_freshness AS f ON f.channel = s.channel AND f.version = s.version
WHERE s.status <> 'untracked' AND s.kind <> 'group'

-- name: count_channels
-- One pass over all channels for the overview; asked for every few seconds, never for each request.
SELECT coalesce(s.cluster, ''), s.status, count(*), count(*) FILTER (WHERE NOT s.verified),
       count(*) FILTER (WHERE s.penalty > %(flapping_above)s AND
           s.penalty * 0.5 ^ (greatest(0, %(now_ms)s::bigint - s.penalty_at_ms) / %(half_life_ms)s)
           > %(flapping_above)s)
FROM channel_state AS s
GROUP BY 1, 2
