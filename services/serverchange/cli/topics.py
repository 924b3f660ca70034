# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange topics`: makes the topics as the contracts say, or shows what that would do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from serverchange.cli.faults import Fault
from serverchange.cli.output import Output, answering, note, print_rows, quiet_logs

if TYPE_CHECKING:
    from serverchange.adapters.kafka.topics import TopicPlan
    from serverchange.adapters.settings import KafkaSettings

app = typer.Typer(help="Make the Kafka topics as the contracts say.", no_args_is_help=True)


@app.command(epilog="Example: SERVERCHANGE_KAFKA_PARTITIONS=12 serverchange topics apply")
@answering
def apply(out: Output) -> None:
    """Make missing topics, set differing settings, never add partitions; safe to run at every deploy."""
    from serverchange.adapters.kafka.topics import apply_topics

    _print(apply_topics(_reachable_kafka()), out)


@app.command(epilog="Example: serverchange topics plan --json")
@answering
def plan(out: Output) -> None:
    """Show what `topics apply` would do."""
    from serverchange.adapters.kafka.topics import plan_topics

    _print(plan_topics(_reachable_kafka()), out)


@app.command(epilog="Example: serverchange topics copy --prefix v2. --partitions 96")
@answering
def copy(
    out: Output,
    prefix: Annotated[str, typer.Option(help="Prefix of the new topics; the settings' is that of the old ones.")],
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the new topics.")],
) -> None:
    """Copy the log into new topics with another number of partitions. Stop all writers first, rebuild afterwards."""
    settings = _reachable_kafka()
    from serverchange.materializer.copy_topic import CopyError, run

    try:
        report = run(settings, to_prefix=prefix, partitions=partitions)
    except CopyError as error:
        raise Fault(str(error)) from error
    out.fields(asdict(report))
    note(f"now start everything with SERVERCHANGE_KAFKA_TOPIC_PREFIX={prefix} and run: serverchange rebuild")


def _reachable_kafka() -> KafkaSettings:
    from serverchange.adapters.settings import load_settings
    from serverchange.cli.reach import check_kafka

    quiet_logs()
    settings = load_settings().kafka
    check_kafka(settings)
    return settings


def _print(plans: list[TopicPlan], out: Output) -> None:
    told = [
        {"topic": one.name, "action": one.action, "partitions": one.partitions, "differs": list(one.differs)}
        for one in plans
    ]
    out.answer(told, entries=told, show=lambda: print_rows(list(told[0]), [list(one.values()) for one in told]))
