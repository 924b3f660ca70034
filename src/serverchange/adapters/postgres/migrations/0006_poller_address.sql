-- Where each poller answers an operator's questions; for `serverchange why` alone.

CREATE TABLE poller_address (
    process  text        PRIMARY KEY,                 -- process.name of the poller
    url      text        NOT NULL,                    -- of its health port
    told_at  timestamptz NOT NULL
);
