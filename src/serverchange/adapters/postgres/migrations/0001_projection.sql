-- The projection of channel-events, and where in the log it stands. One transaction a batch writes all of it, so
-- these tables are the fold of the log up to log_position at every instant.

CREATE TABLE channel_state (
    channel        text     PRIMARY KEY COLLATE "C",
    partition      integer  NOT NULL,             -- of channel-events: pollers load what they own
    seq            bigint   NOT NULL,             -- records with this key folded so far
    known_after    bigint   NOT NULL,             -- seq of the last record that altered belief
    status         text     NOT NULL CHECK (status IN ('unknown', 'settled', 'moving', 'untracked')),
    cluster        text,                          -- believed; while moving the last one
    left_cluster   text,                          -- the one it last left
    left_at_ms     bigint   NOT NULL,
    verified       boolean  NOT NULL,
    doubts         smallint NOT NULL,
    version        bigint   NOT NULL,             -- changes published; never restarts
    since_ms       bigint   NOT NULL,             -- append time, milliseconds since 1970
    kind           text     NOT NULL CHECK (kind IN ('chat', 'group')),
    labels         text[]   NOT NULL,             -- what any service gave, sorted
    wanting        jsonb    NOT NULL,             -- [[service, [label, ...], account], ...]
    pinned         text,
    room_id        text,
    penalty        integer  NOT NULL,             -- route-flap penalty as of penalty_at_ms
    penalty_at_ms  bigint   NOT NULL,
    evidence       text[]   NOT NULL,
    CHECK (cluster IS NOT NULL OR status IN ('unknown', 'untracked'))
) WITH (fillfactor = 70);                         -- room for updates in place: most records touch no indexed column

CREATE INDEX channel_state_partition ON channel_state (partition);
CREATE INDEX channel_state_cluster ON channel_state (cluster, channel) WHERE status <> 'untracked';

CREATE TABLE cluster_change (
    channel      text    NOT NULL COLLATE "C",
    generation   integer NOT NULL,
    version      bigint  NOT NULL,
    what         text    NOT NULL CHECK (what IN ('first-seen', 'moved', 'labelled', 'untracked')),
    previous     text,
    cluster      text,
    since_ms     bigint  NOT NULL,                -- append time of the record that decided
    kind         text    NOT NULL,
    labels       text[]  NOT NULL,
    account      text,
    evidence     text[]  NOT NULL,
    partition    integer NOT NULL,
    log_offset   bigint  NOT NULL,                -- the record of channel-events that decided
    PRIMARY KEY (channel, version, generation)
);

CREATE INDEX cluster_change_outbox ON cluster_change (partition, log_offset);
CREATE INDEX cluster_change_since ON cluster_change (since_ms);

CREATE TABLE dead_letter (
    topic_id     text        NOT NULL,
    partition    integer     NOT NULL,
    log_offset   bigint      NOT NULL,
    topic        text        NOT NULL,
    reason       text        NOT NULL,
    sqlstate     text,                            -- set where PostgreSQL refused, which is a bug of ours
    key          bytea,
    value        bytea,
    appended_ms  bigint      NOT NULL,
    PRIMARY KEY (topic_id, partition, log_offset)
);

CREATE INDEX dead_letter_outbox ON dead_letter (partition, log_offset);

CREATE TABLE log_position (
    partition      integer     PRIMARY KEY,
    topic_id       text        NOT NULL,          -- a re-created topic has another id
    position       bigint      NOT NULL CHECK (position >= 0),  -- next offset to fold
    last_sha256    bytea,                         -- of key, value and timestamp of the last record; null before any
    last_offset    bigint,                        -- where that record stands (holes may lie behind it)
    appended_ms    bigint      NOT NULL,          -- append time of the last record folded
    rules_version  integer     NOT NULL,
    generation     integer     NOT NULL CHECK (generation >= 1),
    published      bigint      NOT NULL DEFAULT 0, -- lower bound of what the outbox has published, an offset of the log
    caught_up_at   timestamptz                    -- last moment the tables were seen at the log's end
);

CREATE TABLE log_hole (
    partition     integer     NOT NULL,
    first_offset  bigint      NOT NULL,           -- first missing offset
    next_offset   bigint      NOT NULL,           -- first offset behind the hole
    kind          text        NOT NULL CHECK (kind IN ('markers', 'accepted')),
    noted_at      timestamptz NOT NULL,
    PRIMARY KEY (partition, first_offset)
);

-- Channels whose newest change a rebuild altered: the outbox publishes it once more, then forgets them.
CREATE TABLE republication (
    channel    text    PRIMARY KEY COLLATE "C",
    partition  integer NOT NULL,
    version    bigint  NOT NULL
);

-- No part of the fold: when a lookup last agreed, and only where the version still stands.
CREATE TABLE channel_freshness (
    channel      text        PRIMARY KEY COLLATE "C",
    version      bigint      NOT NULL,
    verified_at  timestamptz NOT NULL
);
