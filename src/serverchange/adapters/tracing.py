"""Traces: one from what was heard, or looked up, to the handover that follows it, over all processes.

CloudEvents' attribute `traceparent` carries it from event to event (extension "Distributed Tracing", W3C Trace
Context). Off unless `process.trace_endpoint` names a collector (OTLP over HTTP); a process that is off hands the
attribute on all the same, so that no trace ends at it. Spans are for people: nothing decides by them.

One tracer a process, as with logs and metrics: `configure_tracing` is called once, by the process's frame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from serverchange.adapters.settings import ProcessSettings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as ApiSpan

INSTRUMENTATION: Final = "serverchange"

Attributes: TypeAlias = Mapping[str, str | int | float | bool | None]
"""What a span says; members that are None are left out."""


class SpanName(StrEnum):
    """Every span; docs/operations.md says what each covers."""

    NOTICE_HEARD = "notice.heard"
    DOUBT_RAISED = "doubt.raised"
    LOOKUP = "lookup"
    FOLD = "fold"
    PUBLISH = "publish"
    HANDOVER = "handover"


class _Tracer:
    """The SDK's provider, None while tracing is off."""

    def __init__(self) -> None:
        self.provider: TracerProvider | None = None


_TRACER: Final = _Tracer()


def configure_tracing(settings: ProcessSettings, *, service: str) -> None:
    """Set the process's tracing up; call it once, before anything is traced.

    Raises:
        SettingsError: a collector is named and OpenTelemetry is not installed.
    """
    if not settings.trace_endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            f"setting process.trace_endpoint: traces need OpenTelemetry ({error}):"
            " pip install 'serverchange[services,tracing]'"
        ) from error
    resource = Resource.create(
        {"service.namespace": "serverchange", "service.name": service, "service.instance.id": settings.name}
    )
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(settings.trace_share), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.trace_endpoint)))
    use_provider(provider)


def use_provider(provider: TracerProvider | None) -> None:
    """Record spans by `provider` from now on; None: not at all."""
    _TRACER.provider = provider


def is_tracing() -> bool:
    """Whether spans are recorded, so that callers need not remember what only spans need."""
    return _TRACER.provider is not None


def flush_traces(timeout_s: float) -> None:
    """Send what is recorded; return after `timeout_s` whatever the collector does."""
    provider = _TRACER.provider
    if provider is not None:
        flushing = threading.Thread(target=provider.force_flush, daemon=True)
        flushing.start()
        flushing.join(timeout_s)


class Span:
    """A span under way. `traceparent` goes into the events that it causes; `end` it once.

    While tracing is off it is nothing, and hands its parent on.
    """

    def __init__(self, name: SpanName, *, parent: str | None, attributes: Attributes) -> None:
        self._span: ApiSpan | None = _start(name, parent, attributes, time.time())
        self.traceparent = parent if self._span is None else _format(self._span)

    def end(self, *, failure: str | None = None) -> None:
        """Say that it is over; `failure` says why it came to nothing."""
        if self._span is not None:
            _fail(self._span, failure)
            self._span.end()


def record_span(
    name: SpanName,
    *,
    parent: str | None,
    started_s: float,
    ended_s: float,
    attributes: Attributes,
    steps: Mapping[str, float] | None = None,
) -> str | None:
    """Record what is over already, and return the `traceparent` of what it causes.

    Args:
        name: what it was.
        parent: `traceparent` of the event that caused it; None begins a trace.
        started_s: when it began, seconds since 1970.
        ended_s: when it was over.
        attributes: what it was about.
        steps: when something of note happened on the way, by name.
    """
    span = _start(name, parent, attributes, started_s)
    if span is None:
        return parent
    for step, at_s in (steps or {}).items():
        span.add_event(step, timestamp=_nanoseconds(at_s))
    span.end(_nanoseconds(ended_s))
    return _format(span)


def _start(name: SpanName, parent: str | None, attributes: Attributes, started_s: float) -> ApiSpan | None:
    provider = _TRACER.provider
    if provider is None:
        return None
    told = {f"serverchange.{key}": value for key, value in attributes.items() if value is not None}
    tracer = provider.get_tracer(INSTRUMENTATION)
    return tracer.start_span(name, context=_context(parent), attributes=told, start_time=_nanoseconds(started_s))


def _context(parent: str | None) -> Context:
    """Return the parent's context; an empty one, which begins a trace, where there is none or it makes no sense."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier = {} if parent is None else {"traceparent": parent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _format(span: ApiSpan) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _fail(span: ApiSpan, failure: str | None) -> None:
    if failure is not None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        span.set_status(Status(StatusCode.ERROR, failure))


def _nanoseconds(at_s: float) -> int:
    return round(at_s * 1e9)
