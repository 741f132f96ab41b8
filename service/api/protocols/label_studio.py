"""Label Studio's ML backend: pre-annotations of a project's tasks, by the choices in its labeling config.

Choices and Taxonomy are classified by the values of the config, or by the stored label set that the webhook makes of
the project's annotations. Pairwise selects the text that means more like a third text of the config, or like its
header. Nothing that a task names is fetched: texts are those in the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from starlette.responses import Response

from service.api.auth import ADMIN
from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, whole
from service.api.field_types import MAX_TOP_K, Lenient
from service.api.native_bodies import answer_body
from service.api.protocols.common import HEALTH
from service.api.protocols.label_config import Control, LabelConfig, read_config
from service.api.protocols.label_studio_webhook import StudioEvent, name_of, webhook
from service.api.schemas import LabelSetBody
from service.errors import InvalidRequest, LabelSetNotFound, ServiceError
from service.pipeline import Answer
from service.stores.label_sets import LabelSet

IS_CHOSEN = 0.5
"""Least score of a choice where several may be chosen."""
_VERSION = "erlangshen"


class StudioTask(Lenient):
    data: dict[str, Any]


class StudioTasks(Lenient):
    tasks: list[StudioTask]
    label_config: str = Field(min_length=1)
    project: str | None = Field(None, max_length=64, description="The project's id, and when it was made after a dot.")


class StudioSetup(Lenient):
    schema_: str = Field(alias="schema", min_length=1)


async def setup(exchange: Exchange, body: StudioSetup) -> Response:
    """`POST /setup`: whether the config can be filled in."""
    read_config(body.schema_, "schema")
    return json_response({"model_version": _VERSION})


async def predict(exchange: Exchange, body: StudioTasks) -> Response:
    """`POST /predict`: one prediction per task. A task without a text gets an empty one."""
    config = read_config(body.label_config, "label_config")
    results: list[list[dict[str, Any]]] = [[] for _ in body.tasks]
    model = _VERSION
    stored = await _find_stored(exchange, body)
    for control in config.controls:
        found = [(index, _texts(control, config, task.data)) for index, task in enumerate(body.tasks)]
        filled = [_Filled(index, texts) for index, texts in found if texts is not None]
        size = exchange.limits.max_inputs // (2 if control.kind == "Pairwise" else 1) or 1
        for start in range(0, len(filled), size):
            model = await _fill(exchange, control, filled[start : start + size], stored)
        for one in filled:
            results[one.index] += [] if one.result is None else [one.result]
    predictions = [
        {"result": result, "score": min((each["score"] for each in result), default=0.0), "model_version": model}
        for result in results
    ]
    return json_response({"results": predictions, "model_version": model})


@dataclass(slots=True)
class _Filled:
    """A control of the task at `index`, with the texts that it is about; None is a choice that is left open."""

    index: int
    texts: tuple[str, ...]
    result: dict[str, Any] | None = None


def _texts(control: Control, config: LabelConfig, data: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The texts of a task that a control is about: for a Pairwise the reference first. None where one is missing."""
    found = [config.text(name, data) for name in control.to_names]
    if control.kind == "Pairwise":
        found.insert(0, _reference(control, config, data))
    return None if None in found else tuple(text for text in found if text is not None)


def _reference(control: Control, config: LabelConfig, data: Mapping[str, Any]) -> str | None:
    others = [name for name, tag in config.texts.items() if name not in control.to_names and tag.field is not None]
    if others:
        return config.text(others[0], data)
    if config.header is None:
        raise InvalidRequest.of(
            "label_config", "Pairwise needs a third Text, or a Header, to say what the texts are compared with"
        )
    return config.header


async def _find_stored(exchange: Exchange, body: StudioTasks) -> LabelSet[LabelSetBody] | None:
    """The label set that the URL names, or the one of the project, if its webhook has made one."""
    given = exchange.request.query_params.get("label_set")
    if given is not None:
        return await exchange.label_set(given)
    if body.project is None or exchange.state.label_sets is None:
        return None
    with suppress(LabelSetNotFound, InvalidRequest):
        return await exchange.label_set(name_of(body.project.partition(".")[0]))
    return None


