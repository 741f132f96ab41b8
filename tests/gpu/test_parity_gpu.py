"""The parity of tests/unit/engine, on a GPU: the reference runs on the CPU in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.checkpoint import describe
from service.domain import Cls, Labels, Mean, TokenScores, TopTokens
from service.engine.attention import BACKENDS
from service.engine.engine import Engine
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import (
    LENGTHS,
    choice_row,
    dense_mask,
    load_reference,
    max_difference,
    mean_rows,
    plain_row,
    reference,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = 2e-5
FAMILIES = ("megatron-bert", "bert")
BACKEND_NAMES = [name for name, backend in BACKENDS.items() if backend.runs_on(torch.device("cuda"))]


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def load(path: Path, precision: str = "float32", backend: str = "auto") -> Engine:
    return Engine.load(describe(path, "test"), device="cuda", precision=precision, backend=backend)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_matches(tmp_path: Path, family: str, backend: str) -> None:
    path = make_checkpoint(tmp_path, family=family)
    wanted = reference(load_reference(path, family, "masked-lm"), mean_rows())
    engine = load(path, backend=backend)
    engine.warm_up()
    means = [wanted.hidden[row, :length].mean(0, keepdim=True) for row, length in enumerate(LENGTHS)]
    assert max_difference(engine.run(mean_rows()), means) < TOLERANCE
    firsts = [wanted.hidden[row, :1] for row in range(len(LENGTHS))]
    assert max_difference(engine.run([replace(row, readout=Cls()) for row in mean_rows()]), firsts) < TOLERANCE
    scored = [replace(row, readout=TokenScores((0,), (5, 6))) for row in mean_rows()]
    assert max_difference(engine.run(scored), [each[:1, 5:7] for each in wanted.logits]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_label_logits_match(tmp_path: Path, family: str) -> None:
    path = make_checkpoint(tmp_path, family=family, kind="sequence-classification", num_labels=3)
    wanted = reference(load_reference(path, family, "sequence-classification"), mean_rows()).logits
    outputs = load(path).run([replace(row, readout=Labels()) for row in mean_rows()])
    assert max_difference(outputs, [each[None] for each in wanted]) < TOLERANCE


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("options", [(3, 3), (2, 9, 4, 1), (5,) * 15])
def test_choice_rows_match_the_dense_formula(tmp_path: Path, options: Sequence[int], backend: str) -> None:
    path = make_checkpoint(tmp_path)
    row = choice_row(options, 60)
    assert isinstance(row.readout, TokenScores)
    logits = reference(load_reference(path, "megatron-bert", "masked-lm"), [row], dense_mask(row)).logits[0]
    wanted = logits[list(row.readout.positions)][:, list(row.readout.token_ids)]
    outputs = load(path, backend=backend).run([plain_row(50, Mean()), row, plain_row(3, TopTokens((1,), 4))])
    assert max_difference(outputs[1:2], [wanted]) < TOLERANCE


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_bfloat16_is_automatic_and_points_the_same_way(tmp_path: Path, backend: str) -> None:
    path = make_checkpoint(tmp_path, hidden_size=512, num_heads=2, init_std=0.03)
    engine = load(path, "auto", backend)
    assert engine.precision == ("bfloat16" if torch.cuda.is_bf16_supported(False) else "float32")
    hidden = reference(load_reference(path, "megatron-bert", "masked-lm"), mean_rows()).hidden
    for row, output in enumerate(engine.run(mean_rows())):
        wanted = hidden[row, : LENGTHS[row]].mean(0).numpy()
        ours = output.scores[0]
        assert np.dot(ours, wanted) / (np.linalg.norm(ours) * np.linalg.norm(wanted)) > 0.999
