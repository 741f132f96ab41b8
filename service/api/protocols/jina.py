"""Jina: rerank, and classification by labels of the request. Its own server ignores unknown fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo
from starlette.responses import Response

from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, renamed, server_timing
from service.api.field_types import Lenient, ManyStrings, Names, check_inputs
from service.api.protocols.reranking import rerank_call
from service.errors import ServiceError
from service.pipeline import Answer
from service.slices import between_slices
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.labels import LabelList


def _to_texts(value: object, info: ValidationInfo) -> list[Any]:
    """Texts, or objects with `text`; images are not read."""
    texts = check_inputs([value] if isinstance(value, str) else value, info)
    return [one["text"] if isinstance(one, dict) and one.keys() == {"text"} else one for one in texts]


class JinaClassifyRequest(Lenient):
    input: Annotated[ManyStrings, BeforeValidator(_to_texts)]
    labels: Names
    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None


async def classify(exchange: Exchange, body: JinaClassifyRequest) -> Response:
    query = ClassifyQuery(tuple(map(Text, body.input)), LabelList.of(body.labels), is_alone=body.model is not None)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        data = []
        for index, result in enumerate(answer.results):
            between_slices()
            scores = {one.label: one.score for one in result.scores}
            data.append(
                {
                    "object": "classification",
                    "index": index,
                    "prediction": result.label,
                    "score": result.score,
                    "predictions": [{"label": label, "score": scores[label]} for label in body.labels],
                }
            )
        content = {"model": answer.model, "usage": {"total_tokens": answer.tokens}, "data": data}
        return json_response(content, server_timing(answer.timing))

    return await exchange.answer("classify", query, write, model=body.model, rename=renamed({"inputs": "input"}))


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    return {"detail": error.detail, "code": error.code, "request_id": request_id}


PROTOCOL = Protocol(
    "jina",
    "Jina",
    (
        rerank_call("/v1/rerank", roots=("/v1/rerank",)),
        Call(
            "POST",
            "/v1/classify",
            classify,
            body=JinaClassifyRequest,
            task="classify",
            roots=("/v1/classify",),
            summary="Zero-shot classification",
            example={"input": ["这家餐厅的菜很好吃"], "labels": ["美食", "体育"]},
        ),
    ),
    error_body,
)
