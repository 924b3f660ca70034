"""How long from an event's acknowledgement by Kafka until its row is visible, idle and at half load.

`serverchange bench latency --json` → `idle {p50_ms, p99_ms}, half_load {p50_ms, p99_ms}`. A watcher asks PostgreSQL
for the position of the event's partition as fast as it answers, so its own time is part of the figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psycopg
from kafka import KafkaProducer
from materialize import Bench, bench_stack, materializer, produce, wait_folded, wait_for_schema
from materialize_workload import Workload, make_workload

from serverchange.adapters.kafka.clients import make_producer
from serverchange.adapters.kafka.topics import apply_topics, topic_name
from serverchange.events import KAFKA_HEADERS
from serverchange.topics import CHANNEL_EVENTS

PROBES = 200
BETWEEN_S = 0.02
VISIBLE_TIMEOUT_S = 30.0
HALF_LOAD_PER_S = 5_000
"""Half of what a worker takes on a small machine while other processes work; `--load` sets another rate."""


def _probe(producer: KafkaProducer, topic: str, connection: psycopg.Connection[Any], key: bytes, value: bytes) -> float:
    """Append one event; return the milliseconds from its acknowledgement until it is folded."""
    place = producer.send(topic, key=key, value=value, headers=list(KAFKA_HEADERS)).get(timeout=30)
    acknowledged = time.perf_counter()
    while time.perf_counter() - acknowledged < VISIBLE_TIMEOUT_S:
        row = connection.execute("SELECT position FROM log_position WHERE partition = %s", [place.partition]).fetchone()
        if row and row[0] > place.offset:
            return (time.perf_counter() - acknowledged) * 1000
    raise TimeoutError(f"offset {place.offset} of partition {place.partition} did not become visible")


def _measure(bench: Bench, workload: Workload, first: int, probes: int) -> dict[str, float]:
    settings = bench.settings()
    topic = topic_name(settings.kafka, CHANNEL_EVENTS)
    producer = make_producer(settings.kafka, client_id="probe", linger_ms=0)
    taken = []
    with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
        for key, value in workload.events[first : first + probes]:
            taken.append(_probe(producer, topic, connection, key, value))
            time.sleep(BETWEEN_S)
    producer.close()
    cuts = statistics.quantiles(taken, n=100)
    return {"p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2), "probes": len(taken)}


def _load(bench: Bench, workload: Workload, first: int, per_s: int, stop: threading.Event) -> None:
    settings = bench.settings()
    topic = topic_name(settings.kafka, CHANNEL_EVENTS)
    producer = make_producer(settings.kafka, client_id="load", linger_ms=20)
    due = time.monotonic()
    for key, value in workload.events[first:]:
        if stop.is_set():
            break
        producer.send(topic, key=key, value=value, headers=list(KAFKA_HEADERS))
        due += 1 / per_s
        if due - time.monotonic() > 0.01:
            time.sleep(due - time.monotonic())
    producer.close()


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="serverchange bench latency", description=__doc__)
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--load", type=int, default=HALF_LOAD_PER_S, help="events a second for half_load")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(argv)
    workload = make_workload(2 * options.probes + options.load * 30, 5_000)
    with bench_stack() as bench:
        settings = bench.settings()
        apply_topics(settings.kafka)
        produce(settings.kafka, topic_name(settings.kafka, CHANNEL_EVENTS), workload.setup)
        with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
            with materializer(settings, bench.folder / "materializer.log"):
                wait_for_schema(connection)
                wait_folded(connection, len(workload.setup))
                result: dict[str, Any] = {"idle": _measure(bench, workload, 0, options.probes)}
                stop = threading.Event()
                load = threading.Thread(
                    target=_load, args=(bench, workload, 2 * options.probes, options.load, stop), daemon=True
                )
                load.start()
                result["half_load"] = _measure(bench, workload, options.probes, options.probes)
                result["load_per_s"] = options.load
                stop.set()
                load.join()
    sys.stdout.write(json.dumps(result, indent=None if options.as_json else 2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
