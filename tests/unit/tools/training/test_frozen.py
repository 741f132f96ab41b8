"""Vectors of a frozen encoder: equal to the encoder's outputs, and computed once for all runs that share it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.tasks.text_model import TextModel
from service.tools.data.converters import Example
from service.tools.training.frozen import FrozenVectors
from service.tools.training.losses import Loss
from service.tools.training.networks import HeadNetwork, load_network
from service.tools.training.samples import Collator, Problem, Samples
from tests.checkpoints import make_checkpoint

PROBLEM = Problem("head", "one", "classify", ("好", "差"))
TEXTS = ("天气很好", "不好", "很好很好很好", "不")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("frozen") / "model")


@pytest.fixture(scope="module")
def network(folder: Path) -> HeadNetwork:
    return HeadNetwork(load_network(describe(folder, "model"), PROBLEM, dropout=0.1), Loss())


def samples(folder: Path, *texts: str) -> Samples:
    examples = [Example("classify", (text,), PROBLEM.labels, 0) for text in texts]
    return Samples(TextModel.load(describe(folder, "model")), PROBLEM, examples, 64)


def test_the_vectors_are_the_outputs_of_the_encoder(folder: Path, network: HeadNetwork) -> None:
    split = samples(folder, *TEXTS)
    batch = Collator(PROBLEM)(split.samples)
    del batch["labels"]
    with torch.inference_mode():
        outputs = network.eval().encode(**batch)
    FrozenVectors().replace_rows(network, PROBLEM, [split], folder)
    torch.testing.assert_close(Collator(PROBLEM)(split.samples)["vectors"], outputs)


def test_a_later_run_computes_only_the_rows_that_are_new_to_it(folder: Path, network: HeadNetwork) -> None:
    vectors = FrozenVectors()
    first, second = samples(folder, *TEXTS[:3]), samples(folder, *TEXTS[1:])
    vectors.replace_rows(network, PROBLEM, [first], folder)
    vectors.replace_rows(network, PROBLEM, [second], folder)
    assert vectors.num_computed == len(TEXTS)
    assert torch.equal(first.samples[1].vector, second.samples[0].vector)  # type: ignore[arg-type]


def test_a_row_of_two_splits_is_computed_once(folder: Path, network: HeadNetwork) -> None:
    vectors = FrozenVectors()
    vectors.replace_rows(network, PROBLEM, [samples(folder, *TEXTS), samples(folder, *TEXTS)], folder)
    assert vectors.num_computed == len(TEXTS)


def test_another_encoder_computes_all_rows(folder: Path, network: HeadNetwork) -> None:
    vectors = FrozenVectors()
    vectors.replace_rows(network, PROBLEM, [samples(folder, *TEXTS)], folder)
    vectors.replace_rows(network, PROBLEM, [samples(folder, *TEXTS)], folder / "other")
    assert vectors.num_computed == 2 * len(TEXTS)
