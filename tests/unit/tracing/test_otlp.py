"""OpenTelemetry spans of requests and batches: nesting, links, times, sampling and errors."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from importlib.metadata import version

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.tracing import trace
from service.tracing.otlp import MAX_LINKS, OtlpTracer
from service.tracing.trace import NO_TRACE, BatchTrace, Trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SCOPE = {
    "method": "POST",
    "scheme": "http",
    "path": "/v1/classify",
    "raw_path": b"/v1/classify",
    "http_version": "1.1",
    "client": ("10.0.0.7", 4711),
    "server": ("10.0.0.1", 8000),
}
FIELDS = {"method": "POST", "route": "/v1/classify", "status": 200, "model": "mini", "duration_ms": 1.5}
S = 10**9


class Clock:
    """A clock in nanoseconds that is set by the test."""

    def __init__(self) -> None:
        self.now = 1000 * S

    def __call__(self) -> int:
        return self.now


class TracerBench:
    """A tracer, its clock, and the spans that it has sent."""

    def __init__(self, sample_ratio: float | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.clock, self._sent = Clock(), InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._sent)
        self.tracer = OtlpTracer(
            processor, sample_ratio=sample_ratio, version="1.2", clock_ns=self.clock, environ=environ or {}
        )

    def begin(self, traceparent: str = "", **headers: str) -> Trace:
        if traceparent:
            headers["traceparent"] = traceparent
        return self.tracer.begin(headers, SCOPE)

    def batch(self, *requests: Trace, error: str = "", submitted_s: float = 2.0) -> None:
        """A batch taken 1 s ago and computed in 0.5 s."""
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
    """Start and end in nanoseconds relative to the clock's start."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time - 1000 * S, span.end_time - 1000 * S


