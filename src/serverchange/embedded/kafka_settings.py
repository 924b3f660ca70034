"""The broker's settings: one node, loopback, quick to start, nothing thrown away by default."""

from __future__ import annotations

from collections.abc import Mapping

from serverchange.embedded.ports import LOOPBACK

NODE_ID = 1
LOG_FOLDER = "log"
"""Relative to the broker's working folder: a comma in an absolute path would split ``log.dirs``."""


def broker_settings(port: int, controller_port: int) -> dict[str, str]:
    """Return ``server.properties`` for a combined broker and controller of one node.

    Args:
        port: For clients.
        controller_port: For the node's own controller.
    """
    return {
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@{LOOPBACK}:{controller_port}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": LOG_FOLDER,
        **_TOPICS,
        **_INTERNAL_TOPICS,
        **_GROUPS,
        **_SESSION,
        **_SIZE,
    }


_TOPICS = {
    # Topics are made by `serverchange topics apply`; a typing error must not make one.
    "auto.create.topics.enable": "false",
    # A topic says itself how long it keeps its records; where it says nothing, nothing is lost.
    "log.retention.ms": "-1",
    "log.retention.bytes": "-1",
}
_INTERNAL_TOPICS = {
    # One node can hold one replica; 4 instead of 50 partitions spare 92 files and half a second of each start.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
}
_GROUPS = {
    # Kafka waits 3 s for more members of a new group; here all are on one machine and start at once.
    "group.initial.rebalance.delay.ms": "0",
    # The services ask for 8 s; tests of takeovers for less. The default floor is 6 s.
    "group.min.session.timeout.ms": "1000",
}
_SESSION = {
    # After a kill the controller refuses the reborn broker until the old one's session ends (9 s by default: a start
    # takes 11 s; with these 5 s, measured). Below 4 s a busy machine would fence a healthy broker.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
}
_SIZE = {
    # The default of 128 MiB is taken from the heap at once; 16 MiB still compact 600,000 keys in one pass.
    "log.cleaner.dedupe.buffer.size": str(16 * 2**20),
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
}

JVM_FLAGS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",  # one heap this small: fewer threads and less memory than G1
    "-XX:TieredStopAtLevel=1",  # half the start time; the broker is never the slow part here
    "-XX:-UsePerfData",  # no file in the machine's temporary folder
    "-XX:+ExitOnOutOfMemoryError",  # a broker that lost a thread would look alive
    # Kafka 4.3 unmaps its index files and loads its codecs in ways that Java 25 warns of at each start.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-XX:ErrorFile=kafka-jvm-crash.log",
    "-Djava.awt.headless=true",
    "-Djava.io.tmpdir=tmp",
    "-Dlog4j2.configurationFile=kafka-log4j2.properties",
    "-Dlog4j2.disable.jmx=true",
)

LOGGING = {
    "status": "error",
    "rootLogger.level": "info",
    "rootLogger.appenderRef.out.ref": "out",
    # Its 200 lines of settings at each start say nothing that server.properties does not.
    "logger.settings.name": "org.apache.kafka.common.config.AbstractConfig",
    "logger.settings.level": "warn",
    "appender.out.type": "Console",
    "appender.out.name": "out",
    "appender.out.layout.type": "PatternLayout",
    "appender.out.layout.pattern": "%d{ISO8601} %p %c{1} %m%n",
}
"""Logging of the broker: to its standard output, which is the log file."""


def to_properties(settings: Mapping[str, str]) -> str:
    """Write settings as a Java ``.properties`` file, one ``key=value`` a line."""
    return "".join(f"{key}={value}\n" for key, value in settings.items())
