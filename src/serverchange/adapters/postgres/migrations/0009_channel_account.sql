-- Fleets with several accounts: which account joins which channel, and what waits for the budget of each.

CREATE TABLE channel_account (
    channel  text  PRIMARY KEY,
    account  text  NOT NULL
);

ALTER TABLE fleet_report ADD COLUMN waiting jsonb NOT NULL DEFAULT '{}';  -- account -> {"join": n, "login": n}
