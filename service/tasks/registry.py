"""All tasks by name, and the choice of a model for a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.errors import InvalidRequest, ModelNotFound
from service.tasks.classification import CLASSIFY, ClassifyQuery
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.fill_mask import FILL_MASK, FillMaskQuery
from service.tasks.mrc import MRC, MrcQuery
from service.tasks.nli import NLI, NliQuery
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.task import Q, R, Task
from service.tasks.text_model import TextModel

TASKS: dict[str, Task[Any, Any]] = {task.name: task for task in (CLASSIFY, SIMILARITY, MRC, NLI, FILL_MASK, EMBED)}


def route(models: Mapping[str, TextModel], task: Task[Q, R], query: Q, name: str | None) -> TextModel:
    """The model that answers: the one named, else one made for this task, else the first that can do it.

    Raises:
        ModelNotFound: no model has that name.
        InvalidRequest: the model named, or every model, is unable to do this task.
    """
    if name is not None:
        return _named(models, task, query, name)
    able = [model for model in models.values() if task.can(model, query)]
    if not able:
        raise InvalidRequest.of("model", f"no model served here can do this; {task.name} needs {task.needs}")
    return next((model for model in able if task.name in model.tasks), able[0])


def _named(models: Mapping[str, TextModel], task: Task[Q, R], query: Q, name: str) -> TextModel:
    model = models.get(name)
    if model is None:
        raise ModelNotFound(f"model: not served here; there is {', '.join(models)}")
    if not task.can(model, query):
        raise InvalidRequest.of("model", f"{model.name} ({model.kind}) cannot do this; {task.name} needs {task.needs}")
    return model


_QUERIES = {
    "classify": (ClassifyQuery((), labels=("",)), ClassifyQuery(())),
    "similarity": (SimilarityQuery(()),),
    "mrc": (MrcQuery(()),),
    "nli": (NliQuery(()),),
    "fill-mask": (FillMaskQuery(()),),
    "embed": (EmbedQuery(()),),
}
"""One empty query for each way in which a model may do a task."""


def tasks_of(model: TextModel) -> list[str]:
    """Names of the tasks that a model can do in at least one way."""
    return [name for name, task in TASKS.items() if any(task.can(model, query) for query in _QUERIES[name])]
