"""vLLM's pooling API: classify, score, rerank and pooling, and what SGLang has under the same paths.

Source: vllm/frontend/entrypoints/pooling of vllm-project/vllm. Its server ignores unknown fields. A text that is too
long is refused there unless `truncate_prompt_tokens` says otherwise, and so it is here.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from service.api.calls import Call, Models, Protocol
from service.api.exchange import Exchange, json_response, renamed, server_timing
from service.api.field_types import Lenient, Strings, TextsOrIds
from service.api.protocols import ranking
from service.api.protocols.common import HEALTH
from service.api.protocols.reranking import rerank_call
from service.api.protocols.vectors import embed_query, max_values, vectors_of, written
from service.errors import InvalidRequest, ServiceError
from service.pipeline import Answer
from service.slices import between_slices
from service.tasks.classification import ClassifyResult, head_labels
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EmbedQuery
from service.tasks.registry import TASKS, route
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
Priority = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class PoolingBase(Lenient):
    """What all of its requests share. `truncate_prompt_tokens` is -1, or at least what the model reads."""

    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Priority = 0
    use_activation: bool | None = None
    normalize: None = Field(None, description="Was removed; use use_activation.")

    def truncation(self, exchange: Exchange) -> Truncation:
        limit = self.truncate_prompt_tokens
        if limit is None:
            return "error"
        if limit != -1 and limit < (longest := _longest(exchange)):
            raise InvalidRequest.of(
                "truncate_prompt_tokens", f"must be -1 or at least {longest}: a text is cut by the model only"
            )
        return self.truncation_side or "right"


def _longest(exchange: Exchange) -> int:
    return max(model.max_length for model in exchange.state.pipeline.models.values())


class ClassifyTextsRequest(PoolingBase):
    input: Strings


class ScoreRequest(PoolingBase):
    """Two sides of one name each: one text and many, or as many of both."""

    text_1: Strings | None = None
    text_2: Strings | None = None
    queries: Strings | None = None
    documents: Strings | None = None
    items: Strings | None = None
    data_1: Strings | None = None
    data_2: Strings | None = None


class PoolingRequest(PoolingBase):
    input: TextsOrIds
    task: Literal["embed", "classify"] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"
    dimensions: Annotated[int, Field(ge=1)] | None = None


async def classify(exchange: Exchange, body: ClassifyTextsRequest) -> Response:
    texts = tuple(map(Text, body.input))
    query = ClassifyQuery(texts, truncation=body.truncation(exchange))

    def write(answer: Answer[Any], is_large: bool) -> Response:
        model = exchange.state.pipeline.models[answer.model]
        data = []
        for index, result in enumerate(answer.results):
            probs = _probs(model, result, body.use_activation)
            data.append({"index": index, "label": result.label, "probs": probs, "num_classes": len(probs)})
        return _reply(exchange, "classify", answer.model, data, answer.tokens, server_timing(answer.timing))

    return await exchange.answer("classify", query, write, model=body.model, rename=renamed({"inputs": "input"}))


def _probs(model: TextModel, result: ClassifyResult, use_activation: bool | None) -> list[float]:
    """In the order of the classes. Outputs before a softmax are known up to a constant, which is left out."""
    between_slices()
    scores = {one.label: one.score for one in result.scores}
    probs = [scores[label] for label in head_labels(model)]
    activation = model.head.activation if model.head else "identity"
    if use_activation is not False or activation == "identity":
        return probs
    undo = ranking.logit if activation == "sigmoid" else ranking.log
    return [undo(score) for score in probs]


async def score(exchange: Exchange, body: ScoreRequest) -> Response:
    first, second = _sides(body)
    ones, others = getattr(body, first), getattr(body, second)
    if len(ones) not in (1, len(others)):
        raise InvalidRequest.of(first, f"has {len(ones)} texts and {second} {len(others)}; wanted one, or as many")
    pairs = list(zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True))
    scored = await ranking.score(
        exchange,
        pairs,
        model=body.model,
        truncation=body.truncation(exchange),
        first=first,
        second=renamed({"inputs": second}),
    )
    scores = scored.outputs() if body.use_activation is False else scored.scores
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    return _reply(exchange, "score", scored.model, data, scored.tokens, server_timing(scored.timing))


def _sides(body: ScoreRequest) -> tuple[str, str]:
    for names in _SIDES:
        if all(getattr(body, name) is not None for name in names):
            return names
    ways = ", ".join(" and ".join(names) for names in _SIDES)
    raise InvalidRequest(f"two sides are required: {ways}")


async def pooling(exchange: Exchange, body: PoolingRequest) -> Response:
    """Vectors of an embedding model, or the probabilities of a classifier."""
    if _pooling_task(exchange, body) == "classify":
        return await _pool_classes(exchange, body)
    query = embed_query(body.input, normalize=body.use_activation, truncation=body.truncation(exchange))

    def write(answer: Answer[Any], is_large: bool) -> Response:
        vectors = vectors_of(answer.results, body.dimensions, is_scaled=body.use_activation is not False)
        return _pooled(exchange, body, answer, written(vectors, body.encoding_format))

    return await exchange.answer("embed", query, write, model=body.model, rename=renamed({"inputs": "input"}))


async def _pool_classes(exchange: Exchange, body: PoolingRequest) -> Response:
    texts = tuple(Text(one) for one in body.input if isinstance(one, str))
    if not texts:
        raise InvalidRequest.of("input", "must be texts for a classifier")
    query = ClassifyQuery(texts, truncation=body.truncation(exchange))

    def write(answer: Answer[Any], is_large: bool) -> Response:
        model = exchange.state.pipeline.models[answer.model]
        probs = [_probs(model, result, body.use_activation) for result in answer.results]
        return _pooled(exchange, body, answer, written(probs, body.encoding_format))

    return await exchange.answer("classify", query, write, model=body.model, rename=renamed({"inputs": "input"}))


def _pooled(exchange: Exchange, body: PoolingRequest, answer: Answer[Any], found: list[Any]) -> Response:
    data = [{"index": index, "object": "pooling", "data": one} for index, one in enumerate(found)]
    return _reply(exchange, "pool", answer.model, data, answer.tokens, server_timing(answer.timing))


def _pooling_task(exchange: Exchange, body: PoolingRequest) -> str:
    if body.task is not None:
        return body.task
    chosen = route(exchange.state.pipeline.models, TASKS["embed"], EmbedQuery(()), body.model)
    return "classify" if chosen.kind == "sequence-classification" else "embed"


def _reply(
    exchange: Exchange, kind: str, model: str, data: list[dict[str, Any]], tokens: int, headers: dict[str, str]
) -> Response:
    content = {
        "id": f"{kind}-{exchange.context.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }
    return json_response(content, headers)


_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 422: "BadRequestError"}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """`code` is the status there, and the code of this service is in `reason`."""
    kind = _TYPES.get(error.status, "InternalServerError" if error.status >= 500 else "BadRequestError")
    field = error.errors[0].field if error.errors else None
    return {
        "error": {"message": error.detail, "type": kind, "param": field, "code": error.status, "reason": error.code}
    }


def _is_for_a_classifier(value: Any, models: Models) -> bool:
    """Labels in the request are Jina's."""
    return isinstance(value, dict) and "input" in value and "labels" not in value


