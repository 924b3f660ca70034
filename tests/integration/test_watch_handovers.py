"""`serverchange watch handovers` as a process, on a real topic."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime

from serverchange.adapters.kafka.publisher import EventPublisher
from serverchange.adapters.settings import KafkaSettings
from serverchange.cli.handovers import WATCHING
from serverchange.events import Channel, Cluster
from serverchange.reconnector.handover_reports import handover_report
from serverchange.topics import HANDOVERS
from serverchange.tracker.handover_words import Cause, Outcome, Record

WAIT_S = 40


def report(channel: str, target: str) -> tuple[str, bytes]:
    record = Record(Cause.MOVED, Outcome.DONE, Cluster("main"), Cluster(target), 1.0, 1.1, 1.2, 21.0, 1)
    return channel, handover_report(Channel(channel), record, "shard-1", datetime.now(UTC)).to_record()


async def test_what_shards_report_from_now_on_is_printed_and_what_is_no_report_is_passed(kafka: KafkaSettings) -> None:
    environment = {
        **os.environ,
        "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "SERVERCHANGE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
    }
    async with EventPublisher(kafka, client_id="test") as publisher, asyncio.timeout(WAIT_S):
        await publisher.publish_all(HANDOVERS, [report("earlier", "aws")])
        watch = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "serverchange.cli", "watch", "handovers", "--cluster", "aws"),
            *("--output", "ndjson"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert watch.stdout is not None
        assert watch.stderr is not None
        try:
            assert (await watch.stderr.readline()).decode().strip() == WATCHING
            await publisher.publish_all(HANDOVERS, [report("elsewhere", "event"), ("x", b"no report")])
            await publisher.publish_all(HANDOVERS, [report("forsen", "aws")])

            told = json.loads(await watch.stdout.readline())

            assert (told["subject"], told["data"]["source"], told["data"]["target"]) == ("forsen", "main", "aws")
            assert "no report of a handover" in (await watch.stderr.readline()).decode()
            watch.send_signal(signal.SIGINT)
            assert await watch.wait() == 130
        finally:
            if watch.returncode is None:
                watch.kill()
                await watch.wait()
