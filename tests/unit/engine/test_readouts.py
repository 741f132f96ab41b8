"""Readouts: means of many rows in one kernel, as on a GPU, rows with different readouts in one batch, shared ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Cls, Labels, Mean, Pooled, Readout, TokenScores
from service.engine.engine import Engine
from service.engine.readouts import means_at_once, means_in_turn, shared_readout
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import mean_rows

ADJACENT = ((0, 1), (1, 18), (18, 512))
WITH_GAPS = ((3, 5), (100, 400), (401, 402))
ONE = ((7, 12),)


def random(num_tokens: int = 512) -> torch.Tensor:
    return 1 + torch.randn(num_tokens, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spans", [ADJACENT, WITH_GAPS, ONE])
def test_means_at_once_equal_means_in_turn(spans: tuple[tuple[int, int], ...], dtype: torch.dtype) -> None:
    hidden = random().to(dtype)
    at_once = means_at_once(hidden, spans)
    assert at_once.dtype == torch.float32
    exact = torch.stack([hidden[start:end].double().mean(0) for start, end in spans])
    torch.testing.assert_close(at_once.double(), exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(at_once, means_in_turn(hidden, spans), atol=1e-6, rtol=0)


def test_the_mean_of_a_span_does_not_depend_on_the_other_spans() -> None:
    hidden = random()
    hidden[18:] = torch.nan
    together = means_at_once(hidden, ADJACENT)
    assert torch.equal(together[:2], torch.cat([means_at_once(hidden, (span,)) for span in ADJACENT[:2]]))
    assert together[2].isnan().all()


def test_rows_with_different_token_scores_share_a_batch(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path, num_layers=1), "test"), precision="float32")
    readouts = [TokenScores((0, 1), (5,)), TokenScores((1,), (6, 7)), TokenScores((0,), (5,)), TokenScores((), (5,))]
    rows = [replace(row, readout=readout) for row, readout in zip(mean_rows((9, 4, 9, 3)), readouts, strict=True)]
    together = engine.run(rows)
    assert [output.scores.shape for output in together] == [(2, 1), (1, 2), (1, 1), (0, 1)]
    for row, output in zip(rows, together, strict=True):
        np.testing.assert_allclose(output.scores, engine.run([row])[0].scores, atol=2e-5, rtol=0)


SAME, OTHER = TokenScores((0, 1), (5, 6)), TokenScores((0,), (6, 5))


@pytest.mark.parametrize(
    ("readouts", "shared"),
    [
        ([Labels()], Labels()),
        ([Labels(), Labels()], Labels()),
        ([SAME, TokenScores((), (5, 6))], SAME),
        ([SAME, OTHER], None),
        ([SAME, Labels()], None),
        ([Labels(), SAME], None),
        ([Cls()], None),
        ([Mean()], Mean()),
        ([Mean(), Mean()], None),
        ([Pooled(("mean",), num_skipped=1)], Mean()),
        ([Pooled(("mean",), is_projected=True)], None),
        ([Pooled(("mean", "max"))], None),
        ([Labels(), Cls()], None),
    ],
)
def test_a_readout_is_shared_where_the_batch_is_read_at_once(readouts: list[Readout], shared: Readout | None) -> None:
    rows = mean_rows((4,) * len(readouts))
    assert shared_readout([replace(row, readout=each) for row, each in zip(rows, readouts, strict=True)]) == shared
