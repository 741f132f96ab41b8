"""Parity of the scores of a head with transformers' text-classification pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer, TextClassificationPipeline

from service.checkpoints.checkpoint import describe
from service.engine.engine import Engine
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.text_model import TextModel
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import load_reference

TEXTS = (Text("今天天气好"), Text("要退款", "不要"), Text("我想看电影，走！"))


def set_problem_type(path: Path, problem_type: str | None) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"problem_type": problem_type}), encoding="utf-8")


def pipeline_scores(path: Path, family: str, num_labels: int) -> list[dict[str, float]]:
    """The score of each label by transformers' pipeline, of each text."""
    model = load_reference(path, family, "sequence-classification")
    pipe: Any = TextClassificationPipeline(model=model, tokenizer=BertTokenizer(str(path / "vocab.txt")))
    inputs = [{"text": text.text, "text_pair": text.text_pair} for text in TEXTS]
    return [{one["label"]: one["score"] for one in pipe(each, top_k=num_labels)} for each in inputs]


@pytest.mark.parametrize("family", ["bert", "megatron-bert"])
@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        (None, 1),
        (None, 2),
        ("single_label_classification", 200),
        ("multi_label_classification", 1),
        ("multi_label_classification", 3),
        ("multi_label_classification", 200),
        ("regression", 1),
        ("regression", 3),
    ],
)
def test_scores_equal_those_of_transformers_pipeline(
    tmp_path: Path, problem_type: str | None, num_labels: int, family: Any
) -> None:
    path = make_checkpoint(
        tmp_path, family=family, kind="sequence-classification", num_labels=num_labels, num_layers=1, init_std=0.3
    )
    set_problem_type(path, problem_type)
    checkpoint = describe(path, "m")
    model, engine, query = (
        TextModel.load(checkpoint),
        Engine.load(checkpoint, precision="float32"),
        ClassifyQuery(TEXTS),
    )
    rows = CLASSIFY.encode(model, query)
    results = CLASSIFY.decode(model, query, rows, engine.run(rows))
    for result, wanted in zip(results, pipeline_scores(path, family, num_labels), strict=True):
        assert {one.label: one.score for one in result.scores} == pytest.approx(wanted, abs=2e-5)
        assert (result.label, result.score) == (result.scores[0].label, result.scores[0].score)
        assert [one.score for one in result.scores] == sorted((one.score for one in result.scores), reverse=True)


def test_a_cross_encoder_scores_pairs(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family="bert", kind="sequence-classification", num_labels=1, num_layers=1)
    checkpoint = describe(path, "m", labels=("相似",))
    model, engine = TextModel.load(checkpoint), Engine.load(checkpoint, precision="float32")
    query = SimilarityQuery((("要退款", "不要"),))
    rows = SIMILARITY.encode(model, query)
    [result] = SIMILARITY.decode(model, query, rows, engine.run(rows))
    assert result.score == pytest.approx(pipeline_scores(path, "bert", 1)[1]["LABEL_0"], abs=2e-5)
