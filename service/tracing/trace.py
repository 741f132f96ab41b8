"""The tracing interface: a tracer starts a trace for each request, and records each batch.

`service.tracing.otlp` implements it with OpenTelemetry, and is imported only if tracing is on. While tracing is off,
the null objects in this file take its place, and nothing is measured or stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from service.errors import SettingError
from service.host import install_command
from service.tracing.environment import ExportProtocol, resolve_export

logger = logging.getLogger(__name__)

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

    def begin(self, headers: Mapping[str, str], scope: Mapping[str, Any]) -> Trace:
        """Starts the trace of the request with this ASGI scope; it is the `current` one until it ends."""
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

    def begin(self, headers: Mapping[str, str], scope: Mapping[str, Any]) -> Trace:
        return NO_TRACE

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        """No-op."""

    def close(self) -> None:
        """No-op."""


NO_TRACER = NoTracer()


def open_tracer(
    endpoint: str | None, *, protocol: ExportProtocol | None, sample_ratio: float | None, version: str
) -> Tracer:
    """A tracer that sends to `endpoint`, or as OpenTelemetry's variables say; the null tracer if neither asks for one.

    Raises:
        SettingError: a variable has an unsupported value, or OpenTelemetry is not installed and `endpoint` needs it.
    """
    export = resolve_export(endpoint, protocol)
    if export is None:
        return NO_TRACER
    try:
        from service.tracing.otlp import OtlpTracer

        tracer = OtlpTracer.sending(export, sample_ratio=sample_ratio, version=version)
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed; {install_command('-r requirements/tracing.txt')}"
        if export.is_ours:
            raise SettingError(f"tracing.endpoint: {missing}") from None
        # The variables are often set for all pods of a cluster: the service starts as it did without them.
        logger.warning("no tracing, although OpenTelemetry's variables ask for it", extra={"reason": missing})
        return NO_TRACER
    logger.info("tracing", extra={"protocol": export.protocol, "collector": export.target})
    return tracer
