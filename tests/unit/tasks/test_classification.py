"""Classification: by a head's labels and by labels of the request."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from service.checkpoints.checkpoint import OwnChoice
from service.domain import Encoding, Labels, Output, TokenScores
from service.errors import InvalidRequest
from service.tasks.calibration import Calibration, Entry, label_digest
from service.tasks.classification import CLASSIFY, ClassifyResult
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.decision import Rule
from service.tasks.labels import Label, LabelList
from service.tasks.scores import LabelScore
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import CLS, LETTERS, MASK, SEP, head, letters, log, logits, text_model, yes_no, yes_of

SENTIMENT = head("负面", "正面")


def answer(model: TextModel, query: ClassifyQuery, output: object) -> ClassifyResult:
    query = CLASSIFY.bind(model, query)
    [result] = CLASSIFY.decode(model, query, CLASSIFY.encode(model, query), [output])  # type: ignore[list-item]
    return result


def ranking(result: ClassifyResult) -> list[str]:
    return [score.label for score in result.scores]


def test_a_head_encodes_plain_rows() -> None:
    query = ClassifyQuery((Text("甲"), Text("乙", "丙")))
    first, second = CLASSIFY.encode(SENTIMENT, query)
    assert first.ids.tolist() == [CLS, 7, SEP]
    assert second.ids.tolist() == [CLS, 8, SEP, 9, SEP]
    assert (first.readout, second.readout) == (Labels(), Labels())


def test_a_head_returns_its_labels_best_first() -> None:
    result = answer(SENTIMENT, ClassifyQuery((Text("甲乙"),)), logits(*log(0.2, 0.8)))
    assert (result.label, result.tokens, result.truncated) == ("正面", 4, False)
    assert result.score == pytest.approx(0.8)
    assert ranking(result) == ["正面", "负面"]
    assert [score.score for score in result.scores] == pytest.approx([0.8, 0.2])


def test_a_head_without_label_names_numbers_its_labels() -> None:
    result = answer(head(num_classes=3), ClassifyQuery((Text("甲"),)), logits(0, 2, 1))
    assert ranking(result) == ["LABEL_1", "LABEL_2", "LABEL_0"]


def test_a_multi_label_head_scores_each_label_separately() -> None:
    result = answer(
        head("甲", "乙", "丙", activation="sigmoid"), ClassifyQuery((Text("甲"),)), logits(-2, 2.1972246, 0)
    )
    assert ranking(result) == ["乙", "丙", "甲"]
    assert [score.score for score in result.scores] == pytest.approx([0.9, 0.5, 0.1192029])
    assert (result.label, result.score) == ("乙", result.scores[0].score)


def test_a_regression_returns_the_output_itself() -> None:
    result = answer(head(num_classes=1, activation="identity"), ClassifyQuery((Text("甲"),)), logits(-3.25))
    assert (result.label, result.score, result.scores) == ("LABEL_0", -3.25, (LabelScore("LABEL_0", -3.25),))


def test_one_output_is_a_probability_of_its_own() -> None:
    result = answer(head(num_classes=1, activation="sigmoid"), ClassifyQuery((Text("甲"),)), logits(2.1972246))
    assert result.score == pytest.approx(0.9)


def test_the_best_of_thousands_of_classes_are_returned() -> None:
    model = head(num_classes=5000)
    outputs = [float(index % 4999) for index in range(5000)]
    result = answer(model, ClassifyQuery((Text("甲"),), top_k=2), logits(*outputs))
    assert ranking(result) == ["LABEL_4998", "LABEL_4997"]
    assert CLASSIFY.reply_bytes(model, ClassifyQuery((Text("甲"),))) > 5000 * len("LABEL_4999")


def test_labels_of_the_request_are_encoded_as_a_choice() -> None:
    query = ClassifyQuery((Text("丙", "丁"),), labels=LabelList.of(["甲", "乙"]), question="戊")
    [row] = CLASSIFY.encode(text_model(), query)
    assert row.ids.tolist() == [CLS, MASK, 7, MASK, 8, SEP, 11, SEP, 9, SEP, 10, SEP]
    assert row.readout == TokenScores((1, 3), (5, 6))


def test_a_fine_tuned_choice_model_answers_without_labels_as_it_was_trained() -> None:
    own = OwnChoice(("pos", "neg"), ("为甲", "为乙"), "戊")
    model, query = replace(text_model(), choice=own), ClassifyQuery((Text("丙"),))
    assert CLASSIFY.can(model, query)
    assert not CLASSIFY.can(text_model(), query)
    trained = CLASSIFY.encode(text_model(), replace(query, labels=LabelList.of(own.options), question="戊"))
    assert CLASSIFY.encode(model, CLASSIFY.bind(model, query))[0].ids.tolist() == trained[0].ids.tolist()
    assert ranking(answer(model, query, yes_of([0.25, 0.75]))) == ["neg", "pos"]
    assert CLASSIFY.own_labels(model) == ("pos", "neg")


def test_labels_of_a_request_win_over_those_of_a_fine_tuned_choice_model() -> None:
    model = replace(text_model(), choice=OwnChoice(("pos", "neg"), ("甲", "乙"), "戊"))
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["丁", "乙"]))
    assert (
        CLASSIFY.encode(model, CLASSIFY.bind(model, query))[0].ids.tolist()
        == CLASSIFY.encode(text_model(), query)[0].ids.tolist()
    )


def test_a_choice_model_of_several_labels_scores_each_by_itself() -> None:
    model = replace(text_model(), choice=OwnChoice(("a", "b"), ("甲", "乙"), multi_label=True))
    result = answer(model, ClassifyQuery((Text("丙"),)), yes_no((2.1972246, 0), (0, 0)))
    assert [score.score for score in result.scores] == pytest.approx([0.9, 0.5])


def test_a_choice_returns_the_labels_of_the_request() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙", "丁"]))
    result = answer(text_model(), query, yes_of([0.25, 0.125, 0.625]))
    assert ranking(result) == ["丁", "甲", "乙"]
    assert [score.score for score in result.scores] == pytest.approx([0.625, 0.25, 0.125])
    assert (result.label, result.score) == (result.scores[0].label, result.scores[0].score)


def test_multi_label_scores_each_label_separately() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙", "丁"]), multi_label=True)
    [no, yes, half] = (-2.0, log(0.9)[0] - log(0.1)[0], 0.0)
    result = answer(text_model(), query, yes_no((no, 0), (yes, 0), (half, 0)))
    assert ranking(result) == ["乙", "丁", "甲"]
    assert [score.score for score in result.scores] == pytest.approx([0.9, 0.5, 0.1192029])
    assert result.label == "乙"


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_single_label_is_scored_by_itself(multi_label: bool) -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲"]), multi_label=multi_label)
    result = answer(text_model(), query, yes_no((log(0.3)[0], log(0.7)[0])))
    assert result.score == pytest.approx(0.3)
    assert result.scores == (LabelScore("甲", result.score),)


@pytest.mark.parametrize(("top_k", "kept"), [(None, 3), (1, 1), (2, 2), (3, 3), (100, 3)])
def test_top_k_keeps_the_best_labels(top_k: int | None, kept: int) -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙", "丁"]), top_k=top_k)
    result = answer(text_model(), query, yes_of([0.25, 0.125, 0.625]))
    assert ranking(result) == ["丁", "甲", "乙"][:kept]
    assert result.score == pytest.approx(0.625)


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙", "丁", "戊"]))
    result = answer(text_model(), query, yes_no((1, 0), (2, 0), (1, 0), (2, 0)))
    assert ranking(result) == ["乙", "戊", "甲", "丁"]


def test_results_are_in_the_order_of_the_inputs() -> None:
    query = ClassifyQuery((Text("丙"), Text(letters(600))), labels=LabelList.of(["甲", "乙"]))
    rows = CLASSIFY.encode(text_model(), query)
    first, second = CLASSIFY.decode(text_model(), query, rows, [yes_of([0.9, 0.1]), yes_of([0.3, 0.7])])
    assert (first.label, first.tokens, first.truncated) == ("甲", 8, False)
    assert (second.label, second.tokens, second.truncated) == ("乙", 512, True)
    assert second.scores == (LabelScore("乙", second.score), LabelScore("甲", second.scores[1].score))


NUMBERS = LabelList.of("".join(letters) for letters in product(LETTERS, repeat=3))


def outputs_of(rows: list[Encoding]) -> list[Output]:
    """The logits of yes and no follow from the tokens of an option alone."""
    return [
        yes_no(
            *[
                (float(row.ids[start + 1 : end] @ (1, 7, 3)) % 5, float(row.ids[start + 1]) % 3)
                for start, end in row.blocks
            ]
        )
        for row in rows
    ]


@pytest.mark.parametrize("multi_label", [False, True])
def test_any_number_of_labels_is_read_in_several_rows_as_in_one(multi_label: bool) -> None:
    query = ClassifyQuery((Text("丙"), Text("丁")), labels=NUMBERS, question="戊", multi_label=multi_label)
    divided, whole = text_model(), text_model(max_length=5000)
    rows, [row, _] = CLASSIFY.encode(divided, query), CLASSIFY.encode(whole, query)
    assert (len(row.blocks), row.options) == (1000, ())
    assert len(rows) == 2 * 16
    assert not any(each.truncated for each in rows)
    assert [label for each in rows[::2] for (label,) in each.options] == list(range(1000))
    found = CLASSIFY.decode(divided, query, rows, outputs_of(rows))
    alone = CLASSIFY.decode(whole, query, [row, row], outputs_of([row, row]))
    assert [each.scores for each in found] == [each.scores for each in alone]
    assert found[0].tokens == sum(each.num_tokens for each in rows[::2])


def test_long_labels_that_begin_alike_are_refused_where_a_row_is_too_short() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of("甲" * 40 + name for name in NUMBERS.names[:40]))
    with pytest.raises(InvalidRequest, match=r"^labels\[1\]: begins as labels\[0\] does, and a row has room"):
        CLASSIFY.encode(text_model(max_length=64), query)


@pytest.mark.parametrize(
    ("model", "with_labels", "without"),
    [
        (text_model(), True, False),
        (text_model(yes=None), False, False),
        (SENTIMENT, False, True),
        (head(), False, True),
        (text_model("encoder"), False, False),
    ],
)
def test_which_models_can_classify_depends_on_the_labels(model: TextModel, with_labels: bool, without: bool) -> None:
    assert CLASSIFY.can(model, ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲"]))) is with_labels
    assert CLASSIFY.can(model, ClassifyQuery((Text("丙"),))) is without


# decisions and calibration


def calibrated(model: TextModel, temperature: float, *labels: str, **changes: object) -> TextModel:
    digest = label_digest(labels) if labels else None
    fields = {"models": ["m"], "method": "choice", "labels_sha256": digest, "temperature": temperature}
    measured = {"examples": 100, "ece_before": 0.1, "ece_after": 0.01}
    entry = Entry.model_validate(fields | measured | changes)
    model.calibrate(Calibration([entry], lambda name: [name]))
    return model


def test_the_rule_of_the_request_decides() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙"]), rule=Rule(min_score=0.7, none_label="其他"))
    result = answer(text_model(), query, yes_of([0.25, 0.75]))
    assert (result.decision, result.label, result.chosen) == ("label", "乙", ("乙",))
    result = answer(text_model(), query, yes_of([0.375, 0.625]))
    assert (result.decision, result.label, result.chosen) == ("none", "其他", ("其他",))
    assert (result.score, ranking(result)) == (pytest.approx(0.625), ["乙", "甲"])


def test_the_second_label_counts_where_only_the_first_is_returned() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙", "丁"]), top_k=1, rule=Rule(margin=0.2))
    result = answer(text_model(), query, yes_of([0.5, 0.375, 0.125]))
    assert (result.decision, result.chosen, ranking(result)) == ("ambiguous", ("甲", "乙"), ["甲"])


def test_multi_label_decides_for_all_labels_of_one_half() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙", "丁"]), multi_label=True)
    result = answer(text_model(), query, yes_no((-1, 0), (1, 0), (2, 0)))
    assert (result.decision, result.chosen) == ("label", ("丁", "乙"))


def test_a_multi_label_head_without_a_label_of_one_half_decides_for_none() -> None:
    result = answer(head("甲", "乙", activation="sigmoid"), ClassifyQuery((Text("甲"),)), logits(-2, -1))
    assert (result.decision, result.label, result.chosen) == ("none", "乙", ())


def test_a_regression_decides_nothing() -> None:
    model = calibrated(head(num_classes=1, activation="identity"), 2.0, method="classifier")
    result = answer(model, ClassifyQuery((Text("甲"),)), logits(-3.25))
    assert (result.decision, result.chosen, result.calibrated, result.score) == (None, (), False, -3.25)


@pytest.mark.parametrize(
    ("activation", "rule", "field"),
    [
        ("identity", Rule(min_score=0.5), "min_score"),
        ("identity", Rule(margin=0.5), "margin"),
        ("identity", Rule(none_label="其他"), "none_label"),
        ("sigmoid", Rule(margin=0.5), "margin"),
    ],
)
def test_a_rule_that_a_head_has_no_use_for_is_refused(activation: Any, rule: Rule, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        CLASSIFY.encode(head("甲", "乙", activation=activation), ClassifyQuery((Text("甲"),), rule=rule))
    assert [error.field for error in raised.value.errors] == [field]


def test_a_temperature_of_these_labels_calibrates_them() -> None:
    model = calibrated(text_model(), 2.0, "乙", "甲")
    result = answer(model, ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙"])), yes_of([0.9, 0.1]))
    assert (result.score, result.calibrated) == (pytest.approx(0.75), True)
    assert [score.score for score in result.scores] == pytest.approx([0.75, 0.25])


def test_other_labels_are_not_calibrated() -> None:
    model = calibrated(text_model(), 2.0, "乙", "甲")
    result = answer(model, ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "丁"])), yes_of([0.9, 0.1]))
    assert (result.score, result.calibrated) == (pytest.approx(0.9), False)


def test_a_temperature_comes_before_the_decision() -> None:
    model = calibrated(text_model(), 2.0, "甲", "乙")
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙"]), rule=Rule(min_score=0.8))
    assert answer(model, query, yes_of([0.9, 0.1])).decision == "none"


def test_the_temperature_of_the_query_comes_before_that_of_the_model() -> None:
    model = calibrated(text_model(), 5.0, "甲", "乙")
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙"]), temperature=2.0)
    result = answer(model, query, yes_of([0.9, 0.1]))
    assert (result.score, result.calibrated) == (pytest.approx(0.75), True)


def test_the_labels_of_a_head_are_calibrated() -> None:
    model = calibrated(head("负面", "正面"), 2.0, method="classifier")
    result = answer(model, ClassifyQuery((Text("甲"),)), logits(*log(0.1, 0.9)))
    assert (result.score, result.calibrated) == (pytest.approx(0.75), True)


def test_each_label_of_a_multi_label_head_is_calibrated_by_itself() -> None:
    model = calibrated(head("甲", "乙", activation="sigmoid"), 2.0, method="classifier")
    result = answer(model, ClassifyQuery((Text("甲"),)), logits(2.1972246, 0))
    assert [score.score for score in result.scores] == pytest.approx([0.75, 0.5])


def test_the_estimate_of_a_reply_counts_the_chosen_labels() -> None:
    labels = LabelList.of(["甲" * 100, "乙" * 100, "丙" * 100])
    one = ClassifyQuery((Text("丙"),), labels=labels)
    several = ClassifyQuery((Text("丙"),), labels=labels, rule=Rule(margin=0.5))
    assert CLASSIFY.reply_bytes(text_model(), several) - CLASSIFY.reply_bytes(text_model(), one) >= 2 * 300


def test_labels_with_examples_and_descriptions_are_not_calibrated_as_their_names() -> None:
    model = calibrated(text_model(), 2.0, "甲", "乙")
    for label in (Label("甲", description="丁"), Label("甲", examples=("丁",))):
        query = ClassifyQuery((Text("丙"),), labels=LabelList((label, Label("乙"))))
        assert not answer(model, query, yes_of([0.9, 0.1])).calibrated


def test_paths_are_not_calibrated() -> None:
    query = ClassifyQuery((Text("丙"),), labels=LabelList.of(["甲", "乙"]), hierarchy="/", temperature=2.0)
    assert not answer(text_model(), query, yes_of([0.9, 0.1])).calibrated
