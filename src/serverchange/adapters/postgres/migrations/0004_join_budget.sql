-- The ledger of JOINs and logins that the shards of an account share; the rule is tracker/budget.py.

CREATE TABLE join_budget (
    account    text        NOT NULL,
    kind       text        NOT NULL CHECK (kind IN ('join', 'login')),
    moment     timestamptz NOT NULL,              -- the ledger's clock: never goes back, whatever the server's does
    PRIMARY KEY (account, kind)
);

CREATE TABLE join_lease (
    lease_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account      text        NOT NULL,
    kind         text        NOT NULL,
    holder       text        NOT NULL,            -- for people: which process has it
    amount       integer     NOT NULL CHECK (amount > 0),
    granted_at   timestamptz NOT NULL,
    reported_at  timestamptz,                     -- null: all of it may be spent this very moment
    spent        integer     NOT NULL DEFAULT 0,
    FOREIGN KEY (account, kind) REFERENCES join_budget (account, kind)
);

CREATE INDEX join_lease_budget ON join_lease (account, kind);
