-- What shards tell of themselves, for people, and the brake on their moves. Nothing here decides where a channel is.

CREATE TABLE fleet_report (
    process         text        PRIMARY KEY,          -- process.name of the shard
    account         text        NOT NULL,
    wanted          integer     NOT NULL,             -- channels to be read
    confirmed       integer     NOT NULL,             -- of these: read on at least one link
    links           integer     NOT NULL,
    joins_waiting   integer     NOT NULL,             -- for a link or for budget
    logins_waiting  integer     NOT NULL,
    moves_held      integer     NOT NULL,             -- decided and held back by the brake
    foreign_count   integer     NOT NULL,             -- channels that ask for another account
    reported_at     timestamptz NOT NULL
);

CREATE TABLE fleet_brake (                            -- no row: shards move channels as decided
    only_row  boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    held_at   timestamptz NOT NULL,
    held_by   text        NOT NULL,
    reason    text        NOT NULL
);
