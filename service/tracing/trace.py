"""The tracing interface: a tracer starts a trace for each request, and records each batch.

`service.tracing.otlp` implements it with OpenTelemetry, and is imported only if tracing is on. While tracing is off,
the null objects in this file take its place, and nothing is measured or stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from service.errors import SettingError

Fields = Mapping[str, object]
"""Attributes of a request or batch, named as in the log: numbers and names, never a user's text."""


class Trace(Protocol):
    """The trace of one request."""

    @property
    def ids(self) -> Mapping[str, str]:
        """`trace_id` and `span_id`, for log lines."""
        ...

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The ids if the trace is sampled, as an exemplar of a metric; else None."""
        ...

    @property
    def reply(self) -> str:
        """Value of the response header `traceresponse`; empty for no header."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """Records a stage that took `seconds` and ends now."""
        ...

    def end(self, fields: Fields) -> None:
        """Ends the trace. `fields` become its attributes; `method` and `route` are its name."""
        ...


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """A batch that has just finished: taken from the queue `taken_s` ago and computed in `compute_s`.

    `error` is the class name of its error, or empty.
    """

    taken_s: float
    compute_s: float
    error: str
    fields: Fields


class Tracer(Protocol):
    """Starts traces. There is one tracer per service."""

    is_enabled: bool
    """False: nothing is sent, so callers can skip collecting."""

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """Starts the trace of a request; it is the `current` one until it ends."""
        ...

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        """Records a batch. `waiting` has the trace of each row's request, and the seconds since its submission."""
        ...

    def close(self) -> None:
        """Sends the remaining spans; returns after a few seconds at most."""
        ...


class NoTrace:
    """The null trace: tracing is off, or there is no request."""

    ids: Mapping[str, str] = {}
    exemplar = None
    reply = ""

    def stage(self, name: str, seconds: float) -> None:
        """No-op."""

    def end(self, fields: Fields) -> None:
        """No-op."""


NO_TRACE = NoTrace()

current: ContextVar[Trace] = ContextVar("trace", default=NO_TRACE)


class NoTracer:
    """The null tracer: tracing is off."""

    is_enabled = False

    def begin(self, headers: Mapping[str, str]) -> Trace:
        return NO_TRACE

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        """No-op."""

    def close(self) -> None:
        """No-op."""


NO_TRACER = NoTracer()


def open_tracer(endpoint: str | None, *, sample_ratio: float, version: str) -> Tracer:
    """A tracer that sends to the OTLP/HTTP `endpoint`; the null tracer without one.

    Raises:
        SettingError: OpenTelemetry is not installed.
    """
    if not endpoint:
        return NO_TRACER
    try:
        from service.tracing.otlp import OtlpTracer
    except ModuleNotFoundError as error:
        message = f"tracing.endpoint: {error.name} is not installed; pip install -r requirements/tracing.txt"
        raise SettingError(message) from None
    return OtlpTracer.sending_to(endpoint, sample_ratio=sample_ratio, version=version)