def links(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def test_a_request_is_a_server_span_with_the_access_log_fields() -> None:
    bench = TracerBench()
    request = bench.begin(host="nlp.example:8000")
    bench.clock.now += 3 * S
    request.end(FIELDS)
    [span] = bench.sent()
    assert (span.name, span.kind, span.parent) == ("POST /v1/classify", SpanKind.SERVER, None)
    assert times(span) == (0, 3 * S)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/v1/classify",
        "network.protocol.version": "1.1",
        "client.address": "10.0.0.7",
        "server.address": "nlp.example",
        "server.port": 8000,
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "erlangshen.model": "mini",
        "erlangshen.duration_ms": 1.5,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_the_resource_names_the_service_its_instance_and_the_sdk() -> None:
    bench = TracerBench()
    bench.begin().end(FIELDS)
    attributes = dict(bench.sent()[0].resource.attributes)
    assert uuid.UUID(str(attributes.pop("service.instance.id"))).version == 4
    assert attributes.pop("telemetry.sdk.version") == version("opentelemetry-sdk")
    assert attributes == {
        "service.name": "erlangshen-service",
        "service.version": "1.2",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
    }


def test_an_unknown_method_is_other_in_the_attributes_and_http_in_the_name() -> None:
    bench = TracerBench()
    bench.tracer.begin({}, {**SCOPE, "method": "PURGE"}).end({**FIELDS, "method": "PURGE"})
    [span] = bench.sent()
    assert span.name == "HTTP /v1/classify"
    found = span.attributes or {}
    assert (found["http.request.method"], found["http.request.method_original"]) == ("_OTHER", "PURGE")


def test_the_variable_of_known_methods_replaces_the_list() -> None:
    bench = TracerBench(environ={"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": "PURGE, GET"})
    bench.tracer.begin({}, {**SCOPE, "method": "PURGE"}).end({**FIELDS, "method": "PURGE"})
    bench.begin().end(FIELDS)
    assert [span.name for span in bench.sent()] == ["PURGE /v1/classify", "HTTP /v1/classify"]


def test_a_request_without_a_route_is_named_by_its_method() -> None:
    bench = TracerBench()
    bench.begin().end({"method": "GET", "status": 404})
    assert [span.name for span in bench.sent()] == ["GET"]


@pytest.mark.parametrize(("code", "kind"), [({"code": "replica_lost"}, "replica_lost"), ({}, "503")])
def test_only_server_errors_set_the_error_status(code: dict[str, str], kind: str) -> None:
    bench = TracerBench()
    bench.begin().end({**FIELDS, "status": 422})
    bench.begin().end({**FIELDS, "status": 503, **code})
    client_error, server_error = bench.sent()
    assert client_error.status.status_code is StatusCode.UNSET
    assert server_error.status.status_code is StatusCode.ERROR
    assert (server_error.attributes or {})["error.type"] == kind


def test_the_trace_of_the_client_continues_and_is_returned() -> None:
    bench = TracerBench()
    request = bench.begin(f"00-{TRACE}-{SPAN}-01")
    request.end(FIELDS)
    [span] = bench.sent()
    assert span.parent is not None
    assert (f"{trace_id(span):032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert request.ids == {"trace_id": TRACE, "span_id": f"{span_id(span):016x}"}
    assert request.exemplar == request.ids
    assert request.reply == f"00-{TRACE}-{span_id(span):016x}-01"


def test_a_malformed_traceparent_starts_a_new_trace() -> None:
    bench = TracerBench()
    bench.begin("00-zz-yy-01").end(FIELDS)
    assert bench.sent()[0].parent is None


@pytest.mark.parametrize(("ratio", "flags"), [(1.0, "00"), (0.0, None)])
def test_a_request_that_is_not_sampled_has_ids_and_no_spans(ratio: float, flags: str | None) -> None:
    bench = TracerBench(ratio)
    request = bench.begin(f"00-{TRACE}-{SPAN}-{flags}" if flags else "")
    request.stage("tokenize", 1.0)
    bench.batch(request)
    request.end(FIELDS)
    assert bench.sent() == []
    assert len(request.ids["trace_id"]) == 32
    assert request.exemplar is None
    assert int(request.reply[-2:], 16) & 1 == 0


def test_the_sampling_flag_of_the_client_overrides_the_ratio() -> None:
    bench = TracerBench(0.0)
    bench.begin(f"00-{TRACE}-{SPAN}-01").end(FIELDS)
    assert len(bench.sent()) == 1


def test_a_trace_is_current_until_it_ends() -> None:
    request = TracerBench().begin()
    assert trace.current.get() is request
    request.end(FIELDS)
    assert trace.current.get() is NO_TRACE


def test_a_stage_is_a_child_span_that_ends_now() -> None:
    bench = TracerBench()
    request = bench.begin()
    bench.clock.now += 2 * S
    request.stage("tokenize", 0.5)
    request.end(FIELDS)
    stage = bench.one("tokenize")
    assert stage.parent is not None
    assert stage.parent.span_id == span_id(bench.one("POST /v1/classify"))
    assert times(stage) == (1.5 * S, 2 * S)


def test_a_batch_is_a_separate_trace_linked_in_both_directions() -> None:
    bench = TracerBench()
    requests = [bench.begin(), bench.begin()]
    bench.batch(requests[0], requests[0], requests[1])
    ids = [int(request.ids["span_id"], 16) for request in requests]
    [batch] = [span for span in bench.sent() if span.parent is None]
    assert (batch.name, links(batch), times(batch)) == ("batch", ids, (-1 * S, 0))
    assert dict(batch.attributes or {}) == {
        "erlangshen.model": "mini",
        "erlangshen.rows": 3,
        "erlangshen.tokens": 7,
    }
    inside = [span for span in bench.sent() if span.name == "batch" and span.parent]
    assert [span.parent.span_id for span in inside if span.parent] == ids
    assert [links(span) for span in inside] == [[span_id(batch)]] * 2
    assert {times(span) for span in inside} == {(-1 * S, 0)}
    waits = [span for span in bench.sent() if span.name == "queue"]
    assert [span.parent.span_id for span in waits if span.parent] == ids
    assert {times(span) for span in waits} == {(-2 * S, -1 * S)}
    assert trace_id(batch) not in {trace_id(span) for span in (*inside, *waits)}


def test_the_replica_span_is_a_child_of_the_batch() -> None:
    bench = TracerBench()
    bench.batch(bench.begin())
    replica = bench.one("replica")
    [batch] = [span for span in bench.sent() if span.parent is None]
    assert replica.parent is not None
    assert replica.parent.span_id == span_id(batch)
    assert times(replica) == (-0.5 * S, 0)


def test_a_request_that_joined_a_batch_in_flight_has_no_queue_span() -> None:
    bench = TracerBench()
    bench.batch(bench.begin(), submitted_s=0.25)
    [inside] = [span for span in bench.sent() if span.name == "batch" and span.parent]
    assert times(inside) == (-0.25 * S, 0)
    assert "queue" not in [span.name for span in bench.sent()]


def test_a_lost_batch_is_an_error_without_a_replica_span() -> None:
    bench = TracerBench()
    bench.batch(bench.begin(), error="ReplicaLost")
    [batch] = [span for span in bench.sent() if span.parent is None]
    assert batch.status.status_code is StatusCode.ERROR
    assert (batch.attributes or {})["error.type"] == "ReplicaLost"
    assert "replica" not in [span.name for span in bench.sent()]


def test_a_batch_is_sampled_when_one_of_its_requests_is() -> None:
    bench = TracerBench(0.0)
    kept, left = bench.begin(f"00-{TRACE}-{SPAN}-01"), bench.begin()
    bench.batch(left, kept, NO_TRACE)
    assert links(bench.one("replica")) == []
    [batch] = [span for span in bench.sent() if span.parent is None]
    assert links(batch) == [int(kept.ids["span_id"], 16)]
    assert len(bench.sent()) == 4


def test_a_batch_has_up_to_max_links() -> None:
    bench = TracerBench()
    requests = [bench.begin() for _ in range(MAX_LINKS)]
    bench.batch(*requests)
    [batch] = [span for span in bench.sent() if span.parent is None]
    assert len(batch.links) == MAX_LINKS


def test_close_does_not_wait_for_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_otel_variables_set_the_resource_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    bench = TracerBench()
    bench.begin().end(FIELDS)
    attributes = bench.sent()[0].resource.attributes
    assert attributes["service.name"] == "mine"
    assert attributes["service.version"] == "1.2"
    assert attributes["deployment.environment"] == "test"


@pytest.mark.parametrize(
    ("sampler", "argument", "new", "continued", "refused"),
    [
        ("", "", 1, 1, 0),
        ("always_on", "", 1, 1, 1),
        ("always_off", "", 0, 0, 0),
        ("traceidratio", "0", 0, 0, 0),
        ("traceidratio", "", 1, 1, 1),
        ("parentbased_always_on", "", 1, 1, 0),
        ("parentbased_always_off", "", 0, 1, 0),
        ("parentbased_traceidratio", "0", 0, 1, 0),
    ],
)
def test_the_variable_of_the_sampler_chooses_the_requests(
    sampler: str, argument: str, new: int, continued: int, refused: int
) -> None:
    for traceparent, num_spans in (
        ("", new),
        (f"00-{TRACE}-{SPAN}-01", continued),
        (f"00-{TRACE}-{SPAN}-00", refused),
    ):
        bench = TracerBench(environ={"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})
        bench.begin(traceparent).end(FIELDS)
        assert len(bench.sent()) == num_spans


def test_the_ratio_of_the_settings_overrides_the_variable() -> None:
    bench = TracerBench(0.0, {"OTEL_TRACES_SAMPLER": "always_on"})
    bench.begin().end(FIELDS)
    assert bench.sent() == []


def test_the_spans_of_a_batch_are_sampled_with_their_request_whatever_the_ratio_says_of_them() -> None:
    bench = TracerBench(environ={"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"})
    for _ in range(20):
        bench.batch(bench.begin())
    batches = [span for span in bench.sent() if span.name == "batch" and span.parent is None]
    assert 0 < len(batches) < 20
    for name in ("replica", "queue"):
        assert len([span for span in bench.sent() if span.name == name]) == len(batches)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"OTEL_TRACES_SAMPLER": "xray"}, "OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_PROPAGATORS": "tracecontext,pigeon"}, "OTEL_PROPAGATORS"),
    ],
)
def test_an_invalid_variable_is_logged_and_replaced_by_its_default(
    variables: dict[str, str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = TracerBench(environ=variables)
    bench.begin(f"00-{TRACE}-{SPAN}-01").end(FIELDS)
    assert len(bench.sent()) == 1
    [line] = caplog.records
    assert vars(line)["variable"] == name


@pytest.mark.parametrize(
    ("names", "is_continued"), [("", True), ("baggage,tracecontext", True), ("baggage", False), ("none", False)]
)
def test_the_variable_of_propagators_decides_whether_the_trace_of_the_client_continues(
    names: str, is_continued: bool
) -> None:
    bench = TracerBench(environ={"OTEL_PROPAGATORS": names})
    bench.begin(f"00-{TRACE}-{SPAN}-01").end(FIELDS)
    assert (bench.sent()[0].parent is not None) == is_continued
