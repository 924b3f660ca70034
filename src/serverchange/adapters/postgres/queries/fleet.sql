-- name: report_shard
-- Put a shard's figures in the place of its earlier ones.
INSERT INTO fleet_report (
    process, account, wanted, confirmed, links, joins_waiting, logins_waiting, moves_held, foreign_count, waiting,
    reported_at
)
VALUES (
    %(process)s, %(account)s, %(wanted)s, %(confirmed)s, %(links)s, %(joins_waiting)s, %(logins_waiting)s,
    %(moves_held)s, %(foreign_count)s, %(waiting)s, COALESCE(%(now)s, clock_timestamp())
)
ON CONFLICT (process) DO UPDATE
SET account = excluded.account,
    wanted = excluded.wanted,
    confirmed = excluded.confirmed,
    links = excluded.links,
    joins_waiting = excluded.joins_waiting,
    logins_waiting = excluded.logins_waiting,
    moves_held = excluded.moves_held,
    foreign_count = excluded.foreign_count,
    waiting = excluded.waiting,
    reported_at = excluded.reported_at;

-- name: forget_reports
-- Drop what shards told that are gone for good.
DELETE FROM fleet_report
WHERE reported_at < COALESCE(%(now)s, clock_timestamp()) - make_interval(secs => %(kept_s)s);

-- name: load_reports
-- Every shard's figures and how many seconds old they are.
SELECT
    process, account, wanted, confirmed, links, joins_waiting, logins_waiting, moves_held, foreign_count, waiting,
    EXTRACT(EPOCH FROM COALESCE(%(now)s, clock_timestamp()) - reported_at)::double precision AS age_s
FROM fleet_report
ORDER BY process;

-- name: load_brake
-- Since when moves are held, by whom and why; no row while they are not.
SELECT held_at, held_by, reason
FROM fleet_brake;

-- name: hold
-- Pull the brake; held already, it stays as it was.
INSERT INTO fleet_brake (held_at, held_by, reason)
VALUES (COALESCE(%(now)s, clock_timestamp()), %(held_by)s, %(reason)s)
ON CONFLICT (only_row) DO NOTHING;

-- name: resume
-- Release the brake.
DELETE FROM fleet_brake
RETURNING held_at, held_by, reason;

-- name: load_drains
-- Every shard that was told to give its channels away, by name.
SELECT process, ordered_at, ordered_by
FROM fleet_drain
ORDER BY process;

-- name: is_drained
-- Whether this shard was told to give its channels away.
SELECT EXISTS (SELECT FROM fleet_drain WHERE process = %(process)s);

-- name: order_drain
-- Tell shards to give their channels away; one that was told already stays told.
INSERT INTO fleet_drain (process, ordered_at, ordered_by)
SELECT process, COALESCE(%(now)s, clock_timestamp()), %(ordered_by)s
FROM unnest(%(processes)s::text[]) AS process
ON CONFLICT (process) DO NOTHING;

-- name: cancel_drain
-- Let shards have channels again.
DELETE FROM fleet_drain
WHERE process = ANY(%(processes)s::text[])
RETURNING process;
