"""Property tests of every task: rows fit, blocks and positions are consistent, scores are a distribution."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Encoding, Labels, Output, TokenScores, TopTokens
from service.errors import InvalidRequest
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.fill_mask import FILL_MASK, FillMaskQuery
from service.tasks.labels import LabelList
from service.tasks.mrc import MRC, MrcQuery, Reading
from service.tasks.nli import NLI, NliQuery
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.task import Task, Truncation
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import CLS, LETTERS, MASK, SEP, head, text_model

CHARACTERS = st.sampled_from(f"{LETTERS}word[]😀臺é\x00\u200b 　{{}}。A")
STRINGS = st.text(CHARACTERS, max_size=20) | st.builds(
    lambda text, times: text * times, st.text(CHARACTERS), st.integers(1, 40)
)
TRUNCATIONS = st.sampled_from(get_args(Truncation))
LENGTHS = st.sampled_from([40, 64, 100, 512])
ANYTHING = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)
"""Any text of UTF-8: other scripts, control characters, characters outside the vocabulary."""
OPTIONS = st.lists(STRINGS, min_size=1, max_size=40, unique=True).map(tuple)
PAIRS = st.lists(st.tuples(STRINGS, STRINGS), min_size=1, max_size=3).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)


def rows_of(task: Task[Any, Any], model: TextModel, query: Any) -> list[Encoding] | None:
    """The rows of a query, or None when it is refused; the error must name a field."""
    try:
        rows = task.encode(model, query)
    except InvalidRequest as error:
        fields = [each.field for each in error.errors]
    else:
        for row in rows:
            check(row, model)
            assert not (row.truncated and query.truncation == "error")
        return rows
    assert [field.startswith(("inputs[", "labels")) for field in fields] == [True]
    return None


def check(row: Encoding, model: TextModel) -> None:
    assert len(row.ids) == len(row.segment_ids) == len(row.positions) == row.num_tokens <= model.max_length
    assert row.ids[0] == CLS
    assert row.ids[-1] == SEP
    assert set(row.segment_ids.tolist()) <= {0, 1}
    assert (row.positions >= 0).all()
    assert (row.positions <= np.arange(row.num_tokens)).all()
    ends = [0, *(end for block in row.blocks for end in block)]
    assert ends == sorted(ends)
    assert all(start < end for start, end in row.blocks)
    assert np.flatnonzero(row.ids == MASK).tolist() == [start for start, _ in row.blocks]
    if row.blocks:
        assert row.readout == TokenScores(tuple(start for start, _ in row.blocks), (5, 6))


def outputs_of(rows: list[Encoding], num_labels: int, seed: int) -> list[Output]:
    random = np.random.default_rng(seed)
    shapes = [(1, num_labels) if row.readout == Labels() else (len(row.blocks), 2) for row in rows]
    return [Output((30 * random.standard_normal(shape)).astype(np.float32)) for shape in shapes]


def is_distribution(scores: list[float]) -> bool:
    return all(0 <= score <= 1 for score in scores) and abs(sum(scores) - 1) < 1e-5


@settings(deadline=None)
@given(
    st.lists(st.tuples(STRINGS, st.none() | STRINGS), min_size=1, max_size=3),
    OPTIONS,
    STRINGS,
    st.booleans(),
    TRUNCATIONS,
    LENGTHS,
    SEEDS,
)
def test_zero_shot_classification_returns_ranked_scores_of_every_label(
    inputs: list[tuple[str, str | None]],
    labels: tuple[str, ...],
    question: str,
    multi_label: bool,
    truncation: Truncation,
    max_length: int,
    seed: int,
) -> None:
    model = text_model(max_length=max_length)
    texts = tuple(Text(*each) for each in inputs)
    query = ClassifyQuery(texts, LabelList.of(labels), question, multi_label, None, truncation)
    rows = rows_of(CLASSIFY, model, query)
    if rows is None:
        return
    for result in CLASSIFY.decode(model, query, rows, outputs_of(rows, 0, seed)):
        scores = [each.score for each in result.scores]
        assert scores == sorted(scores, reverse=True)
        assert sorted(each.label for each in result.scores) == sorted(labels)
        assert (result.label, result.score) == (result.scores[0].label, scores[0])
        is_independent = multi_label or len(labels) == 1
        assert all(0 <= score <= 1 for score in scores) if is_independent else is_distribution(scores)


@settings(deadline=None)
@given(STRINGS, STRINGS, OPTIONS, TRUNCATIONS, LENGTHS, SEEDS)
def test_reading_comprehension_returns_the_best_choice(
    passage: str, question: str, choices: tuple[str, ...], truncation: Truncation, max_length: int, seed: int
) -> None:
    model = text_model(max_length=max_length)
    query = MrcQuery((Reading(passage, question, choices),), truncation)
    rows = rows_of(MRC, model, query)
    if rows is None:
        return
    [result] = MRC.decode(model, query, rows, outputs_of(rows, 0, seed))
    assert is_distribution(list(result.scores)) or (len(choices) == 1 and 0 <= result.score <= 1)
    assert result.score == max(result.scores) == result.scores[result.index]
    assert result.answer == choices[result.index]


@settings(deadline=None)
@given(PAIRS, TRUNCATIONS, LENGTHS, st.booleans(), SEEDS)
def test_nli_and_similarity_return_valid_scores(
    pairs: tuple[tuple[str, str], ...], truncation: Truncation, max_length: int, is_tuned: bool, seed: int
) -> None:
    zero_shot = text_model(max_length=max_length)
    infers = head("矛盾", "中立", "蕴含", tasks=("nli",), max_length=max_length) if is_tuned else zero_shot
    rows = rows_of(NLI, infers, NliQuery(pairs, truncation))
    for result in NLI.decode(infers, NliQuery(pairs, truncation), rows, outputs_of(rows, 3, seed)) if rows else ():
        assert is_distribution([each.score for each in result.scores])
        assert {each.label for each in result.scores} == {"contradiction", "neutral", "entailment"}
    similar = head("不相似", "相似", tasks=("similarity",), max_length=max_length) if is_tuned else zero_shot
    query = SimilarityQuery(pairs, truncation)
    rows = rows_of(SIMILARITY, similar, query)
    results = SIMILARITY.decode(similar, query, rows, outputs_of(rows, 2, seed)) if rows else []
    assert all(0 <= result.score <= 1 for result in results)


@settings(deadline=None)
@given(st.lists(ANYTHING | STRINGS, min_size=1, max_size=3).map(tuple), TRUNCATIONS, LENGTHS, SEEDS)
def test_any_text_can_be_embedded_and_classified(
    texts: tuple[str, ...], truncation: Truncation, max_length: int, seed: int
) -> None:
    model, tuned = text_model(max_length=max_length), head("负面", "正面", max_length=max_length)
    query = EmbedQuery(texts, truncation=truncation)
    rows = rows_of(EMBED, model, query) or []
    outputs = [Output(np.random.default_rng(seed).standard_normal((1, 8)).astype(np.float32)) for _ in rows]
    results = EMBED.decode(model, query, rows, outputs)
    assert len(results) == len(rows)
    for result in results:
        assert abs(sum(value * value for value in result.embedding) - 1) < 1e-5
    labelled = ClassifyQuery(tuple(map(Text, texts)), truncation=truncation)
    rows = rows_of(CLASSIFY, tuned, labelled)
    for decided in CLASSIFY.decode(tuned, labelled, rows, outputs_of(rows, 2, seed)) if rows else ():
        assert is_distribution([each.score for each in decided.scores])


def row_or_fields(model: TextModel, query: FillMaskQuery) -> Encoding | list[str]:
    """The row of the only text, or the fields named by its refusal."""
    try:
        [row] = FILL_MASK.encode(model, query)
    except InvalidRequest as error:
        return [each.field for each in error.errors]
    return row


@settings(deadline=None)
@given(st.lists(ANYTHING | STRINGS, min_size=2, max_size=6), TRUNCATIONS, LENGTHS, SEEDS)
def test_masks_are_found_between_any_texts(
    parts: list[str], truncation: Truncation, max_length: int, seed: int
) -> None:
    model, text = text_model(max_length=max_length), "[MASK]".join(parts)
    query = FillMaskQuery((text,), 3, truncation)
    row = row_or_fields(model, query)
    if isinstance(row, list):
        assert row == ["inputs[0]"]
        return
    assert isinstance(row.readout, TopTokens)
    places = list(row.readout.positions)
    assert np.flatnonzero(row.ids == MASK).tolist() == places
    assert len(places) == text.count("[MASK]") or row.truncated
    random = np.random.default_rng(seed)
    scores = np.sort(random.random((len(places), 3)), axis=1)[:, ::-1].astype(np.float32)
    output = Output(scores, random.integers(0, 7, (len(places), 3)).astype(np.int32))
    [result] = FILL_MASK.decode(model, query, [row], [output])
    assert [[token.score for token in mask] for mask in result.masks] == scores.tolist()
