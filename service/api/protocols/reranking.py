"""Rerank as Cohere, Jina and vLLM have it: one request, and one reply that all of their clients read.

Jina's API began as Cohere's, and vLLM answers the clients of both. At the root of the server, where `/v1/rerank` and
`/v2/rerank` belong to several of them, this one call answers.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from service.api.calls import Call
from service.api.exchange import Exchange, json_response, server_timing
from service.api.field_types import Lenient, Str
from service.api.protocols import ranking
from service.api.protocols.ranking import Documents, documents_field


class RerankRequest(Lenient):
    """`top_n` 0 is all, as for vLLM."""

    query: Str
    documents: Documents
    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True


async def rerank(exchange: Exchange, body: RerankRequest) -> Response:
    pairs = [(body.query, document) for document in body.documents]
    scored = await ranking.score(exchange, pairs, model=body.model, second=documents_field)
    probabilities = scored.probabilities()
    results = [
        {
            "index": index,
            "relevance_score": probabilities[index],
            **({"document": {"text": body.documents[index]}} if body.return_documents else {}),
        }
        for index, _ in scored.ranked(body.top_n or None)
    ]
    content: dict[str, Any] = {
        "id": f"rerank-{exchange.context.request_id}",
        "object": "list",
        "model": scored.model,
        "results": results,
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens},
        "meta": meta("2", scored.tokens),
    }
    return json_response(content, server_timing(scored.timing))


def meta(version: str, tokens: int) -> dict[str, Any]:
    """Of a reply of Cohere's: a search unit is a query, whatever its documents."""
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": tokens},
    }


EXAMPLE = {
    "model": "e5-small",
    "query": "怎么更换手机号",
    "documents": ["如何修改绑定的手机", "电池多久充满"],
    "top_n": 1,
}


def rerank_call(path: str | None, *, roots: tuple[str, ...] = ()) -> Call:
    return Call(
        "POST",
        path,
        rerank,
        body=RerankRequest,
        task="similarity",
        roots=roots,
        summary="Documents by relevance",
        example=EXAMPLE,
    )
