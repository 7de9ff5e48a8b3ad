"""Calls become spans with the caller's trace, and log lines name the trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tunesmith_server import tracing
from tunesmith_server.telemetry import RequestTelemetry, configure_logging

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Spans of this test; the process-wide provider can be set only once, so the tracer is replaced instead."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    return exporter


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_a_request_continues_the_callers_trace(
    exporter: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    with tracing.call_span("http", headers, "req_1") as span:
        logging.getLogger("any").info("within")
        tracing.name_span(span, "GET /v1/files", "503", failed=True)
    (sent,) = exporter.get_finished_spans()
    assert sent.name == "GET /v1/files"
    assert sent.context is not None
    assert trace.format_trace_id(sent.context.trace_id) == TRACE
    assert sent.attributes == {"network.protocol.name": "http", "request.id": "req_1", "call.status": "503"}
    assert not sent.status.is_ok
    assert json.loads(capsys.readouterr().err)["trace_id"] == TRACE


async def test_every_rest_call_is_a_span(exporter: InMemorySpanExporter) -> None:
    app = FastAPI()
    app.add_middleware(RequestTelemetry)

    @app.get("/v1/jobs/{job_id}")
    async def get(job_id: str) -> str:
        return job_id

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/v1/jobs/ftjob-1")
    (sent,) = exporter.get_finished_spans()
    assert sent.name == "GET /v1/jobs/{job_id}"
    assert sent.attributes is not None
    assert sent.attributes["call.status"] == "200"
