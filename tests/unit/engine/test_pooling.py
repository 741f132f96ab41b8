"""Pooling of hidden states in every mode, with tokens left out, alone and in mixed batches, and dense layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Cls, FloatArray, Mean, Pooled, PoolingMode
from service.engine.engine import Engine
from service.engine.readouts import pool
from service.errors import CheckpointError, InferenceFailed
from tests.checkpoints import make_checkpoint, write_weights
from tests.sentence_folders import DenseOf, edit_json, make_embedding_model
from tests.unit.engine.rows import mean_rows

MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
ADJACENT = ((0, 1), (1, 18), (18, 512))
WITH_GAPS = ((3, 5), (100, 400), (401, 402))
TOLERANCE = 2e-6


def random(num_tokens: int = 512) -> torch.Tensor:
    return 1 + torch.randn(num_tokens, 48, generator=torch.Generator().manual_seed(0))


def reference(states: torch.Tensor, mode: PoolingMode, skipped: int) -> torch.Tensor:
    """In double precision, from the definitions."""
    kept = states.double()[skipped:]
    places = torch.arange(skipped + 1, len(states) + 1, dtype=torch.float64)[:, None]
    return {
        "cls": kept[0],
        "max": kept.amax(0),
        "mean": kept.mean(0),
        "mean_sqrt_len_tokens": kept.sum(0) / len(kept) ** 0.5,
        "weightedmean": (kept * places).sum(0) / places.sum(),
        "lasttoken": kept[-1],
    }[mode]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("spans", "skipped"), [(ADJACENT, (0, 0, 0)), (ADJACENT, (0, 1, 10)), (WITH_GAPS, (1, 7, 0))])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_what_its_name_says(
    mode: PoolingMode, spans: tuple[tuple[int, int], ...], skipped: tuple[int, ...], dtype: torch.dtype
) -> None:
    hidden = random().to(dtype)
    pooled = pool(hidden, spans, mode, skipped)
    assert pooled.dtype == torch.float32
    rows = [hidden[start - first : end] for (start, end), first in zip(spans, skipped, strict=True)]
    wanted = [reference(row, mode, first) for row, first in zip(rows, skipped, strict=True)]
    torch.testing.assert_close(pooled.double(), torch.stack(wanted), atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_vector_of_a_span_does_not_depend_on_the_other_spans(mode: PoolingMode) -> None:
    hidden = random()
    hidden[18:] = torch.nan
    together = pool(hidden, ADJACENT, mode, (0, 2, 0))
    alone = [pool(hidden, (span,), mode, (first,)) for span, first in zip(ADJACENT[:2], (0, 2), strict=True)]
    assert torch.equal(together[:2], torch.cat(alone))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = make_embedding_model(
        tmp_path_factory.mktemp("pooling"), pooling=("cls", "max"), dense=[DenseOf(12)], normalize=True
    )
    return Engine.load(describe(path, "test"), precision="float32")


def test_rows_with_different_poolings_share_a_batch(engine: Engine) -> None:
    readouts = [
        Pooled(("mean",)),
        Mean(),
        Pooled(("cls", "max"), 1, is_projected=True),
        Pooled(("cls", "max")),
        Pooled(("cls", "max"), is_projected=True),
        Cls(),
        Pooled(("lasttoken", "mean", "weightedmean"), 2),
    ]
    rows = [replace(row, readout=each) for row, each in zip(mean_rows((9, 9, 4, 9, 3, 9, 30)), readouts, strict=True)]
    together = engine.run(rows)
    assert [output.scores.shape for output in together] == [
        (1, 16),
        (1, 16),
        (1, 12),
        (1, 32),
        (1, 12),
        (1, 16),
        (1, 48),
    ]
    for row, output in zip(rows, together, strict=True):
        np.testing.assert_allclose(output.scores, engine.run([row])[0].scores, atol=TOLERANCE, rtol=0)
    same = engine.run([replace(rows[0], readout=Pooled(("mean", "cls"))), rows[0]])
    [mean, first] = engine.run([replace(rows[0], readout=Mean()), replace(rows[0], readout=Cls())])
    np.testing.assert_allclose(same[0].scores, np.hstack([mean.scores, first.scores]), atol=TOLERANCE, rtol=0)


def test_the_canary_and_the_warm_up_compute_the_declared_pooling(engine: Engine) -> None:
    assert Pooled(("cls", "max"), is_projected=True) in [row.readout for batch in engine.canary() for row in batch]
    engine.warm_up()


@pytest.mark.parametrize(
    ("readout", "words"),
    [
        (Pooled(()), "a readout of no pooling"),
        (Pooled(("mean",), 3), "outside of its row of 3 tokens"),
        (Pooled(("mean",), -1), "outside of its row of 3 tokens"),
        (Pooled(("mean",), is_projected=True), "no dense layer for a vector of 16 numbers"),
    ],
)
def test_an_impossible_pooling_fails_the_row(engine: Engine, readout: Pooled, words: str) -> None:
    [row] = mean_rows((3,))
    with pytest.raises(InferenceFailed, match=words):
        engine.run([replace(row, readout=readout)])


def test_a_checkpoint_without_dense_layers_projects_nothing(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, num_layers=1, hidden_size=16, num_heads=2)
    engine = Engine.load(describe(path, "test"), precision="float32")
    [row] = mean_rows((3,))
    with pytest.raises(InferenceFailed, match="no dense layer"):
        engine.run([replace(row, readout=Pooled(("mean",), is_projected=True))])


def test_dense_layers_are_not_part_of_the_weight_cache(tmp_path: Path) -> None:
    """A cached file is that of the encoder; other dense layers take effect at once."""
    path = make_embedding_model(tmp_path / "made", dense=[DenseOf(4)], file_format="bin")
    [row] = [replace(each, readout=Pooled(("mean",), is_projected=True)) for each in mean_rows((5,))]

    def run() -> FloatArray:
        loaded = Engine.load(describe(path, "test"), precision="float32", weight_cache=tmp_path / "cache")
        return loaded.run([row])[0].scores

    first = run()
    assert list((tmp_path / "cache").glob("*.safetensors"))
    np.testing.assert_array_equal(run(), first)
    write_weights(path / "2_Dense", {"linear.weight": torch.zeros(4, 16), "linear.bias": torch.ones(4)}, "safetensors")
    np.testing.assert_allclose(run(), np.tanh(np.ones((1, 4))), atol=1e-7)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"linear.weight": (4, 16)}, "2_Dense: tensor linear.bias is missing from model.safetensors"),
        (
            {"linear.weight": (4, 8), "linear.bias": (4,)},
            "2_Dense/model.safetensors: tensor linear.weight has shape [4, 8]; wanted [4, 16]",
        ),
        (
            {"linear.weight": (4, 16), "linear.bias": (4,), "norm.weight": (4,)},
            "model.safetensors: tensor norm.weight has no place in the layer that",
        ),
    ],
)
def test_weights_of_a_dense_layer_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], words: str
) -> None:
    path = make_embedding_model(tmp_path, dense=[DenseOf(4)])
    write_weights(path / "2_Dense", {name: torch.zeros(shape) for name, shape in tensors.items()}, "safetensors")
    with pytest.raises(CheckpointError) as caught:
        Engine.load(describe(path, "test"), precision="float32")
    assert words in caught.value.detail


def test_a_dense_layer_without_weights_is_refused(tmp_path: Path) -> None:
    path = make_embedding_model(tmp_path, dense=[DenseOf(4)])
    (path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2_Dense: no weights here; wanted one of"):
        Engine.load(describe(path, "test"), precision="float32")


def test_a_residual_that_is_declared_needs_its_weights(tmp_path: Path) -> None:
    path = make_embedding_model(tmp_path, dense=[DenseOf(4)])
    edit_json(path / "2_Dense" / "config.json", use_residual=True)
    with pytest.raises(CheckpointError, match=r"tensor residual\.weight is missing"):
        Engine.load(describe(path, "test"), precision="float32")
