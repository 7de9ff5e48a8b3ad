"""Owns traces: a span per call, sent out by OTLP when `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) is set.

It must not know what a call does; spans carry routes, states and ids, never keys, bodies or training text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure_tracing() -> None:
    """Sends spans where OpenTelemetry's own variables say; without them spans cost next to nothing and go nowhere."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    # Not at the top: the exporter takes long to import and most installations have none.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = os.environ.get("OTEL_SERVICE_NAME", "tunesmith-control-plane")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def call_span(transport: str, headers: Mapping[str, str], request_id: str) -> Iterator[Span]:
    """The span of one call, a child of the caller's when `headers` carry a `traceparent`; name it at the end."""
    tracer = trace.get_tracer("tunesmith")
    attributes = {"rpc.system" if transport == "grpc" else "network.protocol.name": transport, "request.id": request_id}
    with tracer.start_as_current_span(
        transport, context=propagate.extract(headers), kind=SpanKind.SERVER, attributes=attributes
    ) as span:
        yield span


def name_span(span: Span, method: str, status: str, *, failed: bool) -> None:
    """Writes what is known of a call once it was answered."""
    span.update_name(method)
    span.set_attribute("call.status", status)
    if failed:
        span.set_status(Status(StatusCode.ERROR))


def trace_id() -> str | None:
    """The current trace in hex, for log lines; None without one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
