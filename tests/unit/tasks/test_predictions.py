"""Predictions for the metrics: labels of the task or the head, never labels of a request."""

from __future__ import annotations

from typing import Any

import pytest

from service.tasks.classification import ClassifyResult
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.extraction import SpanOptions, SpanResult
from service.tasks.labels import LabelList
from service.tasks.mrc import MrcQuery, MrcResult
from service.tasks.nli import NliQuery, NliResult
from service.tasks.registry import TASKS
from service.tasks.scores import LabelScore
from service.tasks.similarity import SimilarityQuery, SimilarityResult
from service.tasks.task import Prediction
from tests.unit.tasks.models import head, text_model

TEXT = (Text("甲"),)
SPANS = MrcQuery((), spans=SpanOptions())
CLASSIFIED = ClassifyResult(
    label="其他",  # the `none_label` of the request
    score=0.75,
    scores=(LabelScore("正面", 0.75),),
    decision="none",
    chosen=("其他",),
    calibrated=False,
    tokens=3,
    truncated=False,
)


@pytest.mark.parametrize(
    ("task", "query", "result", "prediction"),
    [
        ("classify", ClassifyQuery(TEXT), CLASSIFIED, Prediction("正面", 0.75, "none")),
        ("classify", ClassifyQuery(TEXT, LabelList.of(["正面"])), CLASSIFIED, Prediction(None, 0.75, "none")),
        ("nli", NliQuery(()), NliResult("neutral", 0.5, (), 3, False), Prediction("neutral", 0.5)),
        ("mrc", MrcQuery(()), MrcResult("私", 0, 0.5, (), 3, False), Prediction(None, 0.5)),
        ("mrc", SPANS, SpanResult("私", 0, 1, 0.5, 0.1, (), 1, 3, False), Prediction("answer", 0.5)),
        ("mrc", SPANS, SpanResult(None, None, None, 0.9, 0.9, (), 1, 3, False), Prediction("no_answer", 0.9)),
        ("similarity", SimilarityQuery(()), SimilarityResult(0.75, 3, False), Prediction("same", 0.75)),
        ("similarity", SimilarityQuery(()), SimilarityResult(0.5, 3, False), Prediction("same", 0.5)),
        ("similarity", SimilarityQuery(()), SimilarityResult(0.25, 3, False), Prediction("different", 0.75)),
    ],
)
def test_a_prediction_has_a_label_only_if_it_is_not_of_the_request(
    task: str, query: object, result: object, prediction: Prediction
) -> None:
    predict: Any = TASKS[task].predict
    assert predict(query, result) == prediction


def test_own_labels_are_those_of_the_task_or_the_head() -> None:
    tuned = head("负面", "正面")
    assert TASKS["classify"].own_labels(tuned) == ("负面", "正面")
    assert TASKS["classify"].own_labels(text_model()) == ()
    assert TASKS["nli"].own_labels(text_model()) == ("contradiction", "neutral", "entailment")
    assert TASKS["similarity"].own_labels(text_model()) == ("different", "same")
    assert TASKS["mrc"].own_labels(text_model()) == ()
    assert TASKS["mrc"].own_labels(text_model("question-answering")) == ("no_answer", "answer")


def test_a_regression_is_no_decision() -> None:
    decides = TASKS["classify"].decides
    assert not decides(head(num_classes=1, activation="identity"))
    assert decides(head("甲", "乙", activation="sigmoid"))
    assert decides(head("甲", "乙"))
    assert decides(text_model())


def test_fill_mask_and_embed_have_no_predictions() -> None:
    assert {name for name, task in TASKS.items() if task.predict is None} == {"fill-mask", "embed"}
