"""A reconnector is a bot shard: it holds the channels of its partitions and moves them when they move.

Reads: `cluster-changes` (in the group `reconnectors`), `clusters`, `channel-live`, `shard-holdings`, IRC links.
Decides: make before break, a channel at a time (`tracker/handover.py`), within the shared budget (`tracker/budget.py`).
Writes: `chat-lines`, `shard-holdings`, `handovers`; `server-change.received`, `channel.doubted` to `channel-events`.
"""
