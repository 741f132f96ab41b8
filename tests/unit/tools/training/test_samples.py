"""Rows, batches and their order: padding, targets, and steps that do not depend on the number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.errors import SettingError
from service.tasks.text_model import TextModel
from service.tools.data.converters import Example
from service.tools.training.samples import Collator, GroupedByLength, Problem, Samples, choose_max_length
from service.tools.training.wordings import Wording
from tests.checkpoints import make_checkpoint

LABELS = ("好", "差")
EXAMPLES = [Example("classify", (text,), LABELS, answer) for text, answer in (("天气很好", 0), ("不好", 1), ("我", 1))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("samples") / "model")
    return TextModel.load(describe(folder, "model"))


def test_a_head_batch_pads_rows_and_masks_the_padding(model: TextModel) -> None:
    problem = Problem("head", "one", "classify", LABELS)
    samples = Samples(model, problem, EXAMPLES, 64)
    batch = Collator(problem)([samples[0], samples[2]])
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert batch["labels"].tolist() == [0, 1]


def test_a_choice_batch_lists_the_places_of_the_options(model: TextModel) -> None:
    problem = Problem("choice", "one", "classify", LABELS, Wording(template="这是一条{label}评"))
    samples = Samples(model, problem, EXAMPLES, 64)
    batch = Collator(problem)(samples.samples)
    assert batch["option_counts"].tolist() == [2, 2, 2]
    places = batch["option_positions"][0]
    assert batch["input_ids"][0, places].tolist() == [model.mask, model.mask]


def test_several_labels_are_a_row_of_zeros_and_ones(model: TextModel) -> None:
    problem = Problem("head", "several", "classify", ("甲", "乙", "丙"))
    examples = [Example("classify", ("文",), problem.labels, 0, answers=held) for held in ((0, 2), ())]
    batch = Collator(problem)(Samples(model, problem, examples, 64).samples)
    assert batch["labels"].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_grades_are_numbers(model: TextModel) -> None:
    problem = Problem("head", "number", "similarity", ())
    examples = [Example("similarity", ("文", "字"), (), -1, grade=grade) for grade in (0.5, 4.0)]
    assert Collator(problem)(Samples(model, problem, examples, 64).samples)["labels"].tolist() == [0.5, 4.0]


def test_options_that_do_not_fit_are_a_setting_error_that_names_the_flag(model: TextModel) -> None:
    labels = tuple(f"类别名称{index}" for index in range(30))
    problem = Problem("choice", "one", "classify", labels)
    with pytest.raises(SettingError, match=r"--max-length 64: 30 options take at least .* use --form head"):
        Samples(model, problem, [Example("classify", ("文",), labels, 0)], 64)


def test_the_length_is_chosen_by_the_rows_up_to_a_limit(model: TextModel) -> None:
    problem = Problem("head", "one", "classify", LABELS)
    assert choose_max_length(model, problem, EXAMPLES, 128) == 32
    long = [Example("classify", ("好" * 400,), LABELS, 0)]
    assert choose_max_length(model, problem, long, 128) == min(128, model.max_length)


def test_the_length_leaves_room_for_the_options_of_short_texts(model: TextModel) -> None:
    problem = Problem("choice", "one", "classify", LABELS)
    length = choose_max_length(model, problem, EXAMPLES, 128)
    assert not any(sample.encoding.truncated for sample in Samples(model, problem, EXAMPLES, length).samples)


def test_an_epoch_holds_every_row_and_fills_the_last_step_up() -> None:
    order = list(GroupedByLength(np.arange(10) % 4, batch_size=4, seed=1))
    assert len(order) == 12
    assert set(order) == set(range(10))


def test_the_rows_of_a_step_have_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    order = np.array(list(GroupedByLength(lengths, batch_size=8, seed=1))).reshape(-1, 8)
    spread = lengths[order].max(1) - lengths[order].min(1)
    assert spread.mean() < 5


def test_epochs_differ_and_can_be_repeated() -> None:
    sampler = GroupedByLength([1] * 32, batch_size=8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_vectors_replace_the_rows(model: TextModel) -> None:
    problem = Problem("head", "one", "classify", LABELS)
    samples = Samples(model, problem, EXAMPLES, 64)
    samples.with_vectors(torch.eye(3))
    batch = Collator(problem)(samples.samples)
    assert set(batch) == {"labels", "vectors"}
    assert torch.equal(batch["vectors"], torch.eye(3))
