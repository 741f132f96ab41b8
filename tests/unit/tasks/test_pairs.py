"""Similarity and inference: two texts for a fine-tuned head, or as readings of the second over the first."""

from __future__ import annotations

import pytest

from service.domain import Labels, TokenScores
from service.errors import InvalidRequest
from service.tasks.inference import NLI, NliQuery
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.task import Task
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import CLS, MASK, SEP, VOCAB, head, ids, letters, log, logits, text_model, yes_of

PAIR = (("甲", "乙"),)
SIMILAR = head("不相似", "相似", tasks=("similarity",))
INFERS = head("矛盾", "中立", "蕴含", tasks=("nli",))


def test_similarity_is_a_choice_of_two_readings() -> None:
    [row] = SIMILARITY.encode(text_model(), SimilarityQuery(PAIR))
    different, same = ids("不能理解为：乙"), ids("可以理解为：乙")
    assert row.ids.tolist() == [CLS, MASK, *different, MASK, *same, SEP, VOCAB["甲"], SEP]
    assert row.readout == TokenScores((1, 9), (5, 6))


def test_inference_is_a_choice_of_three_readings() -> None:
    [row] = NLI.encode(text_model(), NliQuery(PAIR))
    readings = [MASK, *ids("不能推断出：乙"), MASK, *ids("很难推断出：乙"), MASK, *ids("可以推断出：乙")]
    assert row.ids.tolist() == [CLS, *readings, SEP, VOCAB["甲"], SEP]
    assert row.readout == TokenScores((1, 9, 17), (5, 6))


@pytest.mark.parametrize(
    ("task", "model", "query"), [(SIMILARITY, SIMILAR, SimilarityQuery(PAIR)), (NLI, INFERS, NliQuery(PAIR))]
)
def test_a_head_reads_the_pair(task: Task, model: TextModel, query: object) -> None:  # type: ignore[type-arg]
    [row] = task.encode(model, query)
    assert row.ids.tolist() == [CLS, 7, SEP, 8, SEP]
    assert row.readout == Labels()


@pytest.mark.parametrize(("model", "output"), [(text_model(), yes_of([0.3, 0.7])), (SIMILAR, logits(*log(0.3, 0.7)))])
def test_the_score_of_similarity_is_the_second_class(model: TextModel, output: object) -> None:
    query = SimilarityQuery(PAIR)
    rows = SIMILARITY.encode(model, query)
    [result] = SIMILARITY.decode(model, query, rows, [output])  # type: ignore[list-item]
    assert result.score == pytest.approx(0.7)
    assert (result.tokens, result.truncated) == (rows[0].num_tokens, False)


def test_similarity_goes_by_the_name_of_the_class_where_it_has_one() -> None:
    model, query = head("相似", "不相似", tasks=("similarity",)), SimilarityQuery(PAIR)
    [result] = SIMILARITY.decode(model, query, SIMILARITY.encode(model, query), [logits(*log(0.3, 0.7))])
    assert result.score == pytest.approx(0.3)


THREE = (0.5, 0.2, 0.3)


@pytest.mark.parametrize(
    ("model", "ranking"),
    [
        (text_model(), ["contradiction", "entailment", "neutral"]),
        (INFERS, ["contradiction", "entailment", "neutral"]),
        (head("entailment", "neutral", "contradiction", tasks=("nli",)), ["entailment", "contradiction", "neutral"]),
        (head("蕴含", "矛盾", "中立", tasks=("nli",)), ["entailment", "neutral", "contradiction"]),
        (head("NEUTRAL", "Entailment", "Contradiction", tasks=("nli",)), ["neutral", "contradiction", "entailment"]),
        (head("a", "b", "c", tasks=("nli",)), ["contradiction", "entailment", "neutral"]),
        (head("蕴含", "entailment", "中立", tasks=("nli",)), ["contradiction", "entailment", "neutral"]),
    ],
    ids=["choice", "upstream", "English", "Chinese", "any case", "unknown names", "a name twice"],
)
def test_inference_names_the_classes_as_the_head_orders_them(model: TextModel, ranking: list[str]) -> None:
    query = NliQuery(PAIR)
    output = yes_of(THREE) if model.can_choose else logits(*log(*THREE))
    [result] = NLI.decode(model, query, NLI.encode(model, query), [output])
    assert [score.label for score in result.scores] == ranking
    assert [score.score for score in result.scores] == pytest.approx([0.5, 0.3, 0.2])
    assert (result.label, result.score) == (ranking[0], result.scores[0].score)


def test_braces_in_a_text_are_text() -> None:
    [row] = SIMILARITY.encode(text_model(), SimilarityQuery((("甲", "{}{0}"),)))
    assert row.blocks == ((1, 13), (13, 25))  # a mask, six characters of the reading, five of the text


def test_a_long_second_text_is_halved_with_its_reading() -> None:
    [row] = SIMILARITY.encode(text_model(), SimilarityQuery((("甲", letters(400)),)))
    assert row.blocks == ((1, 205), (205, 409))
    assert row.ids[2:205].tolist() == ids(("不能理解为：" + letters(400))[:203])
    assert row.truncated


def test_a_second_text_that_does_not_fit_is_named() -> None:
    pairs = (("甲", "乙"), ("甲", letters(400)))
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]\[1\]: 2 options take 815 tokens, at most 480 fit$"):
        SIMILARITY.encode(text_model(), SimilarityQuery(pairs, "error"))
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]: takes 600 tokens, at most 493 fit$"):
        SIMILARITY.encode(text_model(), SimilarityQuery((("甲", "乙"), (letters(600), "乙")), "error"))


def test_who_can() -> None:
    similarity, nli = SimilarityQuery(PAIR), NliQuery(PAIR)
    models = [text_model(), SIMILAR, INFERS, head("a", "b"), text_model("encoder"), text_model(yes=None)]
    assert [SIMILARITY.can(model, similarity) for model in models] == [True, True, False, False, False, False]
    assert [NLI.can(model, nli) for model in models] == [True, False, True, False, False, False]


def test_a_head_of_another_size_cannot() -> None:
    assert not NLI.can(head("yes", "no", tasks=("nli",)), NliQuery(PAIR))
    assert not SIMILARITY.can(head("one", tasks=("similarity",)), SimilarityQuery(PAIR))
