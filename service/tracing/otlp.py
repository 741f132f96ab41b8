"""Sends requests and batches as OpenTelemetry spans to a collector, by OTLP over HTTP or gRPC.

A request is a span with one child per stage. A batch computes rows of several requests, so it has a trace of its own:
its span links to the requests, and each of these has a child that links to the batch. Attribute names follow
OpenTelemetry's HTTP conventions; all other attributes are named `erlangshen.*`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from threading import Thread
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from service.tracing import trace
from service.tracing.environment import Export
from service.tracing.http_attributes import known_methods, request_attributes, span_name
from service.tracing.trace import BatchTrace, Fields, Trace

logger = logging.getLogger(__name__)

SERVICE_NAME = "erlangshen-service"
CLOSE_S = 3.0
"""Longest wait for the collector when the service stops."""

MAX_LINKS = 1024
"""Limit on the links of a span. OpenTelemetry's default of 128 is less than the requests that one batch can hold."""

_STANDARD = {"route": "http.route", "status": "http.response.status_code"}
_SET_AT_START = {"method", "client"}
"""Fields of the access log that `request_attributes` has set in another form."""
_SAMPLERS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda ratio: ALWAYS_ON,
    "always_off": lambda ratio: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda ratio: ParentBased(ALWAYS_ON),
    "parentbased_always_off": lambda ratio: ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": lambda ratio: ParentBased(TraceIdRatioBased(ratio)),
}
_DEFAULT_SAMPLER = "parentbased_always_on"


class RequestTrace:
    """The span of one request; implements `Trace`."""

    def __init__(
        self, span: Span, start: Callable[..., Span], clock_ns: Callable[[], int], known: Collection[str]
    ) -> None:
        self._span = span
        self._start = start
        self._clock_ns = clock_ns
        self._known_methods = known
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
            self.child(name, now - _to_ns(seconds), now)

    def child(self, name: str, start: int, end: int, links: Sequence[Link] = ()) -> None:
        """Adds a child span; `start` and `end` are nanoseconds since the epoch."""
        self._start(name, _parent(self._span), links=links, start_time=start).end(end)

    def end(self, fields: Fields) -> None:
        trace.current.set(trace.NO_TRACE)
        if self.is_sampled:
            route = fields.get("route")
            self._span.update_name(span_name(str(fields["method"]), str(route or ""), self._known_methods))
            self._span.set_attributes(_attributes(fields))
            if isinstance(status := fields["status"], int) and status >= 500:
                self._span.set_attribute("error.type", str(fields.get("code", status)))
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._clock_ns())


class OtlpTracer:
    """Sends spans through `processor`; implements `Tracer`."""

    is_enabled = True

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        sample_ratio: float | None = None,
        version: str = "",
        clock_ns: Callable[[], int] = time.time_ns,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Without `sample_ratio`, the variables of OpenTelemetry in `environ` choose the sampler."""
        named = OTELResourceDetector().detect().attributes
        defaults = {"service.name": SERVICE_NAME, "service.version": version}
        self._provider = TracerProvider(
            sampler=SpanSampler(make_sampler(sample_ratio, environ)),
            # The detectors' attributes yield to these, so those that a variable names are left out.
            resource=Resource.create({name: value for name, value in defaults.items() if name not in named}),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_links=MAX_LINKS),
        )
        self._provider.add_span_processor(processor)
        self._start = self._provider.get_tracer("service", version, schema_url=Schemas.V1_44_0.value).start_span
        self._propagator = make_propagator(environ.get("OTEL_PROPAGATORS", ""))
        self._known_methods = known_methods(environ)
        self._clock_ns = clock_ns

    @classmethod
    def sending(cls, export: Export, *, sample_ratio: float | None, version: str) -> OtlpTracer:
        """Raises ModuleNotFoundError if the packages of the export's protocol are not installed."""
        return cls(BatchSpanProcessor(make_exporter(export)), sample_ratio=sample_ratio, version=version)

    def begin(self, headers: Mapping[str, str], scope: Mapping[str, Any]) -> Trace:
        context = self._propagator.extract(headers, Context())
        span = self._start("request", context, kind=SpanKind.SERVER, start_time=self._clock_ns())
        request_trace = RequestTrace(span, self._start, self._clock_ns, self._known_methods)
        if request_trace.is_sampled:
            span.set_attributes(request_attributes(scope, headers, self._known_methods))
        trace.current.set(request_trace)
        return request_trace

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        sampled = {one: ago for one, ago in waiting if isinstance(one, RequestTrace) and one.is_sampled}
        if not sampled:
            return
        now = self._clock_ns()
        taken = now - _to_ns(batch.taken_s)
        links = [one.link for one in sampled]
        fields = _attributes(batch.fields)
        span = self._start("batch", Context(), links=links, attributes=fields, start_time=taken)
        if batch.error:
            span.set_attribute("error.type", batch.error)
            span.set_status(Status(StatusCode.ERROR))
        else:
            compute_start = now - _to_ns(batch.compute_s)
            self._start("replica", _parent(span), attributes=fields, start_time=compute_start).end(now)
        span.end(now)
        to_batch = [Link(span.get_span_context())]
        for one, ago in sampled.items():
            submitted = now - _to_ns(ago)
            if submitted < taken:  # else the request shares a row of a batch that was in flight already
                one.child("queue", submitted, taken)
            one.child("batch", max(submitted, taken), now, to_batch)

    def close(self) -> None:
        # Without a collector the SDK's own shutdown blocks for half a minute.
        closing = Thread(target=self._provider.shutdown, daemon=True, name="last spans")
        closing.start()
        closing.join(CLOSE_S)


