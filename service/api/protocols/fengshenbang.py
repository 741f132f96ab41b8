"""The API of Fengshenbang-LM's server (`fengshen/API`), for which this one is a drop-in: the labels of a classifier.

Source: upstream's `fengshen/API/main.py` and `utils.py`, and transformers' text-classification pipeline behind them.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from starlette.responses import Response

from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, renamed
from service.api.field_types import Lenient
from service.api.native_bodies import answer_body
from service.errors import ServiceError
from service.pipeline import Answer

DEFAULT_PATH = "/TextClassification"
BETWEEN = "[SEP]"
"""Between the two texts of a pair, in one string."""


class TextClassificationRequest(Lenient):
    """Upstream's body: `uuid` and the fields for images are accepted, and mean nothing to a classifier."""

    input_text: list[str] = Field(description="Texts; of a pair both, with [SEP] between them.")
    uuid: int | None = None


async def classify(exchange: Exchange, body: TextClassificationRequest) -> Response:
    """The best label of each text, in order."""
    value = {"inputs": [_input(text) for text in body.input_text]}
    return await answer_body(exchange, "classify", value, _write, rename=renamed({"inputs": "input_text"}))


def _input(text: str) -> str | dict[str, str]:
    first, between, second = text.partition(BETWEEN)
    return {"text": first, "text_pair": second} if between else text


def _write(answer: Answer[Any], is_large: bool) -> Response:
    return json_response([{"label": result.label, "score": result.score} for result in answer.results])


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """As FastAPI has it: a list for fields that are wrong, else a text."""
    if not error.errors:
        return {"detail": error.detail}
    shown = [{"loc": ["body", one.field], "msg": one.message, "type": "value_error"} for one in error.errors]
    return {"detail": shown}


def protocol(path: str = DEFAULT_PATH) -> Protocol:
    """Serves `path` at the root, as upstream's setting `API_path` has it."""
    call = Call(
        "POST",
        path,
        classify,
        TextClassificationRequest,
        task="classify",
        roots=(path,),
        summary="The labels of a fine-tuned classifier",
    )
    return Protocol("fengshenbang", "Fengshenbang-LM", (call,), error_body)
