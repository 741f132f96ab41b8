"""OpenAI's Batches: jobs that answer the lines of an uploaded file in the background (`batch_runner`)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.api.calls import Call
from service.api.exchange import Exchange, json_response
from service.api.field_types import Wire
from service.api.protocols.openai_files import MAX_EXPIRY_S, MIN_EXPIRY_S, enabled, page, stored
from service.errors import InvalidRequest
from service.stores.batches import OUTCOMES, Batch

MAX_METADATA = 16
DEFAULT_LISTED, MAX_LISTED = 20, 100
SHOWN_TIMES = ("in_progress", "finalizing", "cancelling", *OUTCOMES)


def _check_metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_METADATA or any(len(name) > 64 or len(text) > 512 for name, text in value.items()):
        message = f"must have at most {MAX_METADATA} entries, with names of up to 64 and values of up to 512 characters"
        raise PydanticCustomError("invalid", "{message}", {"message": message})
    return value


Metadata = Annotated[dict[str, str], AfterValidator(_check_metadata)]


class OutputExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)]


class BatchRequest(Wire):
    input_file_id: Annotated[str, Field(min_length=1, max_length=80)]
    endpoint: Annotated[str, Field(min_length=1, max_length=256)]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


async def create_batch(exchange: Exchange, body: BatchRequest) -> Response:
    """`POST /v1/batches`."""
    batches = enabled(exchange)
    endpoints = exchange.request.app.state.lines.endpoints
    if body.endpoint not in endpoints:
        at_root = ", ".join(sorted(path for path in endpoints if path.startswith("/v1/")))
        raise InvalidRequest.of("endpoint", f"must be a path that answers a text, as {at_root}")
    create = partial(
        batches.create,
        exchange.context.account.name,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        metadata=body.metadata,
        output_expiry_s=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    return json_response(shown(await stored(exchange, create)))


async def list_batches(exchange: Exchange, body: None) -> Response:
    """`GET /v1/batches`."""
    found = await stored(exchange, partial(enabled(exchange).all, exchange.context.account.name))
    return json_response(page(found, exchange.request.query_params, shown, DEFAULT_LISTED, MAX_LISTED))


async def read_batch(exchange: Exchange, body: None) -> Response:
    """`GET /v1/batches/{batch_id}`."""
    id = exchange.request.path_params["batch_id"]
    get = partial(enabled(exchange).get, exchange.context.account.name, id)
    return json_response(shown(await stored(exchange, get)))


async def cancel_batch(exchange: Exchange, body: None) -> Response:
    """`POST /v1/batches/{batch_id}/cancel`."""
    id = exchange.request.path_params["batch_id"]
    cancel = partial(enabled(exchange).cancel, exchange.context.account.name, id)
    return json_response(shown(await stored(exchange, cancel)))


def shown(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **{f"{status}_at": batch.times.get(status) for status in SHOWN_TIMES},
        "request_counts": {
            "total": batch.num_lines,
            "completed": batch.num_completed,
            "failed": batch.num_failed,
        },
        "metadata": batch.metadata,
    }


_BATCHES, _ONE, _CANCEL = "/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel"

CALLS: tuple[Call, ...] = (
    Call(
        "POST",
        _BATCHES,
        create_batch,
        body=BatchRequest,
        roots=(_BATCHES,),
        summary="Answer the lines of a file in the background",
    ),
    Call("GET", _BATCHES, list_batches, roots=(_BATCHES,), summary="Batches of this key"),
    Call("GET", _ONE, read_batch, roots=(_ONE,), summary="A batch, and how far it is"),
    Call("POST", _CANCEL, cancel_batch, roots=(_CANCEL,), is_limited=False, summary="Cancel a batch"),
)
