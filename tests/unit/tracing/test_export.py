"""Spans sent to collectors in this process, by OTLP over HTTP and over gRPC, as settings and variables say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from service.tracing.environment import ExportProtocol
from service.tracing.otlp import OtlpTracer
from service.tracing.trace import open_tracer
from tests.certificates import make_certificate
from tests.support.collectors import Collector, collecting, collecting_by_grpc

SCOPE = {"method": "GET", "scheme": "http", "path": "/v1/models", "http_version": "1.1"}
PROTOCOLS = pytest.mark.parametrize(
    ("protocol", "collect"), [("http/protobuf", collecting), ("grpc", collecting_by_grpc)], ids=["http", "grpc"]
)
Collect = Callable[[], AbstractContextManager[Collector]]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def send_span(endpoint: str | None, protocol: ExportProtocol | None) -> None:
    """Sends the span of one request, and waits until it was taken."""
    tracer = open_tracer(endpoint, protocol=protocol, sample_ratio=None, version="1.2")
    assert isinstance(tracer, OtlpTracer)
    tracer.begin({"host": "nlp.example"}, SCOPE).end({"method": "GET", "route": "/v1/models", "status": 200})
    tracer.close()


@PROTOCOLS
def test_a_span_arrives_at_the_endpoint_of_the_settings(protocol: ExportProtocol, collect: Collect) -> None:
    with collect() as collector:
        send_span(collector.url, protocol)
    [span] = collector.spans()
    assert span.name == "GET /v1/models"
    attributes = {one.key: one.value for one in span.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["server.address"].string_value == "nlp.example"


@PROTOCOLS
def test_a_span_arrives_as_the_variables_say(
    protocol: ExportProtocol, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collect() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20abc,x-tenant=mine")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "nlp")
        send_span(None, None)
    [headers], [request] = collector.headers, collector.requests
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer abc", "mine")
    resource = {one.key: one.value.string_value for one in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "nlp"
    if protocol == "http/protobuf":  # grpc's server shows no encoding
        assert headers["content-encoding"] == "gzip"


@PROTOCOLS
def test_the_compression_none_is_accepted(
    protocol: ExportProtocol, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK's exporter by gRPC refuses this value of the specification.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with collect() as collector:
        send_span(collector.url, protocol)
    assert len(collector.spans()) == 1


def test_a_span_is_sent_by_grpc_with_tls_to_a_collector_of_that_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate[0]))
    with collecting_by_grpc(certificate) as collector:
        assert collector.url.startswith("https://")
        send_span(collector.url, "grpc")
    assert len(collector.spans()) == 1


def test_an_endpoint_without_a_scheme_is_insecure_only_if_the_variable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    with collecting_by_grpc() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removeprefix("http://"))
        send_span(None, None)
    assert len(collector.spans()) == 1
