"""Calls and fields that several protocols share."""

from __future__ import annotations

from starlette.responses import Response

from service.api.auth import OPEN, READERS
from service.api.calls import Call
from service.api.exchange import Exchange, json_response
from service.api.request import not_ready
from service.api.schemas import ModelCard, ModelInfo
from service.errors import ModelNotFound


async def health(exchange: Exchange, body: None) -> Response:
    """200 while the service is ready, else 503. The status in the body is Label Studio's; other clients read none."""
    if reason := exchange.state.why_not_ready():
        raise not_ready(reason)
    return json_response({"status": "UP"})


HEALTH = Call("GET", "/health", health, scopes=OPEN, roots=("/health",), summary="Whether the service is ready")


async def describe_model(exchange: Exchange, body: None) -> Response:
    """One served model, in the words of OpenAI's API and of KServe's."""
    return json_response(ModelCard.of(find_model(exchange, exchange.request.path_params["model"])).model_dump())


DESCRIBE_MODEL = Call(
    "GET",
    "/v1/models/{model:path}",
    describe_model,
    scopes=READERS,
    roots=("/v1/models/{model:path}",),
    summary="A served model",
)


def find_model(exchange: Exchange, name: str) -> ModelInfo:
    """Raises ModelNotFound."""
    models = exchange.state.models().models
    for model in models:
        if name in (model.name, model.source):
            return model
    raise ModelNotFound(f"model: not served; the served models are {', '.join(model.name for model in models)}")
