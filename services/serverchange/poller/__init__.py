"""The poller asks the platform which cluster a channel lives on.

Reads: `channel-events` (as a member of the group `pollers`), the projection at its start, the platform's lookup APIs.
Decides: whom to ask next (`tracker/lookup_schedule.py`); whether an answer would alter belief (`channel_state.py`).
Writes: `cluster.observed` to `channel-events`, `clusters`, `channel-live`, and `channel_freshness` in Postgres.
"""
