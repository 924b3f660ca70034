-- The trace that a change belongs to, from the event that decided it, for `cluster.changed`. No part of any comparison:
-- tables folded by an earlier release do not have it.

ALTER TABLE cluster_change ADD COLUMN traceparent text;
