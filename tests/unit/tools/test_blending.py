"""Fitting a blend: constants that the data decides, and the file that they are written to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.tasks.blend import Blend
from service.tools import blending
from service.tools.blending import LabelScores, PairScores
from tests.unit.tasks.models import BLEND

NUM_LABELS = 3


def label_scores(*, choice_knows: float, embedding_knows: float, num: int = 120, seed: int = 1) -> LabelScores:
    """Random scores of which those of the right label are higher by what each model knows."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, NUM_LABELS, num)
    is_answer = np.eye(NUM_LABELS)[answers]
    yes = rng.normal(size=(num, NUM_LABELS)) + choice_knows * is_answer
    texts = 0.2 * rng.normal(size=(num, NUM_LABELS)) + embedding_knows * is_answer
    return LabelScores("drawn", answers, np.stack([yes, -yes], axis=-1), texts, np.eye(NUM_LABELS))


def accuracy(blend: Blend, scores: LabelScores) -> float:
    return float(np.mean(blending.classify(blend, scores).argmax(axis=1) == scores.answers))


def start(**changes: Any) -> Blend:
    return replace(BLEND, background=np.zeros(NUM_LABELS, dtype=np.float32), **changes)


@pytest.mark.parametrize(("choice_knows", "embedding_knows"), [(4.0, 0.0), (0.0, 1.0)])
def test_a_model_that_knows_nothing_gets_less_weight(choice_knows: float, embedding_knows: float) -> None:
    scores = label_scores(choice_knows=choice_knows, embedding_knows=embedding_knows)
    before = start(temperature=0.2, choice_weight=1.0)
    fitted = blending.fit_labels(before, [scores])
    assert accuracy(fitted, scores) > accuracy(before, scores)
    by_embedding, by_choice = fitted.temperature / 0.2, fitted.choice_weight
    assert (by_choice * by_embedding > 1) == (choice_knows > 0)


def test_constants_that_cannot_be_better_are_kept() -> None:
    certain = label_scores(choice_knows=50.0, embedding_knows=50.0)
    before = start(temperature=0.01)
    assert blending.fit_labels(before, [certain]) is before


def test_a_gain_of_less_than_the_noise_changes_nothing() -> None:
    """Of 40 texts, one more would be right."""
    few = label_scores(choice_knows=0.7, embedding_knows=0.3, num=40, seed=2)
    before = start(temperature=0.1, choice_weight=0.5)
    others = [accuracy(replace(before, temperature=value), few) for value in (0.05, 0.07, 0.14, 0.2)]
    assert max(others) == pytest.approx(accuracy(before, few) + 1 / 40)
    assert blending.fit_labels(before, [few]) is before


def test_each_set_counts_the_same() -> None:
    """A large set that the choice model answers and a small one of the embedding model: both halves are tried for."""
    large = label_scores(choice_knows=6.0, embedding_knows=0.0, num=300)
    small = label_scores(choice_knows=0.0, embedding_knows=1.0, num=30, seed=2)
    fitted = blending.fit_labels(start(temperature=1.0, choice_weight=1.0), [large, small])
    assert accuracy(fitted, small) > accuracy(start(temperature=1.0), small)


def test_the_background_is_the_mean_of_the_means_of_the_sets() -> None:
    few, many = label_scores(choice_knows=0, embedding_knows=1, num=2), label_scores(choice_knows=0, embedding_knows=1)
    wanted = (few.texts.mean(axis=0) + many.texts.mean(axis=0)) / 2
    assert blending.background_of([few, many]) == pytest.approx(wanted)


def test_logits_are_those_of_the_rounded_probabilities() -> None:
    yes_no = blending.yes_no_logits(np.asarray([[0.75, 0.25]]), np.asarray([[0.9, 1.0]]))
    assert yes_no[0, 0, 0] - yes_no[0, 1, 0] == pytest.approx(np.log(3))
    assert yes_no[0, 0, 0] - yes_no[0, 0, 1] == pytest.approx(np.log(9))
    assert yes_no[0, 1, 0] - yes_no[0, 1, 1] == pytest.approx(blending.LOGIT_LIMIT)


def test_pairs_are_as_probable_as_in_the_data() -> None:
    rng = np.random.default_rng(3)
    answers = (rng.random(4000) < 0.2).astype(np.int64)
    cosines = rng.normal(0.8 + 0.1 * answers, 0.02)
    logits = rng.normal(2.0 * answers - 1.0, 1.0)
    fitted = blending.fit_pairs([PairScores("drawn", answers, logits, cosines)])
    both = fitted.of_both(cosines, logits)
    assert np.mean((both >= 0.5) == answers) > 0.98
    assert both.mean() == pytest.approx(answers.mean(), abs=0.01)
    assert fitted.of_cosines(np.asarray([0.84]))[0] < 0.5 < fitted.of_cosines(np.asarray([0.87]))[0]


def test_a_model_that_contradicts_the_answers_does_not_count() -> None:
    rng = np.random.default_rng(4)
    answers = rng.integers(0, 2, 500)
    right, wrong = answers + 0.3 * rng.normal(size=500), -answers + 0.3 * rng.normal(size=500)
    against = blending.fit_pairs([PairScores("drawn", answers, wrong, right)])
    assert against.blend.choice == 0.0
    assert against.blend.cosine > 0.0
    against = blending.fit_pairs([PairScores("drawn", answers, right, wrong)])
    assert (against.blend.cosine, against.alone.cosine) == (0.0, 0.0)
    assert against.blend.choice > 0.0


def test_independent_labels_are_as_probable_as_in_the_data() -> None:
    scores = label_scores(choice_knows=4.0, embedding_knows=1.0, num=600)
    blend = start(temperature=1.0)
    fitted = blending.fit_independent(blend, [scores])
    centred = scores.texts @ scores.labels.T
    found = fitted.of_both(centred, scores.yes_no[..., 0] - scores.yes_no[..., 1])
    assert found.mean() == pytest.approx(1 / NUM_LABELS, abs=0.01)
    assert found[np.arange(600), scores.answers].mean() > 0.9


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "blend.json"
    background = np.asarray([0.25, -0.125], dtype=np.float32)
    blend = replace(BLEND, temperature=0.0123456, same_cosine=0.957, background=background)
    file.write_text(json.dumps(blending.to_json(blend)))
    again = Blend.read(file)
    assert again.background is not None
    assert again.background.tolist() == background.tolist()
    wanted = replace(blend, temperature=0.01235, background=None)
    names = [name for name in Blend.__slots__ if name != "background"]
    assert [getattr(again, name) for name in names] == [getattr(wanted, name) for name in names]
