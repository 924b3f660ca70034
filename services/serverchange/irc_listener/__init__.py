"""The IRC listener hears notices for channels that no shard holds, through anonymous links.

Reads: `cluster-changes` (as a member of the group `listeners`), `shard-holdings`, the clusters' IRC servers.
Decides: which link a channel is on (`tracker/handover.py`); it delivers no chat.
Writes: `server-change.received` and `channel.doubted` to `channel-events`.
"""
