"""The state-query API answers where channels are, how fresh that is, and streams the changes.

Reads: the projection in Postgres, `cluster-changes`, `clusters` and `handovers`.
Decides: who may write (named, hashed tokens) and whether a read is as new as its asker demands.
Writes: `channel.tracked`, `channel.untracked`, `channel.pinned`, `channel.unpinned` to `channel-events`.
"""
