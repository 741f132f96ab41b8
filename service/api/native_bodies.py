"""Answers a request whose parts are those of a native one, under other names: other protocols make a native body of it.

What the native protocol validates is validated here, once, with its messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from service.api import schemas
from service.api.exchange import Exchange, Rename, Write
from service.api.json_body import validate
from service.api.problems import invalid
from service.errors import InvalidRequest

W = TypeVar("W")

REQUESTS: Mapping[str, type[schemas.TaskRequest]] = {
    "classify": schemas.ClassifyRequest,
    "similarity": schemas.SimilarityRequest,
    "mrc": schemas.MrcRequest,
    "nli": schemas.NliRequest,
    "fill-mask": schemas.FillMaskRequest,
    "embed": schemas.EmbedRequest,
}
"""By task."""


def read_body(exchange: Exchange, task: str, value: Any, rename: Rename | None = None) -> schemas.TaskRequest:
    """The native request of a JSON value. Raises InvalidRequest; `rename` is for the fields in its errors."""
    try:
        return validate(value, REQUESTS[task], exchange.limits)
    except InvalidRequest as error:
        raise renamed_error(error, rename) from None


async def answer_request(
    exchange: Exchange,
    task: str,
    body: schemas.TaskRequest,
    write: Write[W],
    *,
    rename: Rename | None = None,
) -> W:
    """The answer to a native request, with the labels of the label set that it names.

    Its deadline and priority are those of `Exchange.narrow`. Raises what `Exchange.answer` raises.
    """
    if isinstance(body, schemas.ClassifyRequest) and body.label_set is not None:
        body = body.with_labels_of((await exchange.label_set(body.label_set)).value)

    def path_in_request(path: str) -> str:
        return rename(body.field(path)) if rename else body.field(path)

    try:
        query = body.query(exchange.limits.max_windows)
    except InvalidRequest as error:
        raise renamed_error(error, rename) from None
    return await exchange.answer(task, query, write, model=body.model, rename=path_in_request)


async def answer_body(exchange: Exchange, task: str, value: Any, write: Write[W], *, rename: Rename | None = None) -> W:
    """The same for a JSON value."""
    return await answer_request(exchange, task, read_body(exchange, task, value, rename), write, rename=rename)


def renamed_error(error: InvalidRequest, rename: Rename | None) -> InvalidRequest:
    """The error with the fields that the client knows."""
    if rename is None or not error.errors:
        return error
    return invalid([replace(one, field=rename(one.field)) for one in error.errors])
