"""Our side of each real part: Kafka, PostgreSQL, the platform's HTTP API and IRC links, settings, logs, metrics."""
