"""What tracing is to the rest of the service: a tracer begins a trace for each request, and is told of every batch.

Knows no OpenTelemetry: `service.tracing.otlp` does, and is imported only where tracing is on. While it is off the null
objects here stand in its place, and nothing is measured, made or kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from service.errors import SettingError

Fields = Mapping[str, object]
"""What is said of a request or batch: names as in the log, numbers and names, never a user's text."""


class Trace(Protocol):
    """One request's part in a trace."""

    @property
    def ids(self) -> Mapping[str, str]:
        """`trace_id` and `span_id`, for log lines."""
        ...

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The ids, if the trace is kept: then a measurement may point at it."""
        ...

    @property
    def reply(self) -> str:
        """What the caller is told in `traceresponse`; empty: nothing."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """A stage of the request that took so long has ended now."""
        ...

    def end(self, fields: Fields) -> None:
        """The request has ended: `method`, `route` and `status` name the span, all fields go into it."""
        ...


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """A batch that is over. It was taken `taken_s` ago; a replica has just computed it, in `compute_s`, unless there
    was an `error` (the name of its class)."""

    taken_s: float
    compute_s: float
    error: str
    fields: Fields


class Tracer(Protocol):
    """Begins traces. Lives as long as the service."""

    is_enabled: bool
    """False: nothing is sent, so nothing need be collected for it."""

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """A request has come; its trace is the `current` one until it ends."""
        ...

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        """`waiting` tells of each of its rows whose it is, and how many seconds ago that request was submitted."""
        ...

    def close(self) -> None:
        """Sends what is left; takes a few seconds at most."""
        ...


class NoTrace:
    """Tracing is off, or this is no request."""

    ids: Mapping[str, str] = {}
    exemplar = None
    reply = ""

    def stage(self, name: str, seconds: float) -> None:
        """Nobody wants to know."""

    def end(self, fields: Fields) -> None:
        """Nobody wants to know."""


NO_TRACE = NoTrace()

current: ContextVar[Trace] = ContextVar("trace", default=NO_TRACE)


class NoTracer:
    """Tracing is off."""

    is_enabled = False

    def begin(self, headers: Mapping[str, str]) -> Trace:
        return NO_TRACE

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        """Nobody wants to know."""

    def close(self) -> None:
        """There is nothing to send."""


NO_TRACER = NoTracer()


def open_tracer(endpoint: str | None, *, sample_ratio: float, version: str) -> Tracer:
    """Of an OTLP/HTTP `endpoint`; without one tracing is off. SettingError where OpenTelemetry is not installed."""
    if not endpoint:
        return NO_TRACER
    try:
        from service.tracing.otlp import OtlpTracer
    except ModuleNotFoundError as error:
        message = f"tracing.endpoint: {error.name} is not installed; pip install -r requirements/tracing.txt"
        raise SettingError(message) from None
    return OtlpTracer.sending_to(endpoint, sample_ratio=sample_ratio, version=version)
