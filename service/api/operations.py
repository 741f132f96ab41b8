"""What operators and their machines ask: alive, ready, metrics, models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from service.api.openapi import NO_KEY, NOT_READY
from service.api.request import require_ready
from service.api.shortcut import Endpoint
from service.errors import Unavailable
from service.metrics import Metrics
from service.tasks.classification import ClassifyQuery
from service.tasks.embedding import EmbedQuery
from service.tasks.fill_mask import FillMaskQuery
from service.tasks.mrc import MrcQuery
from service.tasks.nli import NliQuery
from service.tasks.registry import TASKS
from service.tasks.similarity import SimilarityQuery
from service.tasks.text_model import TextModel

_PROBES = {
    "classify": (ClassifyQuery((), labels=("",)), ClassifyQuery(())),
    "similarity": (SimilarityQuery(()),),
    "mrc": (MrcQuery(()),),
    "nli": (NliQuery(()),),
    "fill-mask": (FillMaskQuery(()),),
    "embed": (EmbedQuery(()),),
}


class ModelInfo(BaseModel):
    """One model that is served."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="What `model` in a request calls it.")
    source: str = Field(description="Where it came from: a directory or a hub id.")
    revision: str | None = None
    family: str = Field(description="`megatron-bert` or `bert`.")
    kind: str = Field(description="`masked-lm`, `sequence-classification` or `encoder`.")
    tasks: list[str] = Field(description="The tasks it can do.")
    zero_shot: bool = Field(description="Whether a request may bring its own labels.")
    labels: list[str] = Field(description="The labels of its own head; empty when it has none.")
    max_length: int = Field(description="Tokens of one row, special ones included.")
    num_parameters: int = Field(description="Of embeddings and encoder; a head adds a little.")
    num_layers: int
    hidden_size: int
    ffn_size: int = Field(description="Width inside the feed-forward of a layer.")
    precision: list[str] = Field(description="Arithmetic in use, by replica where they differ; empty until loaded.")


class ReplicaInfo(BaseModel):
    """One process that computes."""

    model_config = ConfigDict(frozen=True)

    name: str
    device: str
    threads: int = Field(description="CPU threads that it computes with.")
    state: str = Field(description="starting, loading, ready, restarting or stopped.")


class ModelsReply(BaseModel):
    """What is served, and by whom."""

    models: list[ModelInfo]
    replicas: list[ReplicaInfo]


def abilities(model: TextModel) -> list[str]:
    """Names of the tasks that a model can do in at least one way."""
    return [name for name, task in TASKS.items() if any(task.can(model, query) for query in _PROBES[name])]


def new_registry() -> CollectorRegistry:
    """A registry that already holds the process's own memory, CPU and descriptors."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


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


_PROBED = {"/livez": ("Is it worth keeping", "alive"), "/readyz": ("Can it answer requests", "ready")}

Answers = dict[int | str, dict[str, Any]]


def probes(alive: Callable[[], str | None], ready: Callable[[], str | None]) -> dict[str, Endpoint]:
    """What machines ask all the time, by path. `alive` and `ready` give the reason why not, or None."""

    async def livez(request: Request) -> Response:
        if reason := alive():
            raise Unavailable(f"not alive: {reason}")
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        require_ready(ready)
        return _json({"status": "ready"})

    return {"/livez": livez, "/readyz": readyz}


def router(probes: Mapping[str, Endpoint], info: Callable[[], ModelsReply], metrics: Metrics) -> APIRouter:
    """The GET routes; they answer while models load, too."""
    routes = APIRouter(tags=["operations"], default_response_class=Response)
    for path, (summary, status) in _PROBED.items():
        routes.get(path, summary=summary, responses=_ok({"status": status}) | NOT_READY)(probes[path])

    @routes.get("/v1/models", summary="What is served", responses=_ok(_EXAMPLE, ModelsReply) | NO_KEY)
    async def models() -> Response:
        return _json(info().model_dump())

    @routes.get("/metrics", summary="Metrics for Prometheus", responses=_METRICS_TEXT | NO_KEY)
    async def measurements(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), media_type=media_type)

    return routes


_METRICS_TEXT: Answers = {
    200: {
        "description": "Every metric, in Prometheus' text format.",
        "content": {"text/plain": {"example": "erlangshen_queue_jobs 0.0\n"}},
    }
}


def _ok(example: dict[str, Any], model: type[BaseModel] | None = None) -> Answers:
    answer: dict[str, Any] = {"description": "Yes.", "content": {"application/json": {"example": example}}}
    if model is not None:
        answer |= {"model": model, "description": model.__doc__}
    return {200: answer}


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
