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
    assert open_tracer(endpoint, sample_ratio=1.0, version="1") is NO_TRACER


def test_the_null_tracer_gives_no_trace_and_reads_no_rows() -> None:
    request = NO_TRACER.begin({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert request is NO_TRACE
    assert trace.current.get() is NO_TRACE
    assert (request.ids, request.exemplar, request.reply) == ({}, None, "")
    rows = iter([(request, 1.0)])
    NO_TRACER.batch(BatchTrace(1.0, 1.0, "", {}), rows)
    assert next(rows) == (request, 1.0)


def test_opentelemetry_is_not_imported_while_tracing_is_off() -> None:
    check = "import sys, service.commands.serve; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_error_of_missing_packages_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.tracing.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingError, match=r"tracing.endpoint: .* pip install -r requirements/tracing.txt"):
        open_tracer("http://127.0.0.1:9", sample_ratio=1.0, version="1")


def test_tracing_is_on_with_an_endpoint() -> None:
    tracer = open_tracer("http://127.0.0.1:9", sample_ratio=1.0, version="1")
    assert isinstance(tracer, OtlpTracer)
    tracer.close()
