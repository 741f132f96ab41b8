"""What the HTTP layer asks of the running service."""

from __future__ import annotations

from typing import Protocol

from service.api.schemas import ModelsReply
from service.domain import RequestOptions
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.tracing.trace import Tracer


class ServiceState(Protocol):
    """The service behind the routes. Reasons are text for a caller; None means yes."""

    @property
    def pipeline(self) -> Pipeline: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def tracer(self) -> Tracer: ...

    def why_not_alive(self) -> str | None:
        """For /livez: restarting the process may help."""
        ...

    def why_not_ready(self) -> str | None:
        """For /readyz: new connections should go elsewhere."""
        ...

    def why_not_accepting(self) -> str | None:
        """For the tasks: a service that drains still answers for a while after it is not ready."""
        ...

    def admit(self, options: RequestOptions) -> None:
        """Raises what a request with these options would be refused with, however small it is."""
        ...

    def models(self) -> ModelsReply:
        """For /v1/models."""
        ...
