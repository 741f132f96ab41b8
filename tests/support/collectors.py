"""OpenTelemetry collectors in this process: OTLP over HTTP, and over gRPC."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_DECODERS = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@dataclass
class Collector:
    """The spans that arrived, and the headers (for gRPC, the metadata) of each request that brought some."""

    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""

    def spans(self) -> list[Span]:
        parts = [part for request in tuple(self.requests) for part in request.resource_spans]
        return [span for part in parts for scope in part.scope_spans for span in scope.spans]

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans() if span.trace_id.hex() == trace]


@contextmanager
def collecting() -> Iterator[Collector]:
    """OTLP over HTTP; its URL is without `/v1/traces`."""
    collector = Collector()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_ours = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if is_ours:
                decode = _DECODERS.get(self.headers.get("content-encoding", ""), bytes)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.requests.append(ExportTraceServiceRequest.FromString(decode(body)))
            self.send_response(200 if is_ours else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """No-op: keeps the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def collecting_by_grpc(certificate: tuple[Path, Path] | None = None) -> Iterator[Collector]:
    """OTLP over gRPC; with TLS if there are a `certificate` and its key."""
    import grpc

    collector = Collector()

    def export(request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        collector.headers.append({str(name): str(value) for name, value in context.invocation_metadata()})
        collector.requests.append(request)
        return ExportTraceServiceResponse()

    method = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    service, _, name = EXPORT[1:].partition("/")
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, handlers=[grpc.method_handlers_generic_handler(service, {name: method})])
        if certificate:
            cert, key = (file.read_bytes() for file in certificate)
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)]))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        collector.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        try:
            yield collector
        finally:
            server.stop(None).wait()
