"""The interface through which the HTTP layer uses the running service."""

from __future__ import annotations

import asyncio
from typing import Protocol

from service.api.label_set_versions import LabelSetVersions
from service.api.memory import MemoryBudget
from service.api.schemas import ModelsReply
from service.domain import RequestOptions
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.stores.batches import BatchStore
from service.tracing.trace import Tracer


class ServiceState(Protocol):
    """The running service. A reason is text for a client; None means alive, ready or accepting."""

    @property
    def pipeline(self) -> Pipeline: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def memory(self) -> MemoryBudget: ...

    @property
    def label_sets(self) -> LabelSetVersions | None:
        """None if this server keeps none."""
        ...

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the service begins to stop: work of many parts ends after the parts that have begun."""
        ...

    @property
    def batches(self) -> BatchStore | None:
        """Batches and their files; None if this server keeps none."""
        ...

    @property
    def tracer(self) -> Tracer: ...

    def why_not_alive(self) -> str | None:
        """For /livez: the reason to restart the process."""
        ...

    def why_not_ready(self) -> str | None:
        """For /readyz: the reason to send new connections to another server."""
        ...

    def why_not_accepting(self) -> str | None:
        """For tasks: the reason to refuse requests. A draining service is not ready, but still accepts requests."""
        ...

    def admit(self, options: RequestOptions) -> None:
        """Checks admission before the body is read. Raises QueueFull, DeadlineUnreachable or Unavailable if even the
        smallest request would be refused."""
        ...

    def models(self) -> ModelsReply:
        """The response of /v1/models."""
        ...
