-- Queries of the projection: the fold of channel-events, and where in the log it stands.
-- Text arrays travel as one text with spaces between (labels and event ids hold none), since unnest needs arrays of
-- one length; an empty text stands for NULL where the column has no empty values.

-- name: create_positions
-- The rows of partitions that nobody has folded yet; the newest generation counts for all partitions.
INSERT INTO log_position (partition, topic_id, position, appended_ms, rules_version, generation)
SELECT u.partition, %(topic_id)s, 0, 0, %(rules_version)s, (SELECT coalesce(max(generation), 1) FROM log_position)
FROM unnest(%(partitions)s::integer[]) AS u (partition)
ON CONFLICT (partition) DO NOTHING

-- name: adopt_topic
-- Nothing was folded yet, so a topic made anew may take its place.
UPDATE log_position SET topic_id = %(topic_id)s
WHERE partition = ANY(%(partitions)s) AND position = 0 AND topic_id <> %(topic_id)s

-- name: load_positions
SELECT partition, topic_id, position, last_sha256, last_offset, appended_ms, rules_version, generation, published,
       caught_up_at
FROM log_position
WHERE partition = ANY(%(partitions)s)
ORDER BY partition

-- name: load_all_positions
SELECT partition, topic_id, position, last_sha256, last_offset, appended_ms, rules_version, generation, published,
       caught_up_at
FROM log_position
ORDER BY partition

-- name: lock_positions
-- In partition order, so that two workers that overlap wait for each other instead of dead-locking.
SELECT partition, topic_id, position, last_sha256, last_offset, appended_ms, rules_version, generation, published,
       caught_up_at
FROM log_position
WHERE partition = ANY(%(partitions)s)
ORDER BY partition
FOR UPDATE

-- name: load_channels
SELECT partition, channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version,
       since_ms, kind, wanting::text, pinned, room_id, penalty, penalty_at_ms, array_to_string(evidence, ' ')
FROM channel_state
WHERE channel = ANY(%(channels)s)

-- name: load_partitions
SELECT partition, channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version,
       since_ms, kind, wanting::text, pinned, room_id, penalty, penalty_at_ms, array_to_string(evidence, ' ')
FROM channel_state
WHERE partition = ANY(%(partitions)s)

-- name: store_seqs
-- Records that altered nothing else: the row stays on its page.
UPDATE channel_state AS s SET seq = u.seq
FROM unnest(%(channels)s::text[], %(seqs)s::bigint[]) AS u (channel, seq)
WHERE s.channel = u.channel

-- name: store_channels
INSERT INTO channel_state AS s (
    partition, channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version,
    since_ms, kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence
)
SELECT u.partition, u.channel, u.seq, u.known_after, u.status, nullif(u.cluster, ''), nullif(u.left_cluster, ''),
       u.left_at_ms, u.verified, u.doubts, u.version, u.since_ms, u.kind, string_to_array(u.labels, ' '),
       u.wanting::jsonb, nullif(u.pinned, ''), nullif(u.room_id, ''), u.penalty, u.penalty_at_ms,
       string_to_array(u.evidence, ' ')
FROM unnest(
    %s::integer[], %s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::bigint[],
    %s::boolean[], %s::smallint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[],
    %s::text[], %s::integer[], %s::bigint[], %s::text[]
) AS u (
    partition, channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version,
    since_ms, kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence
)
ON CONFLICT (channel) DO UPDATE SET
    partition = excluded.partition, seq = excluded.seq, known_after = excluded.known_after, status = excluded.status,
    cluster = excluded.cluster, left_cluster = excluded.left_cluster, left_at_ms = excluded.left_at_ms,
    verified = excluded.verified, doubts = excluded.doubts, version = excluded.version, since_ms = excluded.since_ms,
    kind = excluded.kind, labels = excluded.labels, wanting = excluded.wanting, pinned = excluded.pinned,
    room_id = excluded.room_id, penalty = excluded.penalty, penalty_at_ms = excluded.penalty_at_ms,
    evidence = excluded.evidence

-- name: store_changes
INSERT INTO cluster_change (
    channel, generation, version, what, previous, cluster, since_ms, kind, labels, account, evidence, partition,
    log_offset, traceparent
)
SELECT u.channel, u.generation, u.version, u.what, nullif(u.previous, ''), nullif(u.cluster, ''), u.since_ms, u.kind,
       string_to_array(u.labels, ' '), nullif(u.account, ''), string_to_array(u.evidence, ' '), u.partition,
       u.log_offset, nullif(u.traceparent, '')
