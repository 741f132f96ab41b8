"""Similarity by embeddings: two rows per pair, their cosine, and which model answers. For UniMC see test_unimc."""

from __future__ import annotations

import math

import pytest

from service.domain import Cls, Output
from service.errors import InvalidRequest
from service.tasks.embedding import EmbedQuery
from service.tasks.registry import TASKS, route, tasks_of
from service.tasks.similarity import SIMILARITY, SimilarityQuery, SimilarityResult
from service.tasks.task import used_method
from service.tasks.text_model import TextModel, pair
from tests.unit.tasks.models import CLS, SEP, embedder, head, ids, letters, logits, matcher, text_model, yes_of

PAIR = (("甲", "乙丙"),)
ZERO_SHOT = text_model(name="zero-shot")
SIMILAR = head("不相似", "相似", name="similar", tasks=("similarity",))
EMBEDDER = embedder("embedder")


def compare(first: Output, second: Output, model: TextModel = EMBEDDER) -> SimilarityResult:
    query = SimilarityQuery(PAIR)
    [result] = SIMILARITY.decode(model, query, SIMILARITY.encode(model, query), [first, second])
    return result


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "score"),
    [
        ((3, 4), (6, 8), 1.0),
        ((1, 0), (1, 1), 0.5**0.5),
        ((1, 0), (0, 1), 0.0),
        ((1, 0), (-1, 0.1), 0.0),
        ((0, 0), (1, 0), 0.0),
    ],
)
def test_the_score_is_the_cosine_and_never_negative(
    first: tuple[float, float], second: tuple[float, float], score: float, normalize: bool
) -> None:
    result = compare(logits(*first), logits(*second), embedder(normalize=normalize))
    assert result == SimilarityResult(pytest.approx(score, abs=1e-7), 7, False)
    assert 0 <= result.score <= 1


def test_a_pair_is_two_rows_with_the_default_prompt() -> None:
    model = embedder(prompts={"s": "丁"}, default_prompt_name="s", pooling=("cls",))
    rows = SIMILARITY.encode(model, SimilarityQuery((("甲", "乙"), ("甲", "丙"))))
    assert [row.ids.tolist() for row in rows] == [[CLS, *ids(f"丁{text}"), SEP] for text in "甲甲乙丙"]
    assert {row.readout for row in rows} == {Cls()}
    assert rows[0] is rows[1], "the same text is tokenized once"


def test_a_prompt_of_the_request_counts_before_the_default() -> None:
    model = embedder(prompts={"s": "丁", "t": "戊"}, default_prompt_name="s")
    [first, _] = SIMILARITY.encode(model, SimilarityQuery(PAIR, prompt_name="t"))
    assert first.ids.tolist() == [CLS, *ids("戊甲"), SEP]
    [first, _] = SIMILARITY.encode(model, SimilarityQuery(PAIR, prompt=""))
    assert first.ids.tolist() == [CLS, *ids("甲"), SEP]


def test_the_error_of_a_long_text_names_its_side() -> None:
    pairs = (("甲", "乙"), ("甲", letters(600)))
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]\[1\]: takes at least 600 tokens; at most 510 fit$"):
        SIMILARITY.encode(EMBEDDER, SimilarityQuery(pairs, "error"))


@pytest.mark.parametrize(("model", "method"), [(ZERO_SHOT, "choice"), (SIMILAR, "classifier"), (EMBEDDER, "embedding")])
def test_the_method_is_that_of_the_model(model: TextModel, method: str) -> None:
    assert used_method(SIMILARITY.encode(model, SimilarityQuery(PAIR))) == method


def paired() -> tuple[TextModel, TextModel]:
    model, partner = text_model(name="zero-shot"), matcher("embedder")
    pair((model, partner))
    return model, partner


def test_a_pair_of_models_decides_by_the_logistic_of_both() -> None:
    model, _ = paired()
    query = SimilarityQuery((("甲", "乙"), ("甲", "丙")))
    rows = SIMILARITY.encode(model, query)
    assert [row.model for row in rows] == ["zero-shot"] * 2 + ["embedder"] * 4
    assert used_method(rows) == "blend"
    outputs = [yes_of([0.5, 0.5]), yes_of([0.2, 0.8]), *[logits(*each) for each in ((1, 0), (1, 0), (1, 0), (0, 1))]]
    first, second = SIMILARITY.decode(model, query, rows, outputs)
    assert first.score == pytest.approx(1 / (1 + math.exp(-(-1 + 3))))
    assert second.score == pytest.approx(1 / (1 + math.exp(-(-1 + 2 * math.log(4)))))
    assert first.tokens == sum(row.num_tokens for row in rows[::2])


