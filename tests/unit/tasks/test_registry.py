"""The registry of tasks and the choice of the model for a request."""

from __future__ import annotations

import pytest

from service.errors import InvalidRequest, ModelNotFound
from service.tasks.classification import ClassifyQuery, Text
from service.tasks.embedding import EmbedQuery
from service.tasks.fill_mask import FillMaskQuery
from service.tasks.mrc import MrcQuery, Reading
from service.tasks.nli import NliQuery
from service.tasks.registry import TASKS, route
from service.tasks.similarity import SimilarityQuery
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import head, text_model

PAIR = (("甲", "乙"),)
LABELLED = ClassifyQuery((Text("丙"),), labels=("甲", "乙"))
PLAIN = ClassifyQuery((Text("丙"),))
QUERIES = {
    "classify": PLAIN,
    "similarity": SimilarityQuery(PAIR),
    "mrc": MrcQuery((Reading("丙", "丁", ("甲", "乙")),)),
    "nli": NliQuery(PAIR),
    "fill-mask": FillMaskQuery(("[MASK]",)),
    "embed": EmbedQuery(("甲",)),
}
ZERO_SHOT = text_model(name="zero-shot")
SENTIMENT = head("负面", "正面", name="sentiment")
SIMILAR = head("不相似", "相似", name="similar", tasks=("similarity",))
ENCODER = text_model("encoder", name="encoder")


def served(*models: TextModel) -> dict[str, TextModel]:
    return {model.name: model for model in models}


def test_tasks_are_registered_by_name() -> None:
    assert list(TASKS) == ["classify", "similarity", "mrc", "nli", "fill-mask", "embed"]
    assert all(task.name == name and task.needs for name, task in TASKS.items())
    assert set(QUERIES) == set(TASKS)


def test_the_named_model_is_chosen() -> None:
    models = served(ZERO_SHOT, text_model(name="other"))
    assert route(models, TASKS["classify"], LABELLED, "other").name == "other"


def test_the_error_of_an_unknown_model_lists_the_served_ones() -> None:
    with pytest.raises(ModelNotFound, match=r"^model: not served; the served models are zero-shot") as caught:
        route(served(ZERO_SHOT, SENTIMENT), TASKS["classify"], PLAIN, "1.3b")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_the_error_of_an_unsuitable_model_names_a_suitable_kind() -> None:
    with pytest.raises(InvalidRequest) as caught:
        route(served(SENTIMENT, ZERO_SHOT), TASKS["mrc"], QUERIES["mrc"], "sentiment")
    [error] = caught.value.errors
    assert caught.value.status == 422
    assert error.field == "model"
    assert error.message == "sentiment (sequence-classification) cannot do this; mrc needs a masked LM (UniMC)"


@pytest.mark.parametrize("name", [name for name in TASKS if name != "embed"])
def test_the_error_without_a_suitable_model_names_a_suitable_kind(name: str) -> None:
    task = TASKS[name]
    with pytest.raises(InvalidRequest) as caught:
        route(served(ENCODER), task, QUERIES[name], None)
    [error] = caught.value.errors
    assert error.field == "model"
    assert error.message == f"no served model can do this; {name} needs {task.needs}"


def test_classification_chooses_the_model_by_the_labels_of_the_request() -> None:
    models = served(ENCODER, ZERO_SHOT, SENTIMENT)
    assert route(models, TASKS["classify"], LABELLED, None) is ZERO_SHOT
    assert route(models, TASKS["classify"], PLAIN, None) is SENTIMENT


def test_the_first_suitable_model_is_chosen() -> None:
    models = served(ENCODER, text_model(name="a"), text_model(name="b"))
    assert route(models, TASKS["mrc"], QUERIES["mrc"], None).name == "a"
    assert route(models, TASKS["embed"], QUERIES["embed"], None) is ENCODER


def test_a_model_fine_tuned_for_the_task_is_preferred() -> None:
    models = served(ZERO_SHOT, SIMILAR)
    assert route(models, TASKS["similarity"], QUERIES["similarity"], None) is SIMILAR
    assert route(models, TASKS["nli"], QUERIES["nli"], None) is ZERO_SHOT
