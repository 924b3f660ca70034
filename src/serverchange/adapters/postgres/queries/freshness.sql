-- When a lookup last agreed with what we believe. No part of the fold: written in batches by pollers.

-- name: store_freshness
-- Only where the version still stands; in the channels' order, so that two pollers' batches cannot deadlock. An older
-- moment never replaces a newer one of the same version. Returns what is stored or was newer already.
INSERT INTO channel_freshness AS f (channel, version, verified_at)
SELECT s.channel, s.version, u.verified_at
FROM unnest(%(channels)s::text[], %(versions)s::bigint[], %(moments)s::timestamptz[])
    AS u (channel, version, verified_at)
JOIN channel_state AS s ON s.channel = u.channel AND s.version = u.version
ORDER BY s.channel
ON CONFLICT (channel) DO UPDATE SET
    version = excluded.version,
    verified_at = CASE
        WHEN f.version = excluded.version THEN greatest(f.verified_at, excluded.verified_at)
        ELSE excluded.verified_at
    END
RETURNING f.channel

-- name: load_freshness
-- For the channels of one partition, where the version still stands.
SELECT f.channel, f.verified_at
FROM channel_state AS s
JOIN channel_freshness AS f ON f.channel = s.channel AND f.version = s.version
WHERE s.partition = %(partition)s
