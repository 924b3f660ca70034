"""Spans carry the trace from event to event, on or off; what the processes make of it is `test_demo_up`'s."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from pydantic import ValidationError

from serverchange.adapters import tracing
from serverchange.adapters.settings import ProcessSettings, SettingsError
from serverchange.adapters.tracing import Span, SpanName, configure_tracing, is_tracing, record_span
from serverchange.events import ChannelTracked, ClusterObserved, parse_change
from serverchange.materializer.folding import PartitionLog, decode_records, fold_records
from serverchange.materializer.outbox import change_event
from serverchange.poller.traces import CHANNELS_MAX, Traces
from serverchange.reconnector.shard import trace_handover
from serverchange.tracker.handover_words import Cause, Outcome, Record

NOW = datetime(2016, 2, 14, 12, tzinfo=UTC)
NOTICE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DROPPED = NOTICE[:-2] + "00"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(1.0))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use_provider(provider)
    yield exporter
    tracing.use_provider(None)


def record(parent: str | None) -> str | None:
    return record_span(
        SpanName.LOOKUP,
        parent=parent,
        started_s=10.0,
        ended_s=12.5,
        attributes={"channel": "forsen", "cluster": None},
        steps={"answered": 11.0},
    )


def test_a_process_that_does_not_trace_hands_the_trace_on() -> None:
    assert not is_tracing()
    assert record(NOTICE) == Span(SpanName.NOTICE_HEARD, parent=NOTICE, attributes={}).traceparent == NOTICE
    assert record(None) is None


def test_a_span_belongs_to_its_parent_s_trace_and_is_the_next_one_s_parent(spans: InMemorySpanExporter) -> None:
    first = record(NOTICE)
    assert first is not None
    second = record(first)
    assert second is not None
    one, two = spans.get_finished_spans()
    assert (one.parent.span_id, two.parent.span_id) == (int(NOTICE[36:52], 16), int(first[36:52], 16))
    assert first[:36] == second[:36] == NOTICE[:36]
    assert (one.start_time, one.end_time) == (10_000_000_000, 12_500_000_000)
    assert [(step.name, step.timestamp) for step in one.events] == [("answered", 11_000_000_000)]
    assert dict(one.attributes) == {"serverchange.channel": "forsen"}


def test_a_span_without_a_parent_begins_a_trace(spans: InMemorySpanExporter) -> None:
    span = Span(SpanName.NOTICE_HEARD, parent=None, attributes={"channel": "forsen"})
    assert spans.get_finished_spans() == ()
    span.end(failure="Kafka did not take it")
    (ended,) = spans.get_finished_spans()
    assert (ended.parent, ended.status.description) == (None, "Kafka did not take it")
    assert span.traceparent is not None
    assert span.traceparent[:52] == f"00-{ended.context.trace_id:032x}-{ended.context.span_id:016x}"
    assert int(span.traceparent[-2:], 16) & 1, "sampled; the other bits are for the level of the standard"


@pytest.mark.parametrize("nonsense", ["-" * 55, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" + NOTICE[2:]])
def test_nonsense_in_an_event_begins_a_trace(nonsense: str, spans: InMemorySpanExporter) -> None:
    assert record(nonsense) is not None
    assert spans.get_finished_spans()[0].parent is None


def test_a_trace_that_its_beginner_dropped_is_recorded_nowhere_and_handed_on(spans: InMemorySpanExporter) -> None:
    handed_on = record(DROPPED)
    assert handed_on is not None
    assert (handed_on[:36], handed_on[-2:]) == (DROPPED[:36], "00")
    assert spans.get_finished_spans() == ()


def test_a_change_belongs_to_the_trace_of_the_event_that_decided_it() -> None:
    about = {"source": "test", "time": NOW, "subject": "forsen"}
    observed = {"cluster": "aws", "asked_after": 1, "asked_at": NOW, "answered_at": NOW, "via": "servers"}
    events = [
        ChannelTracked.model_validate({"id": "1", **about, "data": {"service": "test"}}),
        ClusterObserved.model_validate({"id": "2", **about, "traceparent": NOTICE, "data": observed}),
    ]
    records = [
        SimpleNamespace(offset=offset, timestamp=round(NOW.timestamp() * 1000), key=b"forsen", value=event.to_record())
        for offset, event in enumerate(events)
    ]
    (row,) = fold_records(decode_records(records), PartitionLog("log", "id", 0, 1, 1), {}).changes
    published = parse_change(b"forsen", change_event(row).to_record())
    assert (row.traceparent, published.traceparent) == (NOTICE, NOTICE)


def test_a_handover_s_span_tells_its_steps(spans: InMemorySpanExporter) -> None:
    ended = Record(Cause.MOVED, Outcome.DONE, "main", "aws", 5.0, 5.5, 6.0, 26.0, 1)  # type: ignore[arg-type]
    trace_handover("forsen", ended, NOTICE, 1_000.0)  # type: ignore[arg-type]
    (span,) = spans.get_finished_spans()
    assert (span.start_time, span.end_time) == (1_005_000_000_000, 1_026_000_000_000)
    assert [step.name for step in span.events] == ["join sent", "confirmed"]
    assert dict(span.attributes)["serverchange.target"] == "aws"


def test_the_poller_forgets_the_oldest_trace_when_there_are_too_many() -> None:
    traces = Traces()
    for number in range(CHANNELS_MAX + 1):
        traces.note(f"c{number}", NOTICE)  # type: ignore[arg-type]
    traces.note("c2", None)  # type: ignore[arg-type]
    assert traces.parent("c0") is None  # type: ignore[arg-type]
    assert traces.parent("c2") == NOTICE  # type: ignore[arg-type]
    traces.forget("c2")  # type: ignore[arg-type]
    assert traces.parent("c2") is None  # type: ignore[arg-type]


def test_a_collector_without_opentelemetry_is_a_setting_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"serverchange\[services,tracing\]"):
        configure_tracing(ProcessSettings(trace_endpoint="http://127.0.0.1:4318/v1/traces"), service="test")


def test_only_http_collectors_are_taken() -> None:
    with pytest.raises(ValidationError):
        ProcessSettings(trace_endpoint="grpc://127.0.0.1:4317")
