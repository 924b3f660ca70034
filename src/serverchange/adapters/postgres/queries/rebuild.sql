-- Queries of a rebuild. The shadow tables stand in schema `rebuild`, made by the same migrations, so that indexes and
-- constraints keep their names when the tables take the place of the live ones.

-- name: shadow_exists
SELECT to_regclass('rebuild.log_position') IS NOT NULL

-- name: live_positions
SELECT partition, topic_id, position, last_sha256, last_offset, appended_ms, rules_version, generation, published,
       caught_up_at
FROM public.log_position
ORDER BY partition

-- name: lock_live
-- Every other transaction of the projection starts with this table: they all wait until the swap is done.
LOCK TABLE public.log_position IN ACCESS EXCLUSIVE MODE

-- name: channels_that_differ
-- Rows that one side has and the other has not; where a channel stands in the log may differ (a copied topic).
SELECT count(*) FROM (
    (SELECT channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version, since_ms,
            kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence
     FROM rebuild.channel_state
     EXCEPT
     SELECT channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version, since_ms,
            kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence
     FROM public.channel_state)
    UNION ALL
    (SELECT channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version, since_ms,
            kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence
     FROM public.channel_state
     EXCEPT
     SELECT channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version, since_ms,
            kind, labels, wanting, pinned, room_id, penalty, penalty_at_ms, evidence
     FROM rebuild.channel_state)
) AS d

-- name: changes_that_differ
SELECT count(*) FROM (
    (SELECT channel, version, what, previous, cluster, since_ms, kind, labels, account, evidence
     FROM rebuild.cluster_change
     EXCEPT
     SELECT channel, version, what, previous, cluster, since_ms, kind, labels, account, evidence
     FROM public.cluster_change)
    UNION ALL
    (SELECT channel, version, what, previous, cluster, since_ms, kind, labels, account, evidence
     FROM public.cluster_change
     EXCEPT
     SELECT channel, version, what, previous, cluster, since_ms, kind, labels, account, evidence
     FROM rebuild.cluster_change)
) AS d

-- name: note_republications
-- The channels whose newest change is not the one that subscribers have.
INSERT INTO rebuild.republication (channel, partition, version)
SELECT d.channel, c.partition, c.version
FROM (
    SELECT * FROM (
        SELECT DISTINCT ON (channel) channel, version, what, previous, cluster, since_ms, kind, labels, account,
               evidence
        FROM rebuild.cluster_change ORDER BY channel, version DESC
    ) AS fresh
    EXCEPT
    SELECT * FROM (
        SELECT DISTINCT ON (channel) channel, version, what, previous, cluster, since_ms, kind, labels, account,
               evidence
        FROM public.cluster_change ORDER BY channel, version DESC, generation DESC
    ) AS live
) AS d
JOIN rebuild.cluster_change AS c ON c.channel = d.channel AND c.version = d.version

-- name: keep_republications
-- What an earlier swap still owes, and this one would not publish by itself.
INSERT INTO rebuild.republication (channel, partition, version)
SELECT o.channel, c.partition, c.version
FROM public.republication AS o
JOIN rebuild.cluster_change AS c ON c.channel = o.channel AND c.version = o.version
ON CONFLICT (channel) DO NOTHING

-- name: raise_generation
UPDATE rebuild.cluster_change SET generation = %(generation)s

-- name: keep_generations
-- Nothing differs: each change keeps the generation and so the id under which it was published.
UPDATE rebuild.cluster_change AS r SET generation = p.generation
FROM public.cluster_change AS p
WHERE p.channel = r.channel AND p.version = r.version AND p.generation <> r.generation

-- name: finish_positions
UPDATE rebuild.log_position AS r
SET generation = %(generation)s,
    caught_up_at = (SELECT p.caught_up_at FROM public.log_position AS p WHERE p.partition = r.partition),
    published = coalesce((
        SELECT least(p.published, r.position) FROM public.log_position AS p
        WHERE p.partition = r.partition AND p.topic_id = r.topic_id
    ), 0)

-- name: swap_tables
DROP SCHEMA IF EXISTS rebuilt_before CASCADE;
CREATE SCHEMA rebuilt_before;
ALTER TABLE public.channel_state SET SCHEMA rebuilt_before;
ALTER TABLE public.cluster_change SET SCHEMA rebuilt_before;
ALTER TABLE public.dead_letter SET SCHEMA rebuilt_before;
ALTER TABLE public.log_position SET SCHEMA rebuilt_before;
ALTER TABLE public.republication SET SCHEMA rebuilt_before;
ALTER TABLE rebuild.channel_state SET SCHEMA public;
ALTER TABLE rebuild.cluster_change SET SCHEMA public;
ALTER TABLE rebuild.dead_letter SET SCHEMA public;
ALTER TABLE rebuild.log_position SET SCHEMA public;
ALTER TABLE rebuild.republication SET SCHEMA public;
DROP SCHEMA rebuild CASCADE;
DROP SCHEMA rebuilt_before CASCADE;

-- name: compared_channels
SELECT channel, seq, known_after, status, cluster, left_cluster, left_at_ms, verified, doubts, version, since_ms,
       kind, labels, wanting::text, pinned, room_id, penalty, penalty_at_ms, evidence
FROM channel_state ORDER BY channel

-- name: compared_changes
SELECT channel || '/' || version, what, previous, cluster, since_ms, kind, labels, account, evidence
FROM cluster_change ORDER BY channel, version

-- name: compared_dead_letters
SELECT topic_id || '/' || partition || '/' || log_offset, reason, sqlstate, key, value, appended_ms
FROM dead_letter ORDER BY topic_id COLLATE "C", partition, log_offset
