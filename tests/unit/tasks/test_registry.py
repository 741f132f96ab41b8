"""The registry of tasks and the choice of the model for a request."""

from __future__ import annotations

import pytest

from service.errors import InvalidRequest, ModelNotFound
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EmbedQuery
from service.tasks.extraction import SpanOptions
from service.tasks.fill_mask import FillMaskQuery
from service.tasks.labels import LabelList
from service.tasks.mrc import MrcQuery, Reading
from service.tasks.nli import NliQuery
from service.tasks.registry import TASKS, needs_of, route, tasks_of
from service.tasks.similarity import SimilarityQuery
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import head, text_model

PAIR = (("甲", "乙"),)
LABELLED = ClassifyQuery((Text("丙"),), labels=LabelList.of("甲乙"))
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
READER = text_model("question-answering", name="reader")


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
    assert error.message == (
        "sentiment (sequence-classification) cannot do this; mrc needs a masked LM (UniMC) and `choices` in every "
        "input, or a question-answering model (a checkpoint with `qa_outputs`) and no `choices`"
    )


@pytest.mark.parametrize("name", [name for name in TASKS if name != "embed"])
def test_the_error_without_a_suitable_model_names_a_suitable_kind(name: str) -> None:
    task = TASKS[name]
    with pytest.raises(InvalidRequest) as caught:
        route(served(ENCODER), task, QUERIES[name], None)
    [error] = caught.value.errors
    assert error.field == "model"
    assert error.message == f"no served model can do this; {name} needs {needs_of(task, QUERIES[name]).model}"


def test_the_error_names_a_missing_field_with_which_a_served_model_could_do_it() -> None:
    with pytest.raises(InvalidRequest, match=r"^labels: missing, and without it no served model can do this; classify"):
        route(served(ENCODER, ZERO_SHOT), TASKS["classify"], PLAIN, None)
    spans = MrcQuery((Reading("丙", "丁"),), spans=SpanOptions())
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\]\.choices: missing, and without it no served model can do"):
        route(served(ZERO_SHOT), TASKS["mrc"], spans, None)
    with pytest.raises(InvalidRequest, match=r"^model: no served model can do this; mrc"):
        route(served(ENCODER), TASKS["mrc"], spans, None)


def test_reading_comprehension_chooses_the_model_by_the_choices_of_the_request() -> None:
    models = served(ENCODER, READER, ZERO_SHOT)
    assert route(models, TASKS["mrc"], QUERIES["mrc"], None) is ZERO_SHOT
    assert route(models, TASKS["mrc"], MrcQuery((Reading("丙", "丁"),), spans=SpanOptions()), None) is READER
    assert tasks_of(READER) == ["mrc", "embed"]


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
    embedder = text_model(name="embedder", kind="encoder", tasks=("embed",))
    assert route(served(ZERO_SHOT, embedder), TASKS["embed"], QUERIES["embed"], None) is embedder
    assert route(served(ZERO_SHOT, embedder), TASKS["mrc"], QUERIES["mrc"], None) is ZERO_SHOT


@pytest.mark.parametrize(
    ("task", "model", "names"),
    [
        ("similarity", head(name="pair"), "pair=不相似,相似"),
        ("similarity", head("negative", "positive", name="pair"), "pair=不相似,相似"),
        ("similarity", head(num_classes=1, activation="sigmoid", name="pair"), "pair=相似"),
        ("nli", head(num_classes=3, name="pair"), "pair=矛盾,中立,蕴含"),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_the_error_for_a_pair_head_without_the_tasks_labels_names_the_flag(
    task: str, model: TextModel, names: str, is_named: bool
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        route(served(ENCODER, model), TASKS[task], QUERIES[task], "pair" if is_named else None)
    [error] = caught.value.errors
    assert f"start the server with --labels {names}, in the order of the outputs of pair" in error.message


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("similarity", head(num_classes=3)),
        ("nli", head()),
        ("similarity", head(num_classes=1, activation="identity")),
        ("mrc", head()),
    ],
)
def test_the_error_names_no_flag_where_none_would_do(task: str, model: TextModel) -> None:
    with pytest.raises(InvalidRequest) as caught:
        route(served(model), TASKS[task], QUERIES[task], None)
    assert "--labels" not in caught.value.errors[0].message


def test_a_head_of_one_output_can_compare_if_its_score_is_a_probability() -> None:
    cross_encoder = head("相似", tasks=("similarity",), activation="sigmoid")
    regression = head("相似", tasks=("similarity",), activation="identity")
    assert TASKS["similarity"].can(cross_encoder, QUERIES["similarity"])
    assert not TASKS["similarity"].can(regression, QUERIES["similarity"])


def test_a_model_is_found_by_its_source() -> None:
    folder = text_model(name="a", source="/models/a")
    hub = text_model(name="b", source="IDEA-CCNL/b")
    models = served(folder, hub, text_model(name="IDEA-CCNL", source="/models/a/b"))
    assert route(models, TASKS["classify"], LABELLED, "/models/a") is folder
    assert route(models, TASKS["classify"], LABELLED, "IDEA-CCNL/b") is hub


def test_a_name_counts_before_a_source() -> None:
    models = served(text_model(name="a", source="b"), text_model(name="b", source="c"))
    assert route(models, TASKS["classify"], LABELLED, "b").name == "b"


def test_a_source_of_several_models_is_ambiguous() -> None:
    models = served(text_model(name="old", source="a/b"), text_model(name="new", source="a/b"))
    with pytest.raises(ModelNotFound, match="served under several names; use one of old, new"):
        route(models, TASKS["classify"], LABELLED, "a/b")
