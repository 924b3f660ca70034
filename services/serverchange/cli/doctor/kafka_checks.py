"""Examines Kafka: reach, version, brokers, topics with their settings and copies, who may write to the log.

Reads only. The newest append time of `channel-events` comes along: the brokers' clock is at least that late.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import TopicPartition
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    OffsetSpec,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.errors import ClusterAuthorizationFailedError, KafkaError, SecurityDisabledError

from serverchange.adapters.kafka.clients import make_admin
from serverchange.adapters.kafka.log_identity import Ends, TopicIdentity
from serverchange.adapters.kafka.topics import TopicsError, plan_topics, topic_name
from serverchange.adapters.settings import KafkaSettings
from serverchange.cli.doctor.findings import Finding, failed, ok, skipped, warning
from serverchange.cli.reach import refusals
from serverchange.topics import ALL_TOPICS, CHANNEL_EVENTS, Topic

REQUEST_TIMEOUT_S: Final = 10.0
"""An operator waits: a broker that needs longer than this for one small answer is a finding."""

OLDEST: Final = (2, 8)
"""Topics have ids since then (KIP-516); the fold tells a re-created topic by its id."""

TESTED: Final = (4, 0)
"""The suite runs against Kafka 4; older ones may work."""

COPIES_FOR_PRODUCTION: Final = 3
COPIES_IN_SYNC_MIN: Final = 2
NEEDED_ON_THE_LOG: Final = frozenset({"READ", "WRITE", "DESCRIBE"})

CHECKS: Final = ("kafka", "topics", "acls", "log")


@dataclass(frozen=True, slots=True)
class LogFacts:
    """The log as the brokers have it; `newest_append_ms` is None while it is empty."""

    topic: TopicIdentity
    ends: Mapping[int, Ends]
    newest_append_ms: int | None


def check_brokers(settings: KafkaSettings) -> tuple[list[Finding], LogFacts | None]:
    """Return what is to say about Kafka and its topics, and the log's facts where the topic is there."""
    if reasons := refusals(settings):
        advice = "start it (serverchange up has one), or set SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS"
        found = f"does not answer: {'; '.join(reasons)}"
        return [failed("kafka", found, advice), *skipped(CHECKS[1:], "Kafka does not answer")], None
    quick = settings.model_copy(update={"request_timeout_s": min(settings.request_timeout_s, REQUEST_TIMEOUT_S)})
    try:
        admin = make_admin(quick, client_id="serverchange-doctor", bootstrap_timeout_ms=round(REQUEST_TIMEOUT_S * 1000))
    except KafkaError as error:
        advice = "check kafka.security_protocol, mechanism, name, password and CA file against the broker's listener"
        return [
            failed("kafka", f"{settings.bootstrap_servers} is open, but does not speak with us: {error}", advice),
            *skipped(CHECKS[1:], "Kafka does not speak with us"),
        ], None
    try:
        return _examine(admin, quick)
    except KafkaError as error:
        return [failed("kafka", f"it stopped answering: {error}", "look at the brokers' logs; then ask again")], None
    finally:
        admin.close()


def _examine(admin: Any, settings: KafkaSettings) -> tuple[list[Finding], LogFacts | None]:
    brokers = len(admin.describe_cluster()["brokers"])
    findings = [*judge_version(admin.get_broker_version_data(_any_broker(admin)).broker_version, brokers)]
    wanted = [topic_name(settings, topic) for topic in ALL_TOPICS]
    existing = set(admin.list_topics())
    found = {entry["name"]: entry for entry in admin.describe_topics([name for name in wanted if name in existing])}
    findings += _plans(settings)
    findings += judge_copies(list(found.values()), brokers=brokers, wanted=settings.replication_factor)
    log = found.get(topic_name(settings, CHANNEL_EVENTS))
    findings += _access(admin, topic_name(settings, CHANNEL_EVENTS), log)
    if log is None or log["error_code"]:
        return [*findings, *skipped(["log"], "there is no channel-events")], None
    return findings, _log_facts(admin, log)


def _any_broker(admin: Any) -> int:
    return int(admin.describe_cluster()["brokers"][0]["broker_id"])


def judge_version(version: tuple[int, ...], brokers: int) -> Iterator[Finding]:
    """Yield the verdict on a broker's version (as kafka-python infers it from the requests that it knows)."""
    name = ".".join(map(str, version))
    if version < OLDEST:
        yield failed(
            "kafka", f"version {name}", "upgrade: topics have no ids before 2.8, so a new log looks like the old"
        )
    elif version < TESTED:
        yield warning(
            "kafka", f"version {name}: the suite runs against Kafka 4", "upgrade, or run the suite against yours"
        )
    else:
        yield ok("kafka", f"version {name}, {brokers} broker{'s' if brokers > 1 else ''}")


def _plans(settings: KafkaSettings) -> Iterator[Finding]:
    good = 0
    for topic in ALL_TOPICS:
        finding = _plan(settings, topic)
        good += finding is None
        if finding is not None:
            yield finding
    if good:
        yield ok("topics", f"{good} of {len(ALL_TOPICS)} are as the contracts say")


