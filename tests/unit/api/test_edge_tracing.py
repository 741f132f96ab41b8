"""The outermost ring begins a request's trace and ends it, with what the log says of the request."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from service.api.edge import SCOPE_KEY, Edge
from service.metrics import Metrics
from service.tracing import trace
from service.tracing.trace import NO_TRACE
from tests.unit.tracing.recording import RecordingTracer

pytestmark = pytest.mark.anyio


async def traced_call(tracer: RecordingTracer, app: Any, metrics: Metrics, path: str = "/x") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody reads the body")

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"x-request-id", b"mine")]}
    await Edge(app, metrics, tracer)(scope, receive, send)
    return sent


async def answer(scope: Any, receive: Any, send: Any) -> None:
    scope["route"] = type("Route", (), {"path": "/v1/classify"})
    scope[SCOPE_KEY].task = "classify"
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_a_request_has_a_trace_from_its_begin_to_its_end() -> None:
    tracer, seen = RecordingTracer(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(trace.current.get())
        await answer(scope, receive, send)

    [start] = await traced_call(tracer, app, Metrics(CollectorRegistry()))
    assert seen == tracer.begun
    assert trace.current.get() is NO_TRACE
    assert (b"traceresponse", b"00-t-s-01") in start["headers"]
    [fields] = tracer.begun[0].ends
    told = {name: fields[name] for name in ("request_id", "method", "route", "status", "task")}
    assert told == {
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/classify",
        "status": 200,
        "task": "classify",
    }


async def test_its_duration_points_at_its_trace() -> None:
    metrics = Metrics(CollectorRegistry())
    await traced_call(RecordingTracer(), answer, metrics)
    page = generate_latest(metrics.registry).decode()
    [line] = [line for line in page.splitlines() if 'trace_id="t"' in line]
    assert line.startswith("erlangshen_request_duration_seconds_bucket{")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_probes_have_none(path: str) -> None:
    tracer = RecordingTracer()
    [start] = await traced_call(tracer, answer, Metrics(CollectorRegistry()), path)
    assert tracer.begun == []
    assert [name for name, _ in start["headers"]] == [b"x-request-id"]
