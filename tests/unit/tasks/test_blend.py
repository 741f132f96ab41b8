"""The blend: its formula, its file, and which rows a classification has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain import Encoding, Output, TokenScores
from service.errors import InvalidRequest, SettingError
from service.tasks.blend import (
    EXAMPLE_CONSTANTS,
    SHIPPED_BLEND,
    Blend,
    are_same,
    centred_cosines,
    independent_probabilities,
    label_probabilities,
    mean_over_templates,
)
from service.tasks.choice_rows import join_logits
from service.tasks.classification import CLASSIFY, ClassifyResult, bind
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.label_rows import MAX_LABEL_TOKENS
from service.tasks.label_vectors import LabelVectors, LabelVectorsCache
from service.tasks.labels import LabelList
from service.tasks.registry import route, tasks_of
from service.tasks.task import used_method
from service.tasks.text_model import TextModel, pair
from service.tasks.tokenizer import build_tokenizer
from tests.fakes import row
from tests.unit.tasks.models import BLEND, VOCAB, logits, matcher, text_model, yes_no

TEXTS = (Text("甲"), Text("乙"))
QUERY = ClassifyQuery(TEXTS, LabelList.of(["丙", "丁丁", "戊"]))
NUM_TEMPLATES = len(BLEND.templates)


def softmax(*scores: float) -> list[float]:
    powers = np.exp(np.asarray(scores) - max(scores))
    return list(powers / powers.sum())


# the formula


def test_a_label_is_as_close_as_its_templates_less_what_any_text_is() -> None:
    labels = mean_over_templates(np.asarray([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]]), 2)
    assert labels.tolist() == pytest.approx(np.asarray([[0.5, 0.5], [0.6, 0.8]]))
    centred = centred_cosines(np.asarray([[1.0, 0.0]]), labels, replace(BLEND, prior_weight=0.5))
    assert centred[0] == pytest.approx([0.5 - 0.5 * 0.25, 0.6 - 0.5 * 0.4])


def test_without_a_background_the_mean_over_the_labels_is_the_prior() -> None:
    centred = centred_cosines(np.eye(2), np.asarray([[1.0, 0.0], [0.6, 0.8]]), replace(BLEND, background=None))
    assert centred.tolist() == pytest.approx(np.asarray([[0.2, -0.2], [-0.4, 0.4]]))


def test_the_score_is_the_weighted_log_probability_and_the_cosine_over_the_temperature() -> None:
    blend = replace(BLEND, temperature=0.1, choice_weight=2.0, choice_power=3.0)
    yes, centred = np.asarray([[1.0, 1.0], [0.0, 5.0]]), np.asarray([0.0, 0.05])
    first, second = np.log(softmax(1, 0))
    weight = 2.0 * (0.5 - 1 / (1 + np.exp(5))) ** 3
    assert label_probabilities(blend, centred, yes) == pytest.approx(softmax(weight * first, weight * second + 0.5))
    assert label_probabilities(blend, centred, None) == pytest.approx(softmax(0, 0.5))
    assert label_probabilities(blend, None, yes) == pytest.approx(softmax(1, 0))


def test_an_unconvinced_choice_counts_less() -> None:
    blend = replace(BLEND, choice_power=3.0)
    centred, sure, unsure = np.asarray([0.0, 0.4]), np.asarray([[3.0, -3], [0, 3]]), np.asarray([[3.0, 6], [0, 3]])
    both = np.asarray([[3.0, -3], [0, -6]])
    assert label_probabilities(blend, centred, sure).argmax() == 0
    assert label_probabilities(blend, centred, unsure).argmax() == 1
    assert label_probabilities(blend, centred, both).argmax() == 1, "yes to both labels decides nothing"


def test_independent_scores_do_not_depend_on_other_labels() -> None:
    yes, centred = np.asarray([[1.0, 0.0], [0.0, 2.0]]), np.asarray([0.5, -0.5])
    both = independent_probabilities(BLEND, centred, yes)
    assert both == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(3))])
    assert both[:1] == independent_probabilities(BLEND, centred[:1], yes[:1])
    assert independent_probabilities(BLEND, centred, None) == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(1))])


def test_labels_are_the_same_to_the_embedding_model_if_all_their_cosines_are_high() -> None:
    blend, close = replace(BLEND, same_cosine=0.95), np.asarray([[2.0, 0.0], [0.96, 0.28], [0.99, 0.1]])
    assert are_same(close, blend)
    assert not are_same(np.vstack([close, [0.0, 1.0]]), blend)
    assert not are_same(close, replace(blend, same_cosine=0.97))


def test_labels_that_are_one_to_the_choice_share_its_probability() -> None:
    one = replace(row(1), options=((0, 2), (1,)))
    yes, read = join_logits([one], [yes_no((np.log(3), 0.0), (0.0, 0.0))])
    assert label_probabilities(BLEND, None, yes, read) == pytest.approx([0.375, 0.25, 0.375])


def test_a_label_that_the_choice_has_not_read_counts_as_the_least_probable_one() -> None:
    centred, yes = np.asarray([0.1, 0.3, 0.2, 0.0]), np.asarray([[2.0, 0.0], [0.0, 1.0]])
    found = label_probabilities(BLEND, centred, yes, np.asarray([1, 2]))
    whole = np.asarray([yes[1], yes[0], yes[1], yes[1]])
    terms = np.log(softmax(2.0, 0.0))
    assert found == pytest.approx(softmax(0.2 + terms[1], 0.6 + terms[0], 0.4 + terms[1], terms[1]))
    independent = independent_probabilities(BLEND, centred, yes, np.asarray([1, 2]))
    assert independent == pytest.approx(independent_probabilities(BLEND, centred, whole))


# the file


def contents(**changes: Any) -> dict[str, Any]:
    alone = {"bias": 0, "cosine": 1}
    logistic = {"bias": 0, "cosine": 1, "choice": 1, "alone": alone}
    made = {
        "version": 1,
        "model": "e",
        "templates": ["{}"],
        "temperature": 0.01,
        "choice_weight": 1,
        "choice_power": 2,
        "prior_weight": 1,
        "same_cosine": 0.9,
        "multi_label": logistic,
        "similarity": logistic,
        "background": [0.5, 0.25],
    }
    return {name: value for name, value in (made | changes).items() if value is not ...}


def test_a_file_may_change_some_constants_of_examples(tmp_path: Path) -> None:
    file = tmp_path / "blend.json"
    file.write_text(json.dumps(contents(examples={"ridge": 0.5})))
    assert Blend.read(file).examples == replace(EXAMPLE_CONSTANTS, ridge=0.5)


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "blend.json"
    file.write_text(json.dumps(contents()))
    blend = Blend.read(file)
    assert (blend.model, blend.templates, blend.choice_power, blend.similarity) == (
        "e",
        ("{}",),
        2.0,
        blend.multi_label,
    )
    assert blend.background is not None
    assert blend.background.tolist() == [0.5, 0.25]
    assert blend.fit_to(("e", "folder"), 2) is blend
    other = blend.fit_to(("other",), 8)
    assert (other.background, other.similarity, other.templates) == (None, None, ("{}",))
    assert (blend.same_cosine, other.same_cosine) == (0.9, 1.0)
    with pytest.raises(SettingError, match=r"background: has 2 numbers; the vectors of e have 8"):
        blend.fit_to(("e",), 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"temperature": ...}, "temperature: Field required"),
        ({"templates": []}, "templates: List should have at least 1 item"),
        ({"templates": ["这是"]}, r"templates.0: Value error, must contain \{\} once"),
        ({"choice_wieght": 1}, "choice_wieght: Extra inputs are not permitted"),
        ({"examples": {"ridge": 0}}, "examples.ridge: Input should be greater than 0"),
        ({"version": 2}, "version: Input should be 1"),
        ({"similarity": {"bias": 0}}, "similarity.choice: Field required"),
        ({"background": [float("nan")]}, "background.0: Input should be a finite number"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "blend.json"
    file.write_text(json.dumps(contents(**changes)))
    with pytest.raises(SettingError, match=rf"^models.blend: .*blend.json: {message}"):
        Blend.read(file)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "blend.json"
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        Blend.read(file)
    file.write_text("{")
    with pytest.raises(SettingError, match="is not JSON"):
        Blend.read(file)


def test_the_shipped_file_is_valid() -> None:
    blend = Blend.read(SHIPPED_BLEND)
    assert blend.similarity is not None
    assert blend.background is not None


# the rows


def served(**partner: Any) -> tuple[TextModel, TextModel]:
    models = text_model(name="m"), matcher("e", **partner)
    pair(models)
    return models


def models_of(rows: list[Encoding]) -> list[str]:
    return [each.model for each in rows]


def outputs_of(rows: list[Encoding], texts: dict[int, tuple[float, float]]) -> list[Output]:
    """Choices prefer their first option; a row of the embedding model has the vector of its second token."""
    return [
        yes_no(*[(1.0 if index == 0 else 0.0, 0.0) for index in range(len(each.readout.positions))])
        if isinstance(each.readout, TokenScores)
        else logits(*texts.get(int(each.ids[-2]), (1.0, 0.0)))
        for each in rows
    ]


def classify(model: TextModel, query: ClassifyQuery, vectors: dict[int, tuple[float, float]]) -> list[ClassifyResult]:
    rows = CLASSIFY.encode(model, query)
    return CLASSIFY.decode(model, query, rows, outputs_of(rows, vectors))


def test_a_blend_has_choices_then_texts_then_labels_which_are_kept() -> None:
    model, _ = served()
    rows = CLASSIFY.encode(model, QUERY)
    assert models_of(rows) == ["m"] * 2 + ["e"] * (2 + 3 * NUM_TEMPLATES)
    assert [each.kept_as is not None for each in rows] == [False] * 4 + [True] * 3 * NUM_TEMPLATES
    assert used_method(rows) == "blend"
    results = CLASSIFY.decode(model, QUERY, rows, outputs_of(rows, {}))
    assert [each.tokens for each in results] == [rows[0].num_tokens + 3, rows[1].num_tokens + 3]


def test_the_vectors_of_labels_are_made_once() -> None:
    model, partner = served()
    query = bind(model, QUERY)
    rows = CLASSIFY.encode(model, query)
    first = CLASSIFY.decode(model, query, rows, outputs_of(rows, {10: (0.6, 0.8)}))
    again = bind(model, QUERY)
    rows = CLASSIFY.encode(model, again)
    assert models_of(rows) == ["m"] * 2 + ["e"] * 2
    assert CLASSIFY.decode(model, again, rows, outputs_of(rows, {10: (0.6, 0.8)})) == first
    assert bind(model, replace(QUERY, labels=LabelList.of("丙丁"))).vectors is None
    partner.label_vectors.clear()
    assert bind(model, QUERY).vectors is None


def test_an_embedding_model_reads_the_start_of_a_long_label_only() -> None:
    _, partner = served()
    labels = LabelList.of(["甲" * 100_000, "乙" + "甲" * 100_000])
    rows = CLASSIFY.encode(partner, replace(QUERY, labels=labels))[len(TEXTS) :]
    assert max(row.num_tokens for row in rows) == MAX_LABEL_TOKENS
    with pytest.raises(InvalidRequest, match=r"labels\[1\]: begins as labels\[0\] does, and e reads at most 64 tokens"):
        CLASSIFY.encode(partner, replace(QUERY, labels=LabelList.of(["甲" * 400, "甲" * 400 + "乙"])))


@pytest.mark.parametrize(
    ("changes", "models"),
    [
        ({}, ["m", "e"]),
        ({"method": "choice"}, ["m"]),
        ({"method": "embedding"}, ["e"]),
        ({"is_alone": True}, ["m"]),
        ({"inputs": (Text("甲", "乙"),)}, ["m"]),
        ({"labels": LabelList.of("甲乙丙丁戊己庚辛壬癸"), "question": "甲"}, ["m", "e"]),
    ],
)
def test_the_request_chooses_the_models(changes: dict[str, Any], models: list[str]) -> None:
    query = replace(QUERY, **changes)
    by_name = {model.name: model for model in served()[::-1]}
    assert list(dict.fromkeys(models_of(CLASSIFY.encode(route(by_name, CLASSIFY, query, None), query)))) == models


def test_an_embedding_model_alone_classifies() -> None:
    partner = matcher("e", blend=replace(BLEND, prior_weight=0.5))
    assert tasks_of(partner) == ["classify", "similarity", "embed"]
    rows = CLASSIFY.encode(partner, QUERY)
    assert used_method(rows) == "embedding"
    # The ids of 甲 to 戊 are 7 to 11: 甲 is close to 丁, 乙 to 戊.
    vectors = {7: (1.0, 0.0), 8: (0.6, 0.8), 9: (0.0, 1.0), 10: (1.0, 0.0), 11: (0.6, 0.8)}
    assert [each.label for each in classify(partner, QUERY, vectors)] == ["丁丁", "戊"]


def test_pairs_of_texts_are_refused_by_an_embedding_model() -> None:
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\].text_pair: e is an embedding model"):
        CLASSIFY.encode(matcher("e"), replace(QUERY, inputs=(Text("甲", "乙"),)))


def test_labels_that_do_not_fit_into_one_row_are_read_in_several() -> None:
    model, partner = text_model(name="m", max_length=48), matcher("e")
    pair((model, partner))
    query = replace(QUERY, labels=LabelList.of(f"丙{letter}" for letter in "甲乙丙丁戊己庚辛壬癸"))
    rows = CLASSIFY.encode(model, query)
    choices = [each for each in rows if each.model == "m"]
    assert used_method(rows) == "blend"
    read = [[label for (label,) in each.options] for each in choices]
    assert read == [[0, 1, 2, 3, 4]] * 2 + [[5, 6, 7, 8, 9]] * 2
    results = CLASSIFY.decode(model, query, rows, outputs_of(rows, {7: (0.6, 0.8)}))
    assert results[0].tokens == choices[0].num_tokens + choices[2].num_tokens + 3


def test_labels_that_the_choice_cannot_tell_apart_are_decided_by_the_embedding_model() -> None:
    """The choice has one option for all of them, and they share its probability."""
    vocab = VOCAB | {emoji: len(VOCAB) + index for index, emoji in enumerate("😀😁")}
    model, partner = text_model(name="m"), replace(matcher("e"), tokenizer=build_tokenizer(vocab, {}))
    pair((model, partner))
    query = replace(QUERY, inputs=TEXTS[:1], labels=LabelList.of(["😀", "丙", "😁"]))
    rows = CLASSIFY.encode(model, query)
    assert (used_method(rows), len(rows)) == ("blend", 1 + 1 + 3 * NUM_TEMPLATES)
    assert isinstance(rows[0].readout, TokenScores)
    assert len(rows[0].readout.positions) == 2
    [result] = classify(model, query, {vocab["😀"]: (0.0, 1.0), vocab["😁"]: (1.0, 0.0)})
    assert [each.label for each in result.scores] == ["😁", "丙", "😀"]
    alone = replace(query, labels=LabelList.of(["😀", "😁"]))
    assert used_method(CLASSIFY.encode(model, alone)) == "embedding"
    with pytest.raises(InvalidRequest, match=r"^labels\[1\]: is the same to m as labels\[0\]"):
        CLASSIFY.encode(model, replace(query, labels=LabelList.of(["😇", "😈"])))
    with pytest.raises(InvalidRequest, match=r"^labels\[1\]: is the same to e as labels\[0\]"):
        CLASSIFY.encode(partner, replace(query, labels=LabelList.of(["😇", "😈"])))


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_labels_that_the_embedding_model_cannot_tell_apart_are_decided_by_the_choice(is_multi_label: bool) -> None:
    """A statement and its negation have nearly the same vector; what they differ in is noise."""
    query = ClassifyQuery((Text("甲"),), LabelList.of(["丙", "不丙"]), multi_label=is_multi_label)
    vectors = {7: (0.6, 0.8), 9: (1.0, 0.0)}
    model, partner = text_model(name="m"), matcher("e", blend=replace(BLEND, same_cosine=0.9))
    pair((model, partner))
    rows = CLASSIFY.encode(model, query)
    outputs = outputs_of(rows, vectors)
    [blended] = CLASSIFY.decode(model, query, rows, outputs)
    alone = replace(query, method="choice")
    [chosen] = CLASSIFY.decode(model, alone, rows[:1], outputs[:1])
    assert blended.scores == chosen.scores
    [matched] = CLASSIFY.decode(partner, replace(query, method="embedding"), rows[1:], outputs[1:])
    assert matched.scores != chosen.scores


def test_vectors_of_labels_are_made_again_when_their_outputs_change() -> None:
    """They are dropped with the outputs when a device turns out to compute wrong numbers."""
    partner = matcher("e", blend=replace(BLEND, prior_weight=0.0))
    rows = CLASSIFY.encode(partner, QUERY)
    right, wrong = outputs_of(rows, {9: (0.6, 0.8)}), outputs_of(rows, {9: (1.0, 0.0), 10: (0.0, 1.0)})
    first, second, third = [CLASSIFY.decode(partner, QUERY, rows, each)[0] for each in (right, wrong, right)]
    assert first == third != second


def vectors_of(count: int) -> LabelVectors:
    return LabelVectors(np.eye(count, 2), np.empty((0, 2)), np.empty(0, dtype=np.int64), BLEND)


def test_kept_vectors_are_moved_by_the_examples_and_count_them() -> None:
    plain, texts = vectors_of(2), np.asarray([[0.8, 0.6]])
    taught = LabelVectors(plain.labels, np.asarray([[0.6, 0.8], [0.8, 0.6]]), np.asarray([0, 1]), BLEND)
    before, after = plain.scores(texts)[0], taught.scores(texts)[0]
    assert after[1] - after[0] > before[1] - before[0]
    assert taught.learned is taught.learned
    assert taught.num_bytes == 3 * plain.num_bytes


def test_the_vectors_that_are_kept_are_bounded() -> None:
    kept = LabelVectorsCache(max_bytes=2 * vectors_of(1).num_bytes)
    first, second, third, large = [LabelList.of(name) for name in "abcd"]
    for labels in (first, second, third):
        kept.put(labels, vectors_of(1), 0)
    kept.put(large, vectors_of(3), 0)
    assert [kept.get(each) is not None for each in (first, second, third, large)] == [False, True, True, False]


def test_vectors_of_a_device_that_was_found_wrong_are_not_kept() -> None:
    kept, labels = LabelVectorsCache(), LabelList.of("a")
    kept.put(labels, vectors_of(1), kept.generation)
    before = kept.generation
    kept.clear()
    kept.put(labels, vectors_of(1), before)
    assert kept.get(labels) is None
    kept.put(labels, vectors_of(1), kept.generation)
    assert kept.get(labels) is not None
