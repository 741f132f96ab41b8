"""Requests and batches become spans that are nested, linked, timed and sampled as they should be."""

from __future__ import annotations

import json
import threading

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.tracing import trace
from service.tracing.otlp import MAX_LINKS, OtlpTracer
from service.tracing.trace import NO_TRACE, BatchTrace, Trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FIELDS = {"method": "POST", "route": "/v1/classify", "status": 200, "model": "mini", "duration_ms": 1.5}
S = 10**9


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000 * S

    def __call__(self) -> int:
        return self.now


class Traced:
    """A tracer, its clock, and what it has sent."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self.clock, self._sent = Clock(), InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._sent)
        self.tracer = OtlpTracer(processor, sample_ratio=sample_ratio, version="1.2", clock_ns=self.clock)

    def begin(self, traceparent: str = "") -> Trace:
        return self.tracer.begin({"traceparent": traceparent} if traceparent else {})

    def batch(self, *requests: Trace, error: str = "", submitted_s: float = 2.0) -> None:
        """Taken a second ago, computed in half of one."""
        batch = BatchTrace(1.0, 0.5, error, {"model": "mini", "rows": len(requests), "tokens": 7})
        self.tracer.batch(batch, ((request, submitted_s) for request in requests))

    def sent(self) -> list[ReadableSpan]:
        return list(self._sent.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        [span] = [span for span in self.sent() if span.name == name]
        return span


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def times(span: ReadableSpan) -> tuple[int, int]:
    """Start and end, in nanoseconds before the clock's start (negative) and after."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time - 1000 * S, span.end_time - 1000 * S


def links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def test_a_request_is_a_server_span_with_the_fields_of_its_log_line() -> None:
    traced = Traced()
    request = traced.begin()
    traced.clock.now += 3 * S
    request.end(FIELDS)
    [span] = traced.sent()
    assert (span.name, span.kind, span.parent) == ("POST /v1/classify", SpanKind.SERVER, None)
    assert times(span) == (0, 3 * S)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "erlangshen.model": "mini",
        "erlangshen.duration_ms": 1.5,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.resource.attributes) == {"service.name": "erlangshen-service", "service.version": "1.2"}


def test_a_request_that_found_no_route_is_named_after_its_method_alone() -> None:
    traced = Traced()
    traced.begin().end({"method": "GET", "status": 404})
    assert [span.name for span in traced.sent()] == ["GET"]


@pytest.mark.parametrize(("code", "kind"), [({"code": "replica_lost"}, "replica_lost"), ({}, "503")])
def test_only_what_is_the_services_fault_is_an_error(code: dict[str, str], kind: str) -> None:
    traced = Traced()
    traced.begin().end({**FIELDS, "status": 422})
    traced.begin().end({**FIELDS, "status": 503, **code})
    theirs, ours = traced.sent()
    assert theirs.status.status_code is StatusCode.UNSET
    assert ours.status.status_code is StatusCode.ERROR
    assert (ours.attributes or {})["error.type"] == kind


