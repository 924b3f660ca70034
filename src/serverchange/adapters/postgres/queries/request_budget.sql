-- name: open_budget
-- Make the budget's row, full, unless it is there.
INSERT INTO request_budget (name, tokens, refilled_at, resume_at)
VALUES (%(name)s, %(capacity)s, clock_timestamp(), '-infinity')
ON CONFLICT (name) DO NOTHING;

-- name: lease_requests
-- Refill the bucket by this server's clock and take up to `wanted` whole requests out of it; `wait_s` says when one
-- more is there. The clock is read under the row's lock, and a clock set back refills nothing once and heals at once.
WITH locked AS MATERIALIZED (
    SELECT name, tokens, refilled_at, resume_at
    FROM request_budget
    WHERE name = %(name)s
    FOR UPDATE
), refilled AS MATERIALIZED (
    SELECT
        name,
        clock_timestamp() AS moment,
        resume_at,
        LEAST(
            %(capacity)s::double precision,
            tokens + %(per_second)s * GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - refilled_at)::double precision)
        ) AS tokens
    FROM locked
), leased AS MATERIALIZED (
    SELECT
        name,
        moment,
        tokens,
        CASE WHEN resume_at > moment THEN 0 ELSE LEAST(%(wanted)s, FLOOR(tokens)) END AS granted,
        CASE
            WHEN resume_at > moment THEN EXTRACT(EPOCH FROM resume_at - moment)::double precision
            ELSE GREATEST(0, (1 - tokens) / %(per_second)s)
        END AS wait_s
    FROM refilled
)
UPDATE request_budget AS budget
SET tokens = leased.tokens - leased.granted, refilled_at = leased.moment
FROM leased
WHERE budget.name = leased.name
RETURNING leased.granted::integer, leased.wait_s;

-- name: pause_requests
-- The platform said not to ask for `seconds`: nobody leases anything until then.
UPDATE request_budget
SET resume_at = GREATEST(resume_at, clock_timestamp() + make_interval(secs => %(seconds)s))
WHERE name = %(name)s;
