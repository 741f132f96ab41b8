"""Tracing that is on: requests and batches as OpenTelemetry spans, sent to a collector by OTLP over HTTP.

Knows no HTTP server and no queue. A request is a span with a child for each of its stages. A batch serves many
requests, so it is a trace of its own: linked to every request in it, and each of those has a span linked to it.
Names are those of OpenTelemetry's HTTP conventions, and ours, under `erlangshen.`, where there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Thread

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from service.tracing import trace
from service.tracing.trace import BatchTrace, Fields, Trace

SERVICE_NAME = "erlangshen-service"
EXPORT_TIMEOUT_S = 5.0
CLOSE_S = 3.0
"""What a service that ends waits for a collector."""

MAX_LINKS = 1024
"""More than OpenTelemetry's own 128: as many requests may be in one batch."""

_STANDARD = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "client": "client.address",
}


class RequestTrace:
    """A request as a span."""

    def __init__(self, span: Span, start: Callable[..., Span], clock_ns: Callable[[], int]) -> None:
        self._span = span
        self._start = start
        self._clock_ns = clock_ns
        context = span.get_span_context()
        self.is_sampled = context.trace_flags.sampled
        self.ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        self.exemplar = self.ids if self.is_sampled else None
        self.reply = f"00-{self.ids['trace_id']}-{self.ids['span_id']}-{context.trace_flags:02x}"

    @property
    def link(self) -> Link:
        return Link(self._span.get_span_context())

    def stage(self, name: str, seconds: float) -> None:
        if self.is_sampled:
            now = self._clock_ns()
            self.child(name, now - _ns(seconds), now)

    def child(self, name: str, start: int, end: int, links: Sequence[Link] = ()) -> None:
        """A span within the request; times are in nanoseconds since the epoch."""
        self._start(name, _under(self._span), links=links, start_time=start).end(end)

    def end(self, fields: Fields) -> None:
        trace.current.set(trace.NO_TRACE)
        if self.is_sampled:
            self._span.update_name(f"{fields['method']} {fields.get('route', '')}".rstrip())
            self._span.set_attributes(_attributes(fields))
            if isinstance(status := fields["status"], int) and status >= 500:
                self._span.set_attribute("error.type", str(fields.get("code", status)))
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._clock_ns())


class OtlpTracer:
    """`processor` is where ended spans go."""

    is_enabled = True

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        sample_ratio: float = 1.0,
        version: str = "",
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        mine = Resource({"service.name": SERVICE_NAME, "service.version": version})
        self._provider = TracerProvider(
            sampler=AnyRequest(ParentBased(TraceIdRatioBased(sample_ratio))),
            resource=mine.merge(OTELResourceDetector().detect()),  # OTEL_SERVICE_NAME and the like are the user's
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_links=MAX_LINKS),
        )
        self._provider.add_span_processor(processor)
        self._start = self._provider.get_tracer("service", version).start_span
        self._propagator = TraceContextTextMapPropagator()
        self._clock_ns = clock_ns

    @classmethod
    def sending_to(cls, endpoint: str, *, sample_ratio: float, version: str) -> OtlpTracer:
        url = f"{endpoint.rstrip('/')}/v1/traces"
        exporter = OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S)
        return cls(BatchSpanProcessor(exporter), sample_ratio=sample_ratio, version=version)

    def begin(self, headers: Mapping[str, str]) -> Trace:
        context = self._propagator.extract(headers, Context())
        span = self._start("request", context, kind=SpanKind.SERVER, start_time=self._clock_ns())
        begun = RequestTrace(span, self._start, self._clock_ns)
        trace.current.set(begun)
        return begun

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        sampled = {one: ago for one, ago in waiting if isinstance(one, RequestTrace) and one.is_sampled}
        if not sampled:
            return
        now = self._clock_ns()
        taken = now - _ns(batch.taken_s)
        links = [one.link for one in sampled]
        fields = _attributes(batch.fields)
        span = self._start("batch", Context(), links=links, attributes=fields, start_time=taken)
        if batch.error:
            span.set_attribute("error.type", batch.error)
            span.set_status(Status(StatusCode.ERROR))
        else:
            self._start("replica", _under(span), attributes=fields, start_time=now - _ns(batch.compute_s)).end(now)
        span.end(now)
        to_batch = [Link(span.get_span_context())]
        for one, ago in sampled.items():
            submitted = now - _ns(ago)
            if submitted < taken:  # else it joined a batch that was on its way
                one.child("queue", submitted, taken)
            one.child("batch", max(submitted, taken), now, to_batch)

    def close(self) -> None:
        # The SDK would wait for half a minute, as long as there is no collector.
        closing = Thread(target=self._provider.shutdown, daemon=True, name="last spans")
        closing.start()
        closing.join(CLOSE_S)


class AnyRequest(Sampler):
    """A batch is kept when it is linked to a request that is; all else goes by `requests`."""

    def __init__(self, requests: Sampler) -> None:
        self._requests = requests

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        is_batch = links and not otel.get_current_span(parent_context).get_span_context().is_valid
        sampler = ALWAYS_ON if is_batch else self._requests
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"AnyRequest({self._requests.get_description()})"


def _under(span: Span) -> Context:
    return otel.set_span_in_context(span, Context())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _attributes(fields: Fields) -> dict[str, AttributeValue]:
    return {
        _STANDARD.get(name, f"erlangshen.{name}"): value
        for name, value in fields.items()
        if isinstance(value, str | bool | int | float)
    }
