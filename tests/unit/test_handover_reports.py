"""What a shard reports of a handover, and how `serverchange watch handovers` tells it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from rich.text import Text

from serverchange.cli.handovers import describe_handover
from serverchange.events import Channel, Cluster, HandoverEnded
from serverchange.reconnector.handover_reports import handover_report
from serverchange.tracker.handover_words import Cause, Outcome, Record

NOON = datetime(2016, 2, 14, 12, tzinfo=UTC)
BEGUN_AT = 5_000.0


def report(*, sent_s: float | None = 0.1, confirmed_s: float | None = 0.25, tries: int = 1) -> HandoverEnded:
    record = Record(
        cause=Cause.MOVED,
        outcome=Outcome.DONE,
        source=Cluster("main"),
        target=Cluster("aws"),
        begun_at=BEGUN_AT,
        sent_at=None if sent_s is None else BEGUN_AT + sent_s,
        confirmed_at=None if confirmed_s is None else BEGUN_AT + confirmed_s,
        ended_at=BEGUN_AT + 20.5,
        tries=tries,
    )
    return handover_report(Channel("forsen"), record, "shard-1", NOON)


def test_a_report_tells_every_time_from_the_handover_s_beginning() -> None:
    data = report().data
    assert (data.sent_s, data.confirmed_s, data.ended_s) == (0.1, 0.25, 20.5)


def test_a_handover_that_was_never_sent_tells_no_time() -> None:
    record = report(sent_s=None, confirmed_s=None, tries=0).to_record()
    read = HandoverEnded.model_validate_json(record)
    assert (read.data.sent_s, read.data.confirmed_s, read.data.tries) == (None, None, 0)


def test_a_handover_is_described_in_one_line() -> None:
    told = Text.from_ansi(describe_handover(report())).plain
    assert re.sub(" +", " ", told) == (
        "2016-02-14T12:00:00.000+00:00 forsen moved done main -> aws confirmed after 0.250 s, over after 20.500 s, "
        "1 JOIN, shard-1"
    )
    assert "never confirmed, over after 20.500 s, 3 JOINs" in describe_handover(report(confirmed_s=None, tries=3))
