-- Queries about the server itself, for `serverchange doctor`; none of them writes.

-- name: load_server_facts
-- `schema_migration` may not exist yet; whether we may make it decides what to advise.
SELECT
    current_setting('server_version_num')::integer,
    current_setting('server_version'),
    pg_is_in_recovery(),
    current_setting('server_encoding'),
    current_setting('fsync')::boolean,
    current_setting('full_page_writes')::boolean,
    current_setting('synchronous_commit'),
    current_setting('data_checksums')::boolean,
    current_setting('max_connections')::integer,
    to_regclass('schema_migration') IS NOT NULL,
    has_schema_privilege(current_schema(), 'CREATE')

-- name: load_clock
-- The server's clock as seconds since 1970; the caller reads its own before and after.
SELECT EXTRACT(EPOCH FROM clock_timestamp())::double precision

-- name: load_migrations
SELECT number FROM schema_migration ORDER BY number
