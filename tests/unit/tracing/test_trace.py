"""Tracing: null objects while it is off, and the error when its packages are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.errors import SettingError
from service.tracing import trace
from service.tracing.otlp import OtlpTracer
from service.tracing.trace import NO_TRACE, NO_TRACER, BatchTrace, open_tracer


@pytest.mark.parametrize("endpoint", [None, ""])
def test_tracing_is_off_without_an_endpoint(endpoint: str | None) -> None:
    assert open_tracer(endpoint, protocol=None, sample_ratio=None, version="1") is NO_TRACER


def test_the_null_tracer_gives_no_trace_and_reads_no_rows() -> None:
    request = NO_TRACER.begin({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {})
    assert request is NO_TRACE
    assert trace.current.get() is NO_TRACE
    assert (request.ids, request.exemplar, request.reply) == ({}, None, "")
    rows = iter([(request, 1.0)])
    NO_TRACER.batch(BatchTrace(1.0, 1.0, "", {}), rows)
    assert next(rows) == (request, 1.0)


def test_opentelemetry_is_not_imported_while_tracing_is_off() -> None:
    check = "import sys, service.commands.serving; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_error_of_missing_packages_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.tracing.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingError, match=r"tracing.endpoint: .* pip install -r requirements/tracing.txt"):
        open_tracer("http://127.0.0.1:9", protocol=None, sample_ratio=None, version="1")


def test_missing_packages_are_a_warning_if_only_a_variable_asks_for_tracing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "service.tracing.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert open_tracer(None, protocol=None, sample_ratio=None, version="1") is NO_TRACER
    [line] = caplog.records
    assert "pip install -r requirements/tracing.txt" in vars(line)["reason"]


def test_the_packages_of_grpc_are_asked_for_only_by_its_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    open_tracer("http://127.0.0.1:9", protocol="http/protobuf", sample_ratio=None, version="1").close()
    with pytest.raises(SettingError, match=r"tracing.endpoint: grpc is not installed"):
        open_tracer("http://127.0.0.1:9", protocol="grpc", sample_ratio=None, version="1")


def test_a_standard_variable_turns_tracing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracer = open_tracer(None, protocol=None, sample_ratio=None, version="1")
    assert isinstance(tracer, OtlpTracer)
    tracer.close()


def test_the_log_names_the_collector_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    open_tracer("http://me:s3cret@127.0.0.1:9", protocol=None, sample_ratio=None, version="1").close()
    [line] = [line for line in caplog.records if line.name == "service.tracing.trace"]
    assert vars(line)["collector"] == "127.0.0.1:9"


def test_tracing_is_on_with_an_endpoint() -> None:
    tracer = open_tracer("http://127.0.0.1:9", protocol=None, sample_ratio=None, version="1")
    assert isinstance(tracer, OtlpTracer)
    tracer.close()
