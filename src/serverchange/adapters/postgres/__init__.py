"""PostgreSQL: connections, migrations, and every query in a named `.sql` file beside one typed function."""
