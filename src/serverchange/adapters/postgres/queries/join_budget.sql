-- name: open_budget
-- Make the budget's row unless it is there.
INSERT INTO join_budget (account, kind, moment)
VALUES (%(account)s, %(kind)s, COALESCE(%(now)s, clock_timestamp()))
ON CONFLICT (account, kind) DO NOTHING;

-- name: lock_budget
-- Take the budget for this transaction and advance its clock. A statement of its own: the next one must see what
-- those who held the lock before us wrote.
UPDATE join_budget
SET moment = GREATEST(moment, COALESCE(%(now)s, clock_timestamp()))
WHERE account = %(account)s AND kind = %(kind)s
RETURNING moment;

-- name: forget_leases
-- Drop leases that count for nothing any more.
DELETE FROM join_lease
WHERE account = %(account)s
  AND kind = %(kind)s
  AND CASE
          WHEN reported_at IS NULL THEN granted_at + make_interval(secs => %(unreported_s)s + %(span_s)s)
          ELSE reported_at + make_interval(secs => %(span_s)s)
      END <= %(moment)s;

-- name: grant_lease
-- Grant what is free, but no more than a portion, and say when the next lease stops counting.
WITH counting AS (
    SELECT
        CASE WHEN reported_at IS NULL THEN amount ELSE spent END AS weight,
        CASE
            WHEN reported_at IS NULL THEN granted_at + make_interval(secs => %(unreported_s)s + %(span_s)s)
            ELSE reported_at + make_interval(secs => %(span_s)s)
        END AS until
    FROM join_lease
    WHERE account = %(account)s AND kind = %(kind)s
), free AS (
    SELECT
        GREATEST(0, LEAST(%(wanted)s, %(portion)s, %(count)s - COALESCE(SUM(weight), 0)))::integer AS amount,
        COALESCE(EXTRACT(EPOCH FROM MIN(until) - %(moment)s), 0)::double precision AS retry_after_s
    FROM counting
    WHERE weight > 0 AND until > %(moment)s
), granted AS (
    INSERT INTO join_lease (account, kind, holder, amount, granted_at)
    SELECT %(account)s, %(kind)s, %(holder)s, amount, %(moment)s
    FROM free
    WHERE amount > 0
    RETURNING lease_id
)
SELECT free.amount, free.retry_after_s, granted.lease_id
FROM free
LEFT JOIN granted ON true;

-- name: report_lease
-- Say what was spent of a lease; its bytes have left. A lease forgotten meanwhile counts no more.
UPDATE join_lease AS lease
SET reported_at = GREATEST(budget.moment, COALESCE(%(now)s, clock_timestamp())), spent = LEAST(%(spent)s, lease.amount)
FROM join_budget AS budget
WHERE lease.lease_id = %(lease_id)s
  AND lease.reported_at IS NULL
  AND budget.account = lease.account
  AND budget.kind = lease.kind;

-- name: load_ledger
-- Every budget with its leases (none: one row of nulls) and its clock, all in seconds since 1970.
SELECT
    budget.account,
    budget.kind,
    EXTRACT(EPOCH FROM GREATEST(budget.moment, COALESCE(%(now)s, clock_timestamp())))::double precision AS moment,
    lease.holder,
    lease.amount,
    EXTRACT(EPOCH FROM lease.granted_at)::double precision AS granted_at,
    EXTRACT(EPOCH FROM lease.reported_at)::double precision AS reported_at,
    lease.spent
FROM join_budget AS budget
LEFT JOIN join_lease AS lease ON lease.account = budget.account AND lease.kind = budget.kind
ORDER BY budget.account, budget.kind, lease.lease_id;
