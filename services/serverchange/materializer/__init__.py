"""The materializer keeps Postgres equal to the fold of the log, and publishes what the fold decided.

Reads: `channel-events` (a Faust worker; position in Postgres, never in Kafka), the projection's rows of each batch.
Decides: nothing by itself: it applies the pure rule of `tracker/channel_state.py`; refuses a log that does not match.
Writes: the projection in one transaction a batch; `cluster-changes` and `dead-letters` through the fenced outbox.
"""
