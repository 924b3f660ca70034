-- Shards told to give their channels away for good. A shard reads its row beside the brake and leaves its group; one that
-- starts under a name with a row stays idle until the row is gone.

CREATE TABLE fleet_drain (
    process     text        PRIMARY KEY,              -- process.name of the shard
    ordered_at  timestamptz NOT NULL,
    ordered_by  text        NOT NULL
);