def test_a_fitted_embedding_model_alone_gives_probabilities() -> None:
    _, partner = paired()
    result = compare(logits(1, 0), logits(1, 0), partner)
    assert result.score == pytest.approx(1 / (1 + math.exp(-(-2 + 5))))
    assert SIMILARITY.decides(partner)


@pytest.mark.parametrize(
    ("query", "models"),
    [
        (SimilarityQuery(PAIR, method="choice"), ["zero-shot"]),
        (SimilarityQuery(PAIR, is_alone=True), ["zero-shot"]),
        (SimilarityQuery(PAIR, method="embedding"), ["embedder"]),
        (SimilarityQuery(PAIR, prompt="丁"), ["embedder"]),
        (SimilarityQuery(PAIR), ["zero-shot", "embedder"]),
    ],
)
def test_the_method_of_the_request_chooses_the_models(query: SimilarityQuery, models: list[str]) -> None:
    served = {model.name: model for model in paired()}
    rows = SIMILARITY.encode(route(served, SIMILARITY, query, None), query)
    assert list(dict.fromkeys(row.model for row in rows)) == models


def test_a_method_without_its_model_is_refused_with_what_to_serve() -> None:
    with pytest.raises(
        InvalidRequest, match=r"^method: no served model can do this; similarity needs an embedding mod"
    ):
        route({"zero-shot": ZERO_SHOT}, SIMILARITY, SimilarityQuery(PAIR, method="embedding"), None)


@pytest.mark.parametrize(
    ("models", "name", "chosen"),
    [
        ((EMBEDDER, ZERO_SHOT), None, ZERO_SHOT),
        ((EMBEDDER, ZERO_SHOT, SIMILAR), None, SIMILAR),
        ((EMBEDDER, ZERO_SHOT), "embedder", EMBEDDER),
        ((head("负面", "正面", name="sentiment"), EMBEDDER), None, EMBEDDER),
    ],
)
def test_an_embedding_model_answers_alone_or_named(
    models: tuple[TextModel, ...], name: str | None, chosen: TextModel
) -> None:
    assert route({model.name: model for model in models}, SIMILARITY, SimilarityQuery(PAIR), name) is chosen


@pytest.mark.parametrize("query", [SimilarityQuery(PAIR, prompt="丁"), SimilarityQuery(PAIR, prompt_name="s")])
def test_a_prompt_requires_an_embedding_model(query: SimilarityQuery) -> None:
    assert route({"zero-shot": ZERO_SHOT, "embedder": EMBEDDER}, SIMILARITY, query, None) is EMBEDDER
    with pytest.raises(InvalidRequest, match="or an embedding model; with a prompt, the latter"):
        route({"zero-shot": ZERO_SHOT}, SIMILARITY, query, None)


def test_an_embedding_model_is_preferred_for_embeddings() -> None:
    assert route({"zero-shot": ZERO_SHOT, "embedder": EMBEDDER}, TASKS["embed"], EmbedQuery(("甲",)), None) is EMBEDDER


def test_a_model_with_a_masked_lm_and_modules_compares_embeddings() -> None:
    assert compare(logits(1, 0), logits(1, 0), embedder(kind="masked-lm")).score == 1


def test_a_classifier_for_pairs_with_modules_reads_both_texts() -> None:
    model = head("不相似", "相似", tasks=("similarity", "embed"))
    assert used_method(SIMILARITY.encode(model, SimilarityQuery(PAIR))) == "classifier"


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan", "dot"])
def test_a_model_of_another_distance_only_embeds(similarity: str) -> None:
    model = embedder("far", similarity=similarity)
    assert tasks_of(model) == ["embed"]
    with pytest.raises(InvalidRequest, match=f"far was trained to be compared by {similarity}; take its vectors from"):
        route({"far": model}, SIMILARITY, SimilarityQuery(PAIR), "far")


def test_a_cosine_is_no_decision() -> None:
    assert not SIMILARITY.decides(EMBEDDER)
    assert SIMILARITY.decides(ZERO_SHOT)
    assert SIMILARITY.decides(SIMILAR)