def _plan(settings: KafkaSettings, topic: Topic) -> Finding | None:
    try:
        (plan,) = plan_topics(settings, [topic])
    except TopicsError as error:
        return failed("topics", str(error), "see docs/operations.md, More partitions")
    if plan.action == "create":
        return failed("topics", f"{plan.name} does not exist", "serverchange topics apply")
    if plan.action == "alter":
        return failed("topics", f"{plan.name} differs in {', '.join(plan.differs)}", "serverchange topics apply")
    return None


def judge_copies(topics: Sequence[Mapping[str, Any]], *, brokers: int, wanted: int) -> Iterator[Finding]:
    """Yield what is to say about leaders and copies, from the brokers' description of our topics."""
    for topic in topics:
        leaderless = [str(one["partition_index"]) for one in topic["partitions"] if one["leader_id"] < 0]
        behind = [str(one["partition_index"]) for one in topic["partitions"] if _is_behind(one)]
        if leaderless:
            found = f"{topic['name']}: no leader for partition {', '.join(leaderless)}"
            yield failed("topics", found, "start the brokers that hold them; nothing can be read or written there")
        elif behind:
            found = f"{topic['name']}: copies of partition {', '.join(behind)} are not in sync"
            yield warning("topics", found, "look at the brokers' logs; one more loss may stop writes")
    copies = min((len(one["replica_nodes"]) for topic in topics for one in topic["partitions"]), default=wanted)
    if copies < wanted:
        found = f"a partition has {copies} copies, the settings say {wanted}"
        yield failed("topics", found, "add copies: kafka-reassign-partitions.sh; topics apply makes none afterwards")
    elif copies < COPIES_IN_SYNC_MIN:
        found = (
            f"each record is on one broker of {brokers}: an acknowledged event can be lost with its disk or its power"
        )
        yield warning(
            "topics",
            found,
            f"for production {COPIES_FOR_PRODUCTION} brokers and SERVERCHANGE_KAFKA_REPLICATION_FACTOR=3",
        )


def _is_behind(partition: Mapping[str, Any]) -> bool:
    return len(partition["isr_nodes"]) < len(partition["replica_nodes"])


def _access(admin: Any, name: str, log: Mapping[str, Any] | None) -> Iterator[Finding]:
    try:
        acls = _writers(admin, name)
    except SecurityDisabledError:
        yield from skipped(["acls"], "no authorizer runs: whoever reaches Kafka may write to the source of truth")
        return
    except ClusterAuthorizationFailedError:
        yield from skipped(["acls"], "an authorizer runs, and does not let this account list its rules")
    else:
        yield from judge_writers(name, [acl.principal for acl in acls])
    if log is not None:
        yield from judge_access(name, log["authorized_operations"])


def _writers(admin: Any, name: str) -> list[ACL]:
    """Return the rules that let somebody write to the topic, whether they name it, a prefix or all topics."""
    pattern = ResourcePatternFilter(ResourceType.TOPIC, name, ACLResourcePatternType.MATCH)
    found: list[ACL] = []
    for operation in (ACLOperation.WRITE, ACLOperation.ALL):
        asked = ACLFilter(None, None, operation, ACLPermissionType.ALLOW, pattern)
        found += admin.describe_acls(asked)[0]
    return found


def judge_writers(name: str, principals: Sequence[str]) -> Iterator[Finding]:
    """Yield the verdict on who may write to the log: to write there is to decide where bots connect."""
    if "User:*" in principals:
        yield warning(
            "acls",
            f"everybody (User:*) may write to {name}",
            "WRITE there is the trust boundary: grant it to pollers, listeners, shards, API and operators alone",
        )
    elif principals:
        yield ok("acls", f"may write to {name}: {', '.join(sorted(set(principals)))}, and super users")
    else:
        yield ok("acls", f"only super users may write to {name}")


def judge_access(name: str, granted: Sequence[str] | None) -> Iterator[Finding]:
    """Yield what this account lacks on the log; None where the broker does not tell."""
    missing = NEEDED_ON_THE_LOG - set(granted or NEEDED_ON_THE_LOG)
    if missing:
        yield warning(
            "acls",
            f"this account may not {', '.join(sorted(missing))} on {name}",
            "grant it, unless this account is for a process that needs less (the materializer never writes there)",
        )


def _log_facts(admin: Any, log: Mapping[str, Any]) -> LogFacts:
    name = log["name"]
    places = [TopicPartition(name, one["partition_index"]) for one in log["partitions"] if one["leader_id"] >= 0]
    low = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
    end = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    newest = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.MAX_TIMESTAMP))
    times = [found.timestamp for found in newest.values() if found.offset >= 0]
    return LogFacts(
        TopicIdentity(name, log["topic_id"], len(log["partitions"])),
        {place.partition: Ends(low[place].offset, end[place].offset) for place in places},
        max(times, default=None),
    )