FROM unnest(
    %s::text[], %s::integer[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[],
    %s::text[], %s::text[], %s::text[], %s::integer[], %s::bigint[], %s::text[]
) AS u (
    channel, generation, version, what, previous, cluster, since_ms, kind, labels, account, evidence, partition,
    log_offset, traceparent
)

-- name: store_dead_letter
INSERT INTO dead_letter (topic_id, partition, log_offset, topic, reason, sqlstate, key, value, appended_ms)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)

-- name: store_hole
INSERT INTO log_hole (partition, first_offset, next_offset, kind, noted_at)
VALUES (%(partition)s, %(first_offset)s, %(next_offset)s, %(kind)s, %(now)s)
ON CONFLICT (partition, first_offset) DO UPDATE SET next_offset = excluded.next_offset, kind = excluded.kind

-- name: store_positions
UPDATE log_position AS p
SET position = u.position, last_sha256 = u.last_sha256, last_offset = u.last_offset, appended_ms = u.appended_ms
FROM unnest(%s::integer[], %s::bigint[], %s::bytea[], %s::bigint[], %s::bigint[])
    AS u (partition, position, last_sha256, last_offset, appended_ms)
WHERE p.partition = u.partition

-- name: store_caught_up
-- The tables were seen at the log's end: `now` is from before the end was asked for.
UPDATE log_position AS p SET caught_up_at = %(now)s
FROM unnest(%(partitions)s::integer[], %(ends)s::bigint[]) AS u (partition, end_offset)
WHERE p.partition = u.partition AND p.position >= u.end_offset

-- name: load_unpublished_changes
-- What the outbox still owes for one partition, in log order.
SELECT channel, generation, version, what, previous, cluster, since_ms, kind, labels, account, evidence, log_offset,
       traceparent
FROM cluster_change
WHERE partition = %(partition)s AND log_offset >= %(since_offset)s AND log_offset < %(before_offset)s
ORDER BY log_offset
LIMIT %(limit)s

-- name: load_unpublished_dead_letters
SELECT topic_id, log_offset, topic, reason, sqlstate, key, value, appended_ms
FROM dead_letter
WHERE partition = %(partition)s AND log_offset >= %(since_offset)s AND log_offset < %(before_offset)s
ORDER BY log_offset
LIMIT %(limit)s

-- name: load_outbox_work
-- For each partition: the lower bound of what is published, the newest offset that left something to publish, and
-- whether a rebuild left something to publish again.
SELECT p.partition, p.generation, p.published,
       greatest(
           (SELECT max(c.log_offset) FROM cluster_change AS c WHERE c.partition = p.partition),
           (SELECT max(d.log_offset) FROM dead_letter AS d WHERE d.partition = p.partition)
       ) AS newest,
       EXISTS (SELECT 1 FROM republication AS r WHERE r.partition = p.partition) AS republish
FROM log_position AS p
WHERE p.partition = ANY(%(partitions)s)
ORDER BY p.partition

-- name: load_republications
SELECT c.channel, c.generation, c.version, c.what, c.previous, c.cluster, c.since_ms, c.kind, c.labels, c.account,
       c.evidence, c.log_offset, c.traceparent
FROM republication AS r
JOIN cluster_change AS c ON c.channel = r.channel AND c.version = r.version
WHERE r.partition = %(partition)s
ORDER BY c.log_offset
LIMIT %(limit)s

-- name: delete_republications
DELETE FROM republication WHERE partition = %(partition)s AND channel = ANY(%(channels)s)

-- name: store_published
UPDATE log_position SET published = greatest(published, %(published)s) WHERE partition = %(partition)s

-- name: load_refused
-- Records that an earlier transaction could not store: a rebuild makes the same dead letters of them.
SELECT partition, log_offset, reason, sqlstate
FROM dead_letter
WHERE topic_id = %(topic_id)s AND sqlstate IS NOT NULL

-- name: load_newest_published
-- The newest change of each channel of one partition, of those that are surely published.
SELECT DISTINCT ON (c.channel) c.channel, c.generation, c.version
FROM cluster_change AS c
JOIN log_position AS p ON p.partition = c.partition
WHERE c.partition = %(partition)s AND c.log_offset < p.published
ORDER BY c.channel, c.version DESC, c.generation DESC

-- name: store_republications
INSERT INTO republication (channel, partition, version)
SELECT u.channel, %(partition)s, u.version FROM unnest(%(channels)s::text[], %(versions)s::bigint[]) AS u (channel, version)
ON CONFLICT (channel) DO UPDATE SET version = excluded.version
