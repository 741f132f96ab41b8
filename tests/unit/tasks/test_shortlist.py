"""More labels than the choice model reads: a second stage among the best labels by their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.domain import Encoding, Output, TokenScores
from service.tasks.classification import CLASSIFY, ClassifyResult, bind
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.label_rows import encode_labels
from service.tasks.labels import Label, LabelList
from service.tasks.task import used_method
from service.tasks.text_model import TextModel, pair
from service.tasks.windows import WindowOptions
from service.tasks.zero_shot import follow, has_second_stage
from tests.unit.tasks.models import BLEND, LETTERS, logits, matcher, text_model, yes_no

LABELS = LabelList.of(f"{first}{second}" for first in LETTERS[:4] for second in LETTERS[:5])
QUERY = ClassifyQuery((Text("甲"), Text("乙甲")), LABELS)


def served(shortlist: int, **changes: object) -> TextModel:
    model, partner = text_model(name="m"), matcher("e", blend=replace(BLEND, shortlist=shortlist, **changes))  # type: ignore[arg-type]
    pair((model, partner))
    return model


def outputs_of(rows: Sequence[Encoding]) -> list[Output]:
    """A vector or logits that follow from the tokens of the row, or of the option."""
    return [
        yes_no(*[_numbers(row.ids[start + 1 : end]) for start, end in row.blocks])
        if isinstance(row.readout, TokenScores)
        else logits(*_numbers(row.ids[1:-1]))
        for row in rows
    ]


def _numbers(ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> tuple[float, float]:
    turned = float(ids @ np.arange(1, len(ids) + 1)) * 0.7
    return float(np.cos(turned)), float(np.sin(turned))


def classify(model: TextModel, query: ClassifyQuery) -> tuple[list[ClassifyResult], list[Encoding]]:
    query = bind(model, query)
    rows = CLASSIFY.encode(model, query)
    outputs = outputs_of(rows)
    if has_second_stage(model, query):
        assert CLASSIFY.follow is not None
        more = CLASSIFY.follow(model, query, rows, outputs)
        rows, outputs = [*more, *rows], [*outputs_of(more), *outputs]
    return CLASSIFY.decode(model, query, rows, outputs), rows


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_shortlist_of_all_labels_has_the_scores_of_one_stage(multi_label: bool) -> None:
    query = replace(QUERY, multi_label=multi_label)
    one_stage, rows = classify(served(len(LABELS)), query)
    model = served(len(LABELS))
    first = rows[2:]
    more = follow(model, query, first, outputs_of(first))
    two_stages = CLASSIFY.decode(model, query, [*more, *first], [*outputs_of(more), *outputs_of(first)])
    assert not has_second_stage(model, query)
    for one, two in zip(one_stage, two_stages, strict=True):
        assert [each.label for each in one.scores] == [each.label for each in two.scores]
        assert [each.score for each in two.scores] == pytest.approx([each.score for each in one.scores])


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_outside_the_shortlist_rank_below_it(multi_label: bool) -> None:
    results, rows = classify(served(6), replace(QUERY, multi_label=multi_label))
    choices = [row for row in rows if row.model == "m"]
    assert used_method(rows) == "blend"
    for result, row in zip(results, choices, strict=True):
        read = {LABELS.names[label] for (label,) in row.options}
        assert {each.label for each in result.scores[:6]} == read
        assert multi_label or sum(each.score for each in result.scores) == pytest.approx(1)
    assert len(results[0].scores) == len(LABELS)


def test_the_shortlist_is_what_the_embedding_model_alone_ranks_first() -> None:
    model = served(6)
    results, _ = classify(model, QUERY)
    assert model.partner is not None
    alone, _ = classify(model.partner, replace(QUERY, method="embedding"))
    for result, other in zip(results, alone, strict=True):
        assert {each.label for each in result.scores[:6]} == {each.label for each in other.scores[:6]}


def test_with_kept_vectors_a_request_has_no_rows_of_labels() -> None:
    model = served(6)
    first, _ = classify(model, QUERY)
    again, rows = classify(model, QUERY)
    assert [row.model for row in rows] == ["m", "m", "e", "e"]
    assert again == first


def test_the_tokens_of_both_stages_count() -> None:
    results, rows = classify(served(6), QUERY)
    for index, result in enumerate(results):
        assert result.tokens == rows[index].num_tokens + rows[2 + index].num_tokens


def test_labels_without_a_token_for_the_choice_are_left_to_the_vectors() -> None:
    labels = LabelList.of(["\u200b", *LABELS.names])
    results, rows = classify(served(20), replace(QUERY, labels=labels))
    read = {label for row in rows if row.model == "m" for (label,) in row.options}
    assert 0 not in read
    assert len(results[0].scores) == 21


def test_of_a_hierarchy_the_shortlist_has_the_labels_above_its_labels() -> None:
    labels = LabelList.of(f"{name[0]}/{name[1]}" for name in LABELS.names)
    query = replace(QUERY, labels=labels, hierarchy="/")
    _, rows = classify(served(8), query)
    tree = query.tree
    assert tree is not None
    for row in rows[:2]:
        read = {label for (label,) in row.options}
        assert len(read) == 8
        assert all(int(tree.parents[label]) in read for label in read if tree.parents[label] >= 0)


def test_a_description_is_read_by_the_embedding_model_of_the_two() -> None:
    plain, described = LabelList.of("甲乙"), LabelList((Label("甲", "丙"), Label("乙")))
    model = served(6)
    _, rows = classify(model, replace(QUERY, labels=plain))
    _, more = classify(model, replace(QUERY, labels=described))
    before, after = [[row for row in each if row.model == "e"] for each in (rows, more)]
    assert len(after) == len(before) + 1
    assert more[0].num_tokens == rows[0].num_tokens


def test_a_description_is_read_by_a_choice_model_alone() -> None:
    plain, described = LabelList.of("甲乙"), LabelList((Label("甲", "丙"), Label("乙")))
    tokens = [
        classify(served(6), replace(QUERY, labels=labels, method="choice"))[1][0].num_tokens
        for labels in (plain, described)
    ]
    assert tokens[1] == tokens[0] + 2


def test_a_description_is_a_third_of_the_vector_of_its_label() -> None:
    model = matcher("e")
    rows = encode_labels(model, LabelList((Label("甲", "丙"), Label("乙"))))
    outputs = [logits(*vector) for vector in ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (1.0, 0.0), (0.8, 0.6))]
    vectors = rows.vectors(outputs).labels
    assert vectors[0] == pytest.approx([(1.0 + 0.6) / 3, (1.0 + 0.8) / 3])
    assert vectors[1] == pytest.approx([0.9, 0.3])


def test_a_text_of_one_window_has_the_scores_of_its_shortlist_without_windows() -> None:
    plain, _ = classify(served(6), QUERY)
    windowed, _ = classify(served(6), replace(QUERY, windows=WindowOptions()))
    for one, two in zip(plain, windowed, strict=True):
        assert [each.label for each in two.scores] == [each.label for each in one.scores]
        assert [each.score for each in two.scores] == pytest.approx([each.score for each in one.scores])


def test_the_windows_of_a_text_are_read_with_one_shortlist() -> None:
    model = served(6)
    assert model.partner is not None
    length = 2 * max(model.max_length, model.partner.max_length)
    query = replace(QUERY, inputs=(Text(LETTERS[0] * length), Text("乙甲")), windows=WindowOptions(0))
    results, rows = classify(model, query)
    choices = [row for row in rows if row.model == "m"]
    shortlists = [frozenset(label for (label,) in row.options) for row in choices]
    assert len(choices) > 3
    assert len(set(shortlists[:-1])) == 1
    assert len(results) == 2
    assert sum(each.score for each in results[0].scores) == pytest.approx(1)
