-- name: lock_shares
-- One process at a time: what it counts must still be so when it writes.
LOCK TABLE channel_account IN SHARE ROW EXCLUSIVE MODE;

-- name: load_known
-- The accounts that these channels have.
SELECT channel, account
FROM channel_account
WHERE channel = ANY(%(channels)s);

-- name: count_channels
-- How many channels each account has.
SELECT account, COUNT(*)::integer
FROM channel_account
GROUP BY account;

-- name: keep_shares
-- Give channels their accounts, in place of earlier ones.
INSERT INTO channel_account (channel, account)
SELECT channel, account
FROM UNNEST(%(channels)s::text[], %(accounts)s::text[]) AS share (channel, account)
ON CONFLICT (channel) DO UPDATE
SET account = excluded.account;

-- name: release_channels
-- Nobody joins these channels any more.
DELETE FROM channel_account
WHERE channel = ANY(%(channels)s);
