"""Similarity by embeddings: two rows per pair, their cosine, and which model answers. For UniMC see test_unimc."""

from __future__ import annotations

import pytest

from service.domain import Cls, Output
from service.errors import InvalidRequest
from service.tasks.embedding import EmbedQuery
from service.tasks.registry import TASKS, route, tasks_of
from service.tasks.similarity import SIMILARITY, SimilarityQuery, SimilarityResult
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import CLS, SEP, embedder, head, ids, letters, logits, text_model, yes_of

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
    assert result == SimilarityResult(pytest.approx(score, abs=1e-7), "embedding", 7, False)
    assert 0 <= result.score <= 1


def test_a_pair_is_two_rows_with_the_default_prompt() -> None:
    model = embedder(prompts={"s": "丁"}, default_prompt_name="s", pooling=("cls",))
    rows = SIMILARITY.encode(model, SimilarityQuery((("甲", "乙"), ("甲", "丙"))))
    assert [row.ids.tolist() for row in rows] == [[CLS, *ids(f"丁{text}"), SEP] for text in "甲乙甲丙"]
    assert {row.readout for row in rows} == {Cls()}
    assert (SIMILARITY.rows_per_input(model), SIMILARITY.rows_per_input(ZERO_SHOT)) == (2, 1)


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


def test_each_result_says_how_it_was_made() -> None:
    for model, output, method in ((ZERO_SHOT, yes_of([0.25, 0.75]), "choice"), (SIMILAR, logits(0, 1), "classifier")):
        [result] = SIMILARITY.decode(
            model, SimilarityQuery(PAIR), SIMILARITY.encode(model, SimilarityQuery(PAIR)), [output]
        )
        assert result.method == method


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
    assert compare(logits(1, 0), logits(1, 0), embedder(kind="masked-lm")).method == "embedding"


def test_a_classifier_for_pairs_with_modules_reads_both_texts() -> None:
    model = head("不相似", "相似", tasks=("similarity", "embed"))
    assert SIMILARITY.rows_per_input(model) == 1


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
