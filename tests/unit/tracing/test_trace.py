"""Tracing that is off does nothing, and says what is missing when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.errors import SettingError
from service.tracing import trace
from service.tracing.otlp import OtlpTracer
from service.tracing.trace import NO_TRACE, NO_TRACER, BatchTrace, open_tracer


@pytest.mark.parametrize("endpoint", [None, ""])
def test_without_an_endpoint_it_is_off(endpoint: str | None) -> None:
    assert open_tracer(endpoint, sample_ratio=1.0, version="1") is NO_TRACER


def test_while_it_is_off_no_request_has_a_trace_and_no_row_is_looked_at() -> None:
    request = NO_TRACER.begin({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert request is NO_TRACE
    assert trace.current.get() is NO_TRACE
    assert (request.ids, request.exemplar, request.reply) == ({}, None, "")
    rows = iter([(request, 1.0)])
    NO_TRACER.batch(BatchTrace(1.0, 1.0, "", {}), rows)
    assert next(rows) == (request, 1.0)


def test_while_it_is_off_opentelemetrys_sdk_is_not_even_imported() -> None:
    check = "import sys, service.commands.serve; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_whoever_lacks_the_packages_is_told_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.tracing.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingError, match=r"tracing.endpoint: .* pip install -r requirements/tracing.txt"):
        open_tracer("http://127.0.0.1:9", sample_ratio=1.0, version="1")


def test_with_an_endpoint_it_is_on() -> None:
    tracer = open_tracer("http://127.0.0.1:9", sample_ratio=1.0, version="1")
    assert isinstance(tracer, OtlpTracer)
    tracer.close()
