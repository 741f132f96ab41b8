"""Task registry, and the choice of a model for a query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.errors import InvalidRequest, ModelNotFound
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.extraction import SpanOptions
from service.tasks.fill_mask import FILL_MASK, FillMaskQuery
from service.tasks.labels import LabelList
from service.tasks.mrc import MRC, MrcQuery
from service.tasks.nli import NLI, NliQuery
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.task import Needs, Q, R, Task
from service.tasks.text_model import TextModel

TASKS: dict[str, Task[Any, Any]] = {task.name: task for task in (CLASSIFY, SIMILARITY, MRC, NLI, FILL_MASK, EMBED)}


def route(models: Mapping[str, TextModel], task: Task[Q, R], query: Q, name: str | None) -> TextModel:
    """The model for a query: the one called `name` (or with that source), else one fine-tuned for the task, else the
    first that can do it and is no second choice, else the first that can.

    Raises:
        ModelNotFound: no model is called `name`, or has that source, or several have it.
        InvalidRequest: the named model cannot do this task, or no model can.
    """
    if name is not None:
        return _find(models, task, query, name)
    able = [model for model in models.values() if task.can(model, query)]
    if not able:
        needs = needs_of(task, query)
        reason = f"no served model can do this; {task.name} needs {needs.model}"
        if (completed := task.with_missing(query)) is not None:
            field, full = completed
            if any(task.can(model, full) for model in models.values()):
                raise InvalidRequest.of(field, f"missing, and without it {reason}")
        raise InvalidRequest.of(needs.field, _with_hint(reason, task, models.values()))
    return min(able, key=lambda model: (task.name not in model.tasks, task.is_second_choice(model)))


def _find(models: Mapping[str, TextModel], task: Task[Q, R], query: Q, name: str) -> TextModel:
    found = names_of(models, name)
    if not found:
        raise ModelNotFound(f"model: not served; the served models are {', '.join(models)}")
    if len(found) > 1:
        raise ModelNotFound(f"model: this source is served under several names; use one of {', '.join(found)}")
    model = models[found[0]]
    if not task.can(model, query):
        reason = f"{model.name} ({model.kind}) cannot do this; {task.name} needs {needs_of(task, query).model}"
        raise InvalidRequest.of("model", _with_hint(reason, task, [model]))
    return model


def needs_of(task: Task[Q, R], query: Q) -> Needs:
    return Needs(task.needs) if isinstance(task.needs, str) else task.needs(query)


def names_of(models: Mapping[str, TextModel], name: str) -> list[str]:
    """The served model of that name, else those with that source: a hub id or a folder, as `GET /v1/models` has it."""
    return [name] if name in models else [model.name for model in models.values() if model.source == name]


def _with_hint(reason: str, task: Task[Any, Any], models: Iterable[TextModel]) -> str:
    hint = next(filter(None, map(task.hint, models)), None)
    return f"{reason}; {hint}" if hint else reason


_QUERIES = {
    "classify": (ClassifyQuery((), LabelList.of([""])), ClassifyQuery(())),
    "similarity": (SimilarityQuery(()),),
    "mrc": (MrcQuery(()), MrcQuery((), spans=SpanOptions())),
    "nli": (NliQuery(()),),
    "fill-mask": (FillMaskQuery(()),),
    "embed": (EmbedQuery(()),),
}
"""Empty queries, one for each way in which a model can do a task."""


def tasks_of(model: TextModel) -> list[str]:
    """Names of the tasks that a model can do, in at least one way."""
    return [name for name, task in TASKS.items() if any(task.can(model, query) for query in _QUERIES[name])]
