-- What all pollers together may still ask the platform: one row a budget, refilled by this server's clock.

CREATE TABLE request_budget (
    name         text             PRIMARY KEY,
    tokens       double precision NOT NULL CHECK (tokens >= 0),  -- requests that may be leased at refilled_at
    refilled_at  timestamptz      NOT NULL,
    resume_at    timestamptz      NOT NULL                       -- the platform said not to ask before
);
