"""A collector of traces, OTLP over HTTP, as far as a test needs one."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Collected:
    """One span as it arrived."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    channel: str
    started_ns: int
    ended_ns: int


@dataclass
class Collector:
    """What arrived so far; wait for what is expected."""

    url: str = ""
    spans: list[Collected] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, find: Callable[[list[Collected]], list[Collected] | None], timeout_s: float) -> list[Collected]:
        """Return what `find` finds, once it does."""
        found: list[Collected] | None = None

        def look() -> bool:
            nonlocal found
            found = find(self.spans)
            return bool(found)

        with self.arrived:
            assert self.arrived.wait_for(look, timeout_s), self.spans
        return found or []


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listen on a free port of loopback."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            with collector.arrived:
                collector.spans += _parse(body)
                collector.arrived.notify_all()
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parse(body: bytes) -> Iterator[Collected]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = {one.key: one.value.string_value for one in span.attributes}
                yield Collected(
                    about["service.name"],
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    told["serverchange.channel"],
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )
