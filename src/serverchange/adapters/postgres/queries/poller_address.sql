-- name: tell_address
-- Put a poller's address in the place of its earlier one.
INSERT INTO poller_address (process, url, told_at)
VALUES (%(process)s, %(url)s, COALESCE(%(now)s, clock_timestamp()))
ON CONFLICT (process) DO UPDATE
SET url = excluded.url,
    told_at = excluded.told_at;

-- name: forget_addresses
-- Drop the addresses of pollers that are gone.
DELETE FROM poller_address
WHERE told_at < COALESCE(%(now)s, clock_timestamp()) - make_interval(secs => %(kept_s)s);

-- name: load_addresses
-- The addresses told lately.
SELECT process, url
FROM poller_address
WHERE told_at >= COALESCE(%(now)s, clock_timestamp()) - make_interval(secs => %(kept_s)s)
ORDER BY process;