async def _fill(
    exchange: Exchange, control: Control, part: Sequence[_Filled], stored: LabelSet[LabelSetBody] | None
) -> str:
    """Sets the results of some tasks; returns the name of the model. A stored set with the labels of the control is
    used in their place, with what it knows about them."""
    if control.kind == "Pairwise":
        pairs = [[reference, text] for reference, *both in (one.texts for one in part) for text in both]
        answer = await _answer(exchange, "similarity", {"inputs": pairs}, control, part, 2)
        scores = [result.score for result in answer.results]
        for one, left, right in zip(part, scores[::2], scores[1::2], strict=True):
            one.result = _selected(control, left, right)
        return answer.model
    values = {option.text: option.value for option in control.options}
    if len(control.options) == 1 and not control.is_multiple:
        for one in part:
            one.result = _chosen(control, list(values.values()), 1.0)
        return _VERSION
    labels = [option.text for option in control.options]
    is_stored = stored is not None and set(stored.value.label_list.names) == set(labels)
    body = {
        "inputs": [text for (text,) in (one.texts for one in part)],
        **({"label_set": stored.name} if stored is not None and is_stored else {"labels": labels}),
        "multi_label": control.is_multiple,
        "top_k": min(len(control.options), MAX_TOP_K) if control.is_multiple else 1,
    }
    answer = await _answer(exchange, "classify", body, control, part, 1)
    for one, result in zip(part, answer.results, strict=True):
        best = [each for each in result.scores if each.score >= IS_CHOSEN] if control.is_multiple else result.scores[:1]
        score = min(max(each.score, 1 - each.score) for each in result.scores) if control.is_multiple else result.score
        one.result = _chosen(control, [values[each.label] for each in best], score)
    return answer.model


async def _answer(
    exchange: Exchange, task: str, body: dict[str, Any], control: Control, part: Sequence[_Filled], num_each: int
) -> Answer[Any]:
    """`num_each` is the number of inputs of each task."""

    def rename(path: str) -> str:
        if path.startswith("inputs["):
            index = int(path[len("inputs[") :].partition("]")[0])
            return f"tasks[{part[index // num_each].index}].data"
        return f"label_config: {control.kind} {control.name[:64]}" if path.startswith("labels") else path

    return await answer_body(exchange, task, body, whole, rename=rename)


def _selected(control: Control, left: float, right: float) -> dict[str, Any] | None:
    """None for texts that are equally near."""
    if left == right:
        return None
    value = {"selected": "left" if left > right else "right"}
    return _annotation(control, value, max(left, right) / (left + right))


def _chosen(control: Control, values: list[tuple[str, ...]], score: float) -> dict[str, Any] | None:
    if not values:
        return None
    content = [list(value) for value in values] if control.kind == "Taxonomy" else [value for (value,) in values]
    return _annotation(control, {control.type: content}, score)


def _annotation(control: Control, value: dict[str, Any], score: float) -> dict[str, Any]:
    """A Pairwise, too, names one object: Label Studio's SDK accepts no other form."""
    return {
        "from_name": control.name,
        "to_name": control.to_names[0],
        "type": control.type,
        "value": value,
        "score": score,
    }


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Label Studio shows the status, and logs the body."""
    return {"error": error.detail, "code": error.code, "request_id": request_id}


PROTOCOL = Protocol(
    "label-studio",
    "Label Studio ML backend",
    (
        HEALTH,
        Call(
            "POST",
            "/webhook",
            webhook,
            StudioEvent,
            scopes=ADMIN,
            summary="Make an annotated text an example of a label",
        ),
        Call("POST", "/setup", setup, StudioSetup, roots=("/setup",), summary="Check a labeling config"),
        Call(
            "POST",
            "/predict",
            predict,
            StudioTasks,
            task="classify",
            roots=("/predict",),
            summary="Pre-annotate tasks by a labeling config",
        ),
    ),
    error_body,
)
