"""A tracer that records its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.tracing import trace
from service.tracing.trace import BatchTrace, Fields, Trace


@dataclass(eq=False)
class RecordedTrace:
    ids: dict[str, str] = field(default_factory=lambda: {"trace_id": "t", "span_id": "s"})
    exemplar: dict[str, str] | None = field(default_factory=lambda: {"trace_id": "t"})
    reply: str = "00-t-s-01"
    stages: list[tuple[str, float]] = field(default_factory=list)
    ends: list[Fields] = field(default_factory=list)

    def stage(self, name: str, seconds: float) -> None:
        self.stages.append((name, seconds))

    def end(self, fields: Fields) -> None:
        trace.current.set(trace.NO_TRACE)
        self.ends.append(fields)


@dataclass
class RecordingTracer:
    is_enabled = True
    traces: list[RecordedTrace] = field(default_factory=list)
    batches: list[tuple[BatchTrace, list[tuple[Trace, float]]]] = field(default_factory=list)

    def begin(self, headers: Mapping[str, str], scope: Mapping[str, Any]) -> RecordedTrace:
        new = RecordedTrace()
        self.traces.append(new)
        trace.current.set(new)
        return new

    def batch(self, batch: BatchTrace, waiting: Iterable[tuple[Trace, float]]) -> None:
        self.batches.append((batch, list(waiting)))

    def close(self) -> None:
        """No-op."""