class SpanSampler(Sampler):
    """Samples requests by `requests`, the spans inside of one as that request, and every batch.

    A batch has a span only if it links to a sampled request.
    """

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
        parent = otel.get_current_span(parent_context).get_span_context()
        if parent.is_valid and not parent.is_remote:
            sampler: Sampler = ALWAYS_ON if parent.trace_flags.sampled else ALWAYS_OFF
        else:
            sampler = ALWAYS_ON if links else self._requests
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"SpanSampler({self._requests.get_description()})"


def make_exporter(export: Export) -> SpanExporter:
    """The exporter reads headers and certificates from OpenTelemetry's variables."""
    if export.protocol == "http/protobuf":
        compression = HttpCompression(export.compression)
        return OTLPSpanExporter(export.endpoint, timeout=export.timeout_s, compression=compression)
    # Only here, because grpc is large.
    from grpc import Compression
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

    return GrpcSpanExporter(
        export.endpoint,
        # The scheme decides before OTEL_EXPORTER_OTLP_INSECURE, which is for an endpoint without one.
        insecure=True if export.endpoint.startswith("http://") else None,
        timeout=export.timeout_s,
        compression=Compression.Gzip if export.compression == "gzip" else Compression.NoCompression,
    )


def make_sampler(ratio: float | None, environ: Mapping[str, str]) -> Sampler:
    """A sampler of `ratio` that follows the client's decision; without one, that of OTEL_TRACES_SAMPLER.

    An invalid variable is logged and replaced by its default, as the specification wants it.
    """
    if ratio is not None:
        return ParentBased(TraceIdRatioBased(ratio))
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or _DEFAULT_SAMPLER
    if name not in _SAMPLERS:
        _warn_invalid("OTEL_TRACES_SAMPLER", name, f"one of {', '.join(_SAMPLERS)}", _DEFAULT_SAMPLER)
        name = _DEFAULT_SAMPLER
    argument = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if not name.endswith("traceidratio") or not argument:
        return _SAMPLERS[name](1.0)
    try:
        return _SAMPLERS[name](float(argument))
    except ValueError:  # no number, or none between 0 and 1
        _warn_invalid("OTEL_TRACES_SAMPLER_ARG", argument, "a number from 0 to 1", "1")
        return _SAMPLERS[name](1.0)


def make_propagator(names: str) -> TextMapPropagator:
    """The propagators with these comma-separated names; W3C Trace Context without any.

    Those that are not installed are logged and left out. Baggage is read by nothing in this service.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or ["tracecontext"]
    if "none" in wanted:
        return CompositePropagator([])
    found: list[TextMapPropagator] = []
    for name in dict.fromkeys(wanted):
        if name == "tracecontext":
            found.append(TraceContextTextMapPropagator())
        elif entries := list(entry_points(group="opentelemetry_propagator", name=name)):
            found.append(entries[0].load()())
        else:
            wish = f"an installed propagator; opentelemetry-propagator-{name} may be the package"
            _warn_invalid("OTEL_PROPAGATORS", name, wish, "nothing for it")
    return CompositePropagator(found)


def _warn_invalid(variable: str, value: str, wanted: str, taken: str) -> None:
    logger.warning("invalid variable", extra={"variable": variable, "value": value, "wanted": wanted, "taken": taken})


def _parent(span: Span) -> Context:
    return otel.set_span_in_context(span, Context())


def _to_ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _attributes(fields: Fields) -> dict[str, AttributeValue]:
    return {
        _STANDARD.get(name, f"erlangshen.{name}"): value
        for name, value in fields.items()
        if isinstance(value, str | bool | int | float) and name not in _SET_AT_START
    }