def test_the_callers_trace_goes_on_and_the_caller_is_told() -> None:
    traced = Traced()
    request = traced.begin(f"00-{TRACE}-{SPAN}-01")
    request.end(FIELDS)
    [span] = traced.sent()
    assert span.parent is not None
    assert (f"{trace_id(span):032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert request.ids == {"trace_id": TRACE, "span_id": f"{span_id(span):016x}"}
    assert request.exemplar == request.ids
    assert request.reply == f"00-{TRACE}-{span_id(span):016x}-01"


def test_a_broken_traceparent_starts_a_trace() -> None:
    traced = Traced()
    traced.begin("00-zz-yy-01").end(FIELDS)
    assert traced.sent()[0].parent is None


@pytest.mark.parametrize(("ratio", "flags"), [(1.0, "00"), (0.0, None)])
def test_who_is_not_sampled_has_ids_and_no_spans(ratio: float, flags: str | None) -> None:
    traced = Traced(ratio)
    request = traced.begin(f"00-{TRACE}-{SPAN}-{flags}" if flags else "")
    request.stage("tokenize", 1.0)
    traced.batch(request)
    request.end(FIELDS)
    assert traced.sent() == []
    assert len(request.ids["trace_id"]) == 32
    assert request.exemplar is None
    assert int(request.reply[-2:], 16) & 1 == 0


def test_the_caller_decides_before_the_ratio_does() -> None:
    traced = Traced(0.0)
    traced.begin(f"00-{TRACE}-{SPAN}-01").end(FIELDS)
    assert len(traced.sent()) == 1


def test_a_request_is_the_current_one_until_it_ends() -> None:
    request = Traced().begin()
    assert trace.current.get() is request
    request.end(FIELDS)
    assert trace.current.get() is NO_TRACE


def test_a_stage_lies_within_its_request_and_ends_now() -> None:
    traced = Traced()
    request = traced.begin()
    traced.clock.now += 2 * S
    request.stage("tokenize", 0.5)
    request.end(FIELDS)
    stage = traced.one("tokenize")
    assert stage.parent is not None
    assert stage.parent.span_id == span_id(traced.one("POST /v1/classify"))
    assert times(stage) == (1.5 * S, 2 * S)


def test_a_batch_is_a_trace_of_its_own_that_is_linked_both_ways() -> None:
    traced = Traced()
    requests = [traced.begin(), traced.begin()]
    traced.batch(requests[0], requests[0], requests[1])
    ids = [int(request.ids["span_id"], 16) for request in requests]
    [batch] = [span for span in traced.sent() if span.parent is None]
    assert (batch.name, links(batch), times(batch)) == ("batch", ids, (-1 * S, 0))
    assert dict(batch.attributes or {}) == {
        "erlangshen.model": "mini",
        "erlangshen.rows": 3,
        "erlangshen.tokens": 7,
    }
    inside = [span for span in traced.sent() if span.name == "batch" and span.parent]
    assert [span.parent.span_id for span in inside if span.parent] == ids
    assert [links(span) for span in inside] == [[span_id(batch)]] * 2
    assert {times(span) for span in inside} == {(-1 * S, 0)}
    waits = [span for span in traced.sent() if span.name == "queue"]
    assert [span.parent.span_id for span in waits if span.parent] == ids
    assert {times(span) for span in waits} == {(-2 * S, -1 * S)}
    assert trace_id(batch) not in {trace_id(span) for span in (*inside, *waits)}


def test_what_the_replica_computed_lies_within_the_batch() -> None:
    traced = Traced()
    traced.batch(traced.begin())
    replica = traced.one("replica")
    [batch] = [span for span in traced.sent() if span.parent is None]
    assert replica.parent is not None
    assert replica.parent.span_id == span_id(batch)
    assert times(replica) == (-0.5 * S, 0)


def test_who_joined_a_batch_on_its_way_did_not_queue() -> None:
    traced = Traced()
    traced.batch(traced.begin(), submitted_s=0.25)
    [inside] = [span for span in traced.sent() if span.name == "batch" and span.parent]
    assert times(inside) == (-0.25 * S, 0)
    assert "queue" not in [span.name for span in traced.sent()]


def test_a_lost_batch_is_an_error_and_no_replica_computed_it() -> None:
    traced = Traced()
    traced.batch(traced.begin(), error="ReplicaLost")
    [batch] = [span for span in traced.sent() if span.parent is None]
    assert batch.status.status_code is StatusCode.ERROR
    assert (batch.attributes or {})["error.type"] == "ReplicaLost"
    assert "replica" not in [span.name for span in traced.sent()]


def test_a_batch_is_kept_for_the_sake_of_one_request() -> None:
    traced = Traced(0.0)
    kept, left = traced.begin(f"00-{TRACE}-{SPAN}-01"), traced.begin()
    traced.batch(left, kept, NO_TRACE)
    assert links(traced.one("replica")) == []
    [batch] = [span for span in traced.sent() if span.parent is None]
    assert links(batch) == [int(kept.ids["span_id"], 16)]
    assert len(traced.sent()) == 4


def test_a_batch_is_linked_to_more_requests_than_opentelemetry_would_keep() -> None:
    traced = Traced()
    requests = [traced.begin() for _ in range(MAX_LINKS)]
    traced.batch(*requests)
    [batch] = [span for span in traced.sent() if span.parent is None]
    assert len(batch.links) == MAX_LINKS


def test_an_end_does_not_wait_for_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(SpanProcessor):
        def shutdown(self) -> None:
            gate.wait()
            ended.set()

    gate, ended = threading.Event(), threading.Event()
    monkeypatch.setattr("service.tracing.otlp.CLOSE_S", 0.01)
    OtlpTracer(Stuck()).close()
    assert not ended.is_set()
    gate.set()
    assert ended.wait(10)


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    traced = Traced()
    traced.begin().end(FIELDS)
    attributes = json.loads(traced.sent()[0].resource.to_json())["attributes"]
    assert attributes == {"service.name": "mine", "service.version": "1.2", "deployment.environment": "test"}