def _has_sides(value: Any, models: Models) -> bool:
    return isinstance(value, dict) and any(all(name in value for name in names) for names in _SIDES)


_TEXTS = {"input": ["这家餐厅的菜很好吃", "等了一个小时"]}
_PAIRS = {"text_1": "怎么更换手机号", "text_2": ["如何修改绑定的手机", "电池多久充满"]}


def _classify(path: str) -> Call:
    return Call(
        "POST",
        path,
        classify,
        body=ClassifyTextsRequest,
        task="classify",
        roots=(path,),
        claims=_is_for_a_classifier,
        wants="`input`",
        summary="Labels of a classifier",
        example=_TEXTS,
    )


def _score(path: str) -> Call:
    return Call(
        "POST",
        path,
        score,
        body=ScoreRequest,
        task="similarity",
        roots=(path,),
        claims=_has_sides,
        wants="`text_1` and `text_2`",
        summary="Scores of pairs",
        example=_PAIRS,
    )


PROTOCOL = Protocol(
    "vllm",
    "vLLM, SGLang",
    (
        _classify("/classify"),
        _classify("/v1/classify"),
        _score("/score"),
        _score("/v1/score"),
        *(rerank_call(path, roots=(path,)) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
        Call(
            "POST",
            "/pooling",
            pooling,
            body=PoolingRequest,
            task="embed",
            roots=("/pooling",),
            max_values=max_values,
            summary="Vectors, or probabilities of a classifier",
            example=_TEXTS,
        ),
        HEALTH,
    ),
    error_body,
)
