# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange watch handovers`: what the shards report of handovers that ended, from the topic `handovers`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import typer

from serverchange.cli.faults import UnavailableFault
from serverchange.cli.output import Output, note, quiet_logs

if TYPE_CHECKING:
    from serverchange.adapters.settings import KafkaSettings
    from serverchange.events import HandoverEnded

POLL_MS: Final = 500
WATCHING: Final = "watching what shards report of handovers; Ctrl-C ends it"

_COLOURS: Final = {"done": "green", "old-lost": "yellow", "superseded": "yellow"}


def watch_handovers(out: Output, *, channel: str | None, cluster: str | None) -> None:
    """Print every handover that ends from now on, for ever."""
    from serverchange.adapters.settings import load_settings
    from serverchange.cli.reach import check_kafka

    quiet_logs()
    settings = load_settings().kafka
    check_kafka(settings)
    for handover in follow_handovers(settings):
        if channel in {None, handover.subject} and cluster in {None, handover.data.source, handover.data.target}:
            out.line(handover.model_dump(mode="json", exclude_none=True), describe_handover(handover))


def follow_handovers(settings: KafkaSettings) -> Iterator[HandoverEnded]:
    """Yield what comes to the topic from now on; while Kafka is away it waits, and then goes on where it was.

    Raises:
        UnavailableFault: the topic does not exist.
    """
    from kafka import TopicPartition
    from pydantic import ValidationError

    from serverchange.adapters.kafka.clients import make_consumer
    from serverchange.adapters.kafka.topics import topic_name
    from serverchange.events import HandoverEnded
    from serverchange.topics import HANDOVERS

    name = topic_name(settings, HANDOVERS)
    consumer = make_consumer(settings, client_id="serverchange-watch", group=None)
    try:
        if not consumer.partitions_for_topic(name):
            raise UnavailableFault(f"there is no topic {name}: serverchange topics apply")
        place = TopicPartition(name, 0)
        consumer.assign([place])
        consumer.seek(place, consumer.end_offsets([place])[place])
        note(WATCHING)
        while True:
            for record in consumer.poll(timeout_ms=POLL_MS).get(place, ()):
                try:
                    yield HandoverEnded.model_validate_json(record.value or b"")
                except ValidationError:
                    note(f"the record at offset {record.offset} of {name} is no report of a handover")
    finally:
        consumer.close()


def describe_handover(handover: HandoverEnded) -> str:
    """Return a handover in one line, with colours."""
    data = handover.data
    outcome = typer.style(f"{data.outcome.value:<10}", fg=_COLOURS.get(data.outcome.value, "red"))
    confirmed = "never confirmed" if data.confirmed_s is None else f"confirmed after {data.confirmed_s:.3f} s"
    joins = f"{data.tries} JOIN" if data.tries == 1 else f"{data.tries} JOINs"
    return (
        f"{handover.time.isoformat(timespec='milliseconds')}  {handover.subject:<25} {data.cause.value:<10} {outcome} "
        f"{data.source or '-'} -> {typer.style(data.target, bold=True)}  {confirmed}, over after {data.ended_s:.3f} s, "
        f"{joins}, {data.shard}"
    )
