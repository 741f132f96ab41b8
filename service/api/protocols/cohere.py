"""Cohere: v1 and v2 rerank, as its client sends them to a `base_url`. Its own server refuses unknown fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from starlette.responses import Response

from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, server_timing
from service.api.field_types import ManyStrings, Str, Wire, check_inputs
from service.api.protocols import ranking
from service.api.protocols.ranking import TopN, documents_field
from service.api.protocols.reranking import EXAMPLE, meta, rerank_call
from service.errors import InvalidRequest, ServiceError

ModelName = Annotated[str, Field(min_length=1, max_length=4096)]
_MODES = Literal["enabled", "disabled"]


class Spans(Wire):
    mode: _MODES
    threshold: float | None = None
    max_spans: int | None = None


class RerankV2Request(Wire):
    """A document is cut to what the model reads; `max_tokens_per_doc` beyond that has no effect."""

    model: ModelName
    query: Str
    documents: ManyStrings
    top_n: TopN | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    relevant_spans: Spans | None = None
    priority: Annotated[int, Field(ge=0)] = 0


def _to_fields(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


Document = Annotated[dict[str, Str], BeforeValidator(_to_fields)]


class RerankV1Request(Wire):
    """Documents are texts, or objects whose `rank_fields` are read, by default `text`."""

    query: Str
    documents: Annotated[list[Document], BeforeValidator(check_inputs)]
    model: ModelName | None = None
    top_n: TopN | None = None
    rank_fields: Annotated[list[Str], Field(min_length=1, max_length=32)] | None = None
    return_documents: bool = False
    max_chunks_per_doc: Annotated[int, Field(ge=1)] | None = None


async def rerank_v2(exchange: Exchange, body: RerankV2Request) -> Response:
    if body.relevant_spans is not None and body.relevant_spans.mode == "enabled":
        raise InvalidRequest.of("relevant_spans", "is not supported: no model here marks spans of a document")
    if body.max_tokens_per_doc is not None:
        _check_whole(exchange, body.max_tokens_per_doc)
    exchange.narrow(priority="bulk" if body.priority > 0 else None)
    pairs = [(body.query, document) for document in body.documents]
    scored = await ranking.score(exchange, pairs, model=body.model, second=documents_field)
    scores = scored.probabilities()
    results = [{"index": index, "relevance_score": scores[index]} for index, _ in scored.ranked(body.top_n)]
    return _reply(exchange, "2", results, scored)


async def rerank_v1(exchange: Exchange, body: RerankV1Request) -> Response:
    texts = [_text(index, one, body.rank_fields) for index, one in enumerate(body.documents)]
    pairs = [(body.query, text) for text in texts]
    scored = await ranking.score(exchange, pairs, model=body.model, second=documents_field)
    scores = scored.probabilities()
    results: list[dict[str, Any]] = []
    for index, _ in scored.ranked(body.top_n):
        document = {"document": body.documents[index]} if body.return_documents else {}
        results.append({"index": index, "relevance_score": scores[index], **document})
    return _reply(exchange, "1", results, scored)


def _text(index: int, document: dict[str, str], fields: list[str] | None) -> str:
    """What is read of a document: its fields one below the other, or its text if it has no other."""
    names = fields if fields and document.keys() != {"text"} else ["text"]
    if missing := [name for name in names if name not in document]:
        hint = "name those to read in rank_fields" if fields is None else "every field of rank_fields is required"
        raise InvalidRequest.of(f"documents[{index}].{missing[0][:64]}", f"is required; {hint}")
    return document[names[0]] if len(names) == 1 else "\n".join(f"{name}: {document[name]}" for name in names)


def _check_whole(exchange: Exchange, max_tokens: int) -> None:
    """A shorter limit than the model's would change the scores."""
    longest = max(model.max_length for model in exchange.state.pipeline.models.values())
    if max_tokens < longest:
        raise InvalidRequest.of(
            "max_tokens_per_doc", f"must be at least {longest}: a document is cut by the model only"
        )


def _reply(exchange: Exchange, version: str, results: list[dict[str, Any]], scored: ranking.Scored) -> Response:
    content = {"id": exchange.context.request_id, "results": results, "meta": meta(version, scored.tokens)}
    return json_response(content, server_timing(scored.timing))


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    return {"message": error.detail, "code": error.code, "id": request_id}


PROTOCOL = Protocol(
    "cohere",
    "Cohere",
    (
        Call(
            "POST",
            "/v2/rerank",
            rerank_v2,
            body=RerankV2Request,
            task="similarity",
            narrows=True,
            summary="Documents by relevance",
            example=EXAMPLE,
        ),
        Call(
            "POST",
            "/v1/rerank",
            rerank_v1,
            body=RerankV1Request,
            task="similarity",
            summary="Documents by relevance",
            example=EXAMPLE,
        ),
        rerank_call(None, roots=("/v1/rerank", "/v2/rerank")),
    ),
    error_body,
)
