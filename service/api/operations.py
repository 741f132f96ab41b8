"""Operational routes: liveness, readiness, metrics and the served models. They respond while models load, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.load import LoadReply
from service.api.openapi import NO_KEY, NOT_READY, described_elsewhere
from service.api.request import PlainRoute, not_ready
from service.api.schemas import ModelsReply
from service.api.state import ServiceState
from service.errors import Unavailable
from service.logs import num_dropped
from service.tasks.registry import TASKS


@dataclass(frozen=True, slots=True)
class OperationRoutes:
    state: ServiceState

    async def livez(self, request: Request) -> Response:
        if reason := self.state.why_not_alive():
            raise Unavailable(f"not alive: {reason}")
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        if reason := self.state.why_not_ready():
            raise not_ready(reason)
        return _json({"status": "ready"})

    async def models(self, request: Request) -> Response:
        return _json(self.state.models().model_dump())

    async def metrics(self, request: Request) -> Response:
        self.state.metrics.log_lines_are_dropped(num_dropped())
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.state.metrics.registry), media_type=media_type)

    def routes(self) -> list[PlainRoute]:
        return [
            PlainRoute("/livez", self.livez),
            PlainRoute("/readyz", self.readyz),
            PlainRoute("/v1/models", self.models),
            PlainRoute("/metrics", self.metrics),
        ]


Answers = dict[int | str, dict[str, Any]]

_EXAMPLE = {
    "models": [
        {
            "name": "mini",
            "source": "mini",
            "revision": None,
            "family": "megatron-bert",
            "kind": "masked-lm",
            "tasks": list(TASKS),
            "zero_shot": True,
            "labels": [],
            "max_length": 512,
            "num_parameters": 5_308_160,
            "num_layers": 4,
            "hidden_size": 256,
            "ffn_size": 1024,
            "precision": ["bfloat16"],
        }
    ],
    "replicas": [{"name": "cpu", "device": "cpu", "threads": 2, "state": "ready"}],
}

_LOAD = {
    "window_s": 30.0,
    "requests_per_s": 41.3,
    "p95_ms": 87.5,
    "requests_in_progress": 6,
    "queue_rows": 12,
    "queue_tokens": 560,
    "queue_wait_ms": 21.4,
    "batch_rows": 9.6,
    "batch_tokens": 412.5,
}

_METRICS_TEXT: Answers = {
    200: {
        "description": "All metrics in Prometheus' text format.",
        "content": {"text/plain": {"example": "erlangshen_queue_jobs 0.0\n"}},
    }
}


def document(router: APIRouter) -> None:
    """Adds these routes to the OpenAPI document."""
    for path, operation_id, summary, responses in (
        ("/livez", "livez_livez_get", "Liveness probe", ok({"status": "alive"}) | NOT_READY),
        ("/readyz", "readyz_readyz_get", "Readiness probe", ok({"status": "ready"}) | NOT_READY),
        ("/v1/models", "models_v1_models_get", "Models and replicas", ok(_EXAMPLE, ModelsReply) | NO_KEY),
        ("/v1/load", "load_v1_load_get", "Load of the last seconds", ok(_LOAD, LoadReply) | NO_KEY),
        ("/metrics", "measurements_metrics_get", "Metrics for Prometheus", _METRICS_TEXT | NO_KEY),
    ):
        router.add_api_route(
            path,
            described_elsewhere,
            operation_id=operation_id,
            summary=summary,
            responses=responses,
            tags=["operations"],
            response_class=Response,
        )


def ok(example: dict[str, Any], model: type[BaseModel] | None = None) -> Answers:
    answer: dict[str, Any] = {"description": "Success.", "content": {"application/json": {"example": example}}}
    if model is not None:
        answer |= {"model": model, "description": model.__doc__}
    return {200: answer}


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
