"""The outermost middleware: request ids, error responses, the access log and traces."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from service import logs
from service.api.middleware import RequestMiddleware
from service.api.request import CONTEXT_KEY
from service.errors import QueueFull
from service.metrics import Metrics
from service.tracing import trace
from service.tracing.trace import NO_TRACE
from tests.unit.tracing.recording import RecordingTracer


async def call(app: Any, **scope: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    middleware = RequestMiddleware(app, Metrics(CollectorRegistry()))
    await middleware({"type": "http", "method": "POST", "path": "/x", "headers": [], **scope}, receive, send)
    return sent


async def test_the_log_has_the_request_id_only_while_the_request_runs() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(logs.request_id.get())
        raise QueueFull("full")

    await call(app, headers=[(b"x-request-id", b"mine")])
    assert seen == ["mine"]
    assert logs.request_id.get() == ""


async def test_a_service_error_becomes_a_problem_response() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise QueueFull("full", retry_after_s=1.5)

    start, body = await call(app)
    assert start["status"] == 429
    assert (b"retry-after", b"2") in start["headers"]
    assert b'"queue_full"' in body["body"]


async def test_an_error_after_the_response_has_started_is_not_answered_again() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise QueueFull("full")

    with pytest.raises(QueueFull):
        await call(app)


async def test_a_request_is_logged_once_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": "/v1/classify"})
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with caplog.at_level(logging.INFO, "service.access"):
        await call(app, query_string=b"q=secret", path="/v1/secret")
    (record,) = caplog.records
    assert (record.method, record.route, record.status) == ("POST", "/v1/classify", 200)  # type: ignore[attr-defined]
    assert "secret" not in str(vars(record))


async def test_probes_are_logged_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": "/livez"})
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with caplog.at_level(logging.DEBUG, "service.access"):
        await call(app)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


async def test_head_is_answered_like_get_and_logged_as_head(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["method"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with caplog.at_level(logging.INFO, "service.access"):
        await call(app, method="HEAD")
    assert seen == ["GET"]
    assert [record.method for record in caplog.records] == ["HEAD"]  # type: ignore[attr-defined]


async def test_a_scope_that_is_not_http_passes_through() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await call(app, type="lifespan")
    assert seen == ["lifespan"]


pytestmark = pytest.mark.anyio


async def traced_call(tracer: RecordingTracer, app: Any, metrics: Metrics, path: str = "/x") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body must not be read")

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"x-request-id", b"mine")]}
    await RequestMiddleware(app, metrics, tracer)(scope, receive, send)
    return sent


async def answer(scope: Any, receive: Any, send: Any) -> None:
    scope["route"] = type("Route", (), {"path": "/v1/classify"})
    scope[CONTEXT_KEY].task = "classify"
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_a_request_has_a_trace_from_start_to_end() -> None:
    tracer, seen = RecordingTracer(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(trace.current.get())
        await answer(scope, receive, send)

    [start] = await traced_call(tracer, app, Metrics(CollectorRegistry()))
    assert seen == tracer.traces
    assert trace.current.get() is NO_TRACE
    assert (b"traceresponse", b"00-t-s-01") in start["headers"]
    [fields] = tracer.traces[0].ends
    traced = {name: fields[name] for name in ("request_id", "method", "route", "status", "task")}
    assert traced == {
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/classify",
        "status": 200,
        "task": "classify",
    }


async def test_the_duration_of_a_request_has_an_exemplar_of_its_trace() -> None:
    metrics = Metrics(CollectorRegistry())
    await traced_call(RecordingTracer(), answer, metrics)
    page = generate_latest(metrics.registry).decode()
    [line] = [line for line in page.splitlines() if 'trace_id="t"' in line]
    assert line.startswith("erlangshen_request_duration_seconds_bucket{")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_probes_have_no_trace(path: str) -> None:
    tracer = RecordingTracer()
    [start] = await traced_call(tracer, answer, Metrics(CollectorRegistry()), path)
    assert tracer.traces == []
    assert [name for name, _ in start["headers"]] == [b"x-request-id"]
