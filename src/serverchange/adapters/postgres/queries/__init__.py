"""All SQL: one `.sql` file a subject, its queries named by `-- name:` lines and commented."""
