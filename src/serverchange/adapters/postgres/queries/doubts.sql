-- name: settled_doubts
-- Of doubts (channel, cluster that we want, partition and offset of the doubt in channel-events), those that the fold has
-- passed and a lookup has since answered as we want it.
SELECT doubt.channel
FROM unnest(%(channels)s::text[], %(clusters)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[])
    AS doubt (channel, cluster, partition, log_offset)
JOIN channel_state AS state ON state.channel = doubt.channel
JOIN log_position AS position ON position.partition = doubt.partition
WHERE position.position > doubt.log_offset
  AND state.verified
  AND state.cluster = doubt.cluster
  AND state.status = 'settled';
