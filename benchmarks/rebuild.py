"""How fast a rebuild is, against a bare loop that fetches, folds and COPYs without guarantees.

`serverchange bench rebuild --events 300000 --json` → `rebuild_per_s, plain_per_s`, and the compare's verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psycopg
from materialize import bench_stack, materializer, produce, wait_folded, wait_for_schema
from materialize_workload import make_workload

from serverchange.adapters.kafka.clients import make_async_consumer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.adapters.settings import Settings
from serverchange.events import Rejected, parse_channel_event
from serverchange.materializer import rebuild
from serverchange.topics import CHANNEL_EVENTS
from serverchange.tracker.channel_state import ChannelState, fold

FETCH_BYTES = 8 * 2**20


async def _plain(settings: Settings, records: int) -> float:
    """Fetch, decode, fold into a dictionary, COPY what subscribers would see; no positions, history or dead letters."""
    consumer = make_async_consumer(settings.kafka, client_id="bench-plain", max_partition_fetch_bytes=FETCH_BYTES)
    consumer.subscribe([topic_name(settings.kafka, CHANNEL_EVENTS)])
    await consumer.start()
    states: dict[str, ChannelState] = {}
    seen = 0
    started = time.perf_counter()
    while seen < records:
        for found in (await consumer.getmany(timeout_ms=500)).values():
            seen += len(found)
            for record in found:
                try:
                    event = parse_channel_event(record.key, record.value)
                except Rejected:
                    continue
                folded = fold(states.get(event.subject), event, record.timestamp)
                if folded.state is not None:
                    states[event.subject] = folded.state
    await consumer.stop()
    dsn = settings.postgres.dsn.get_secret_value()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE plain (channel text, cluster text, version bigint)")
        async with connection.cursor() as cursor, cursor.copy("COPY plain FROM STDIN") as copy:
            await copy.write(
                "".join(f"{one.channel}\t{one.cluster or '-'}\t{one.version}\n" for one in states.values())
            )
    return seen / (time.perf_counter() - started)


def main(argv: list[str]) -> int:
    """Measure and print; 1 where the rebuilt tables differ from the live ones."""
    parser = argparse.ArgumentParser(prog="serverchange bench rebuild", description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(argv)
    workload = make_workload(options.events, options.channels)
    records = len(workload.setup) + len(workload.events)
    with bench_stack() as bench:
        settings = bench.settings()
        apply_topics(settings.kafka)
        produce(settings.kafka, topic_name(settings.kafka, CHANNEL_EVENTS), workload.setup + workload.events)
        rebuilt = rebuild.run(settings)
        plain_per_s = asyncio.run(_plain(settings, records))
        with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
            with materializer(settings, bench.folder / "materializer.log"):
                wait_for_schema(connection)
                wait_folded(connection, records)
        differences = rebuild.run(settings, compare=True).differences
    result: dict[str, Any] = {
        "records": rebuilt.records,
        "rebuild_per_s": round(rebuilt.records / rebuilt.seconds),
        "plain_per_s": round(plain_per_s),
        "differences": len(differences or []),
        "workload_sha256": workload.sha256,
    }
    result["times_plain"] = round(result["rebuild_per_s"] / result["plain_per_s"], 2)
    sys.stdout.write(
        (json.dumps(result) if options.as_json else "\n".join(f"{k:>18} {v}" for k, v in result.items())) + "\n"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
