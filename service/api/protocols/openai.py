"""OpenAI: embeddings, models, and moderations from a stored label set.

Chat completions for choices are in `chat`, files and batches in `openai_files` and `openai_batches`. Its own server
refuses unknown fields, and so does this one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.api.auth import READERS
from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, renamed, server_timing
from service.api.field_types import Strings, TextsOrIds, Wire
from service.api.protocols import chat, openai_batches, openai_files
from service.api.protocols.common import DESCRIBE_MODEL
from service.api.protocols.vectors import embed_query, max_values, vectors_of, written
from service.errors import RateLimited, ServiceError
from service.pipeline import Answer
from service.slices import between_slices
from service.tasks.classify_query import ClassifyQuery, Text

_OF_OPENAI = ("omni-moderation", "text-moderation")
"""How the names of the models begin that its clients send for moderations by default."""

ModelName = Annotated[str, Field(min_length=1, max_length=4096)]
User = Annotated[str, Field(max_length=4096)]


class EmbeddingsRequest(Wire):
    input: TextsOrIds
    model: ModelName
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: User | None = None


def _join_parts(value: object) -> object:
    """Several parts of type text are one input, as there; images are not read."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return value
    for index, part in enumerate(value):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            message = f"entry {index} must be a part of type text with its text; images are not read"
            raise PydanticCustomError("invalid", "{message}", {"message": message})
    return ["\n".join(part["text"] for part in value)]


class ModerationsRequest(Wire):
    input: Annotated[Strings, BeforeValidator(_join_parts)]
    model: ModelName | None = None


async def embeddings(exchange: Exchange, body: EmbeddingsRequest) -> Response:
    query = embed_query(body.input)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        vectors = written(vectors_of(answer.results, body.dimensions, is_scaled=True), body.encoding_format)
        content = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ],
            "model": answer.model,
            "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
        }
        return json_response(content, server_timing(answer.timing))

    return await exchange.answer("embed", query, write, model=body.model, rename=renamed({"inputs": "input"}))


async def moderations(exchange: Exchange, body: ModerationsRequest) -> Response:
    """Each label of the set is a category, scored by itself; a text with one at or above the threshold is flagged.

    `model` names the label set. Without it, or with the name of a model of OpenAI's, it is that of the setting.
    """
    name, threshold = exchange.limits.moderation_label_set, exchange.limits.moderation_threshold
    if body.model is not None and not body.model.startswith(_OF_OPENAI):
        name = body.model
    label_set = await exchange.label_set(name)
    labels, texts = label_set.value.label_list, body.input
    query = ClassifyQuery(tuple(map(Text, texts)), labels, label_set.value.question, multi_label=True)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        results = []
        for result in answer.results:
            between_slices()
            scores = {one.label: one.score for one in result.scores}
            scores = {label: scores[label] for label in labels.names}
            categories = {label: score >= threshold for label, score in scores.items()}
            results.append(
                {
                    "flagged": any(categories.values()),
                    "categories": categories,
                    "category_scores": scores,
                    "category_applied_input_types": {label: ["text"] for label in labels.names},
                }
            )
        content = {"id": f"modr-{exchange.context.request_id}", "model": name, "results": results}
        return json_response(content, server_timing(answer.timing))

    return await exchange.answer("classify", query, write, rename=renamed({"inputs": "input"}))


async def models(exchange: Exchange, body: None) -> Response:
    return json_response(exchange.state.models().model_dump(include={"object", "data"}))


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    default = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(error.status, default)
    code = "rate_limit_exceeded" if isinstance(error, RateLimited) else error.code
    field = error.errors[0].field if error.errors else None
    return {"error": {"message": error.detail, "type": kind, "param": field, "code": code}}


CALLS: tuple[Call, ...] = (
    *chat.CALLS,
    Call(
        "POST",
        "/v1/embeddings",
        embeddings,
        body=EmbeddingsRequest,
        task="embed",
        roots=("/v1/embeddings",),
        max_values=max_values,
        summary="Embeddings",
        example={"input": ["今天天气怎么样？"], "model": "e5-small"},
    ),
    Call(
        "POST",
        "/v1/moderations",
        moderations,
        body=ModerationsRequest,
        task="classify",
        roots=("/v1/moderations",),
        summary="Labels of a stored set that apply to a text",
        example={"input": "这家餐厅的菜很好吃", "model": "moderation"},
    ),
    Call("GET", "/v1/models", models, scopes=READERS, summary="Models"),
    DESCRIBE_MODEL,
    *openai_files.CALLS,
    *openai_batches.CALLS,
)

PROTOCOL = Protocol("openai", "OpenAI", CALLS, error_body)
