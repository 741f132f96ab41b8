"""Label Studio's webhook: annotated texts become examples of the labels of a stored label set.

The set is the one that the URL names (`?label_set=NAME`), or `label-studio-ID` of the project, which its first
annotation makes of the choices in the labeling config. Predictions of a project are made with its set.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from pydantic import Field
from starlette.responses import Response

from service.api.exchange import Exchange, json_response
from service.api.field_types import Lenient
from service.api.json_body import validate
from service.api.label_set_routes import enabled
from service.api.protocols.label_config import Control, LabelConfig, read_config
from service.api.schemas import LabelSetBody
from service.errors import InvalidRequest, LabelSetNotFound, PreconditionFailed, StorageUnavailable
from service.stores.label_sets import LabelSet, LabelSets

ADDED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
REMOVED = ("ANNOTATION_DELETED",)
MAX_TRIES = 5
"""Of a write: another one may come between."""


class StudioAnnotation(Lenient):
    result: list[dict[str, Any]] = Field([])
    was_cancelled: bool = False


class AnnotatedTask(Lenient):
    data: dict[str, Any]


class StudioProject(Lenient):
    id: int
    label_config: str = Field(min_length=1)


class StudioEvent(Lenient):
    """An event; events of other kinds than annotations are accepted, and change nothing."""

    action: str = Field(max_length=64)
    annotation: StudioAnnotation | None = None
    task: AnnotatedTask | None = None
    project: StudioProject | None = None


def name_of(project: str) -> str:
    """The label set of a project, by its id."""
    return f"label-studio-{project}"


async def webhook(exchange: Exchange, body: StudioEvent) -> Response:
    """`POST /webhook`."""
    if body.action not in (*ADDED, *REMOVED):
        return json_response({"status": "ignored"})
    for name in ("annotation", "task", "project"):
        if getattr(body, name) is None:
            raise InvalidRequest.of(name, f"is required with {body.action}; let the webhook send its payload")
    assert body.annotation is not None, "checked above"
    assert body.task is not None, "checked above"
    assert body.project is not None, "checked above"
    config = read_config(body.project.label_config, "project.label_config")
    control = _control(config, exchange.request.query_params.get("control"))
    text = config.text(control.to_names[0], body.task.data)
    if text is None:
        return json_response({"status": "ignored"})
    is_removed = body.action in REMOVED or body.annotation.was_cancelled
    chosen = set() if is_removed else _chosen(control, body.annotation.result)
    name = exchange.request.query_params.get("label_set", name_of(str(body.project.id)))
    versions = enabled(exchange.state)
    written = await exchange.in_thread(partial(_write, exchange, versions.label_sets, name, control, text, chosen))
    version = None
    if written is not None:
        await versions.prepare(written)
        version = written.version
    return json_response({"status": "ok", "label_set": name, "version": version}, status=201)


def _control(config: LabelConfig, name: str | None) -> Control:
    """The control whose choices are the labels: the one of that name, else the first with choices."""
    for control in config.controls:
        if control.options and name in (None, control.name):
            return control
    raise InvalidRequest.of("control", "the labeling config has no such Choices or Taxonomy")


def _chosen(control: Control, result: Sequence[dict[str, Any]]) -> set[str]:
    """The texts of the options that an annotation chooses."""
    texts = {option.value: option.text for option in control.options}
    found = set()
    for one in result:
        value = one.get("value")
        if one.get("from_name") != control.name or not isinstance(value, dict):
            continue
        for chosen in value.get(control.type) or ():
            path = tuple(chosen) if isinstance(chosen, list) else (chosen,)
            if all(isinstance(part, str) for part in path) and path in texts:
                found.add(texts[path])
    return found


def _write(
    exchange: Exchange,
    label_sets: LabelSets[LabelSetBody],
    name: str,
    control: Control,
    text: str,
    chosen: Collection[str],
) -> LabelSet[LabelSetBody] | None:
    """The newest version of the set, after the event; None if there is none, and needs to be none."""
    limits = exchange.limits
    example = text.strip()[: limits.max_example_chars]
    for _ in range(MAX_TRIES):
        try:
            found = label_sets.get(name)
        except LabelSetNotFound:
            found = None
        content = {"labels": [option.text for option in control.options]} if found is None else dict(found.content)
        labels = with_example(content["labels"], example, chosen, limits.max_label_examples)
        if labels == content["labels"]:
            return found
        body = validate({**content, "labels": labels}, LabelSetBody, limits)
        owner, etag = exchange.context.account.name, "" if found is None else found.etag
        try:
            return label_sets.put(name, body.model_dump(exclude_none=True), len(body.labels), owner, etag)
        except PreconditionFailed:
            continue
    raise StorageUnavailable("the label set is being written by others; send this event again", retry_after_s=1.0)


def with_example(labels: Sequence[Any], text: str, chosen: Collection[str], max_examples: int) -> list[Any]:
    """The labels of a set with a text among the examples of the chosen ones, and of no other.

    A label keeps its newest examples. One without any is written as its name, unless it has a description.
    """
    written: list[Any] = []
    for given in labels:
        label = dict(given) if isinstance(given, dict) else {"name": given}
        examples = [example for example in label.pop("examples", None) or () if example != text]
        if label["name"] in chosen:
            examples = [*examples, text][-max_examples:]
        if examples:
            label["examples"] = examples
        written.append(label["name"] if label.keys() == {"name"} else label)
    return written
