"""Selected tokens: the last layer computes those that are read, and the outputs are as if it computed all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Cls, Encoding, Labels, Mean, Pooled, Readout, Spans, TokenScores, TopTokens
from service.engine.arithmetic import of_torch
from service.engine.attention_backends import prepare_sdpa
from service.engine.encoder import encode
from service.engine.linear import Plain
from service.engine.onnx_encoder import OnnxEncoder
from service.engine.ops import Gelu
from service.engine.packing import bucket, pack
from service.engine.self_test import CPU
from service.engine.weights import WeightFormat, read_weights
from tests.checkpoints import make_checkpoint
from tests.support.fake_gpu import GPU, fake_gpu, pretend_cuda
from tests.unit.engine.rows import choice_row, plain_row

SELECTED: list[tuple[Readout, list[int]]] = [
    (Cls(), [0]),
    (Labels(), [0]),
    (Mean(), [0, 1, 2, 3, 4]),
    (Spans(), [0, 1, 2, 3, 4]),
    (TokenScores((3, 1, 3), (5,)), [3, 1, 3]),
    (TopTokens((2,), 4), [2]),
    (Pooled(("cls",), 1), [1]),
    (Pooled(("lasttoken",), 1), [4]),
    (Pooled(("mean",), 2), [2, 3, 4]),
    (Pooled(("cls", "lasttoken")), [0, 1, 2, 3, 4]),
]
"""Of a row of 5 tokens."""

NOTHING = plain_row(4, TokenScores((), (5,)))

ROWS = [
    *(plain_row(length, readout) for length, readout in ((5, Cls()), (9, Mean()), (30, TopTokens((3, 29), 2)))),
    choice_row((2, 3), 9),
    choice_row((4, 4, 2), 30),
]

BATCHES = [ROWS, ROWS[:1], ROWS[-1:], [*ROWS, ROWS[1], NOTHING], [NOTHING], [NOTHING] * 2]


@pytest.mark.parametrize(("readout", "tokens"), SELECTED)
def test_a_readout_selects_what_it_reads(readout: Readout, tokens: list[int]) -> None:
    packed = pack([plain_row(3, Cls()), plain_row(5, readout)], CPU)
    assert packed.selected is not None
    assert packed.selected.tolist() == [0, *(3 + token for token in tokens)]
    assert packed.spans == ((0, 1), (1, 1 + len(tokens)))


def test_rows_that_are_read_whole_select_nothing() -> None:
    packed = pack([plain_row(3, Mean()), plain_row(5, Pooled(("max",)))], CPU)
    assert packed.selected is None
    assert packed.spans == ((0, 3), (3, 8))


def test_on_a_gpu_their_number_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, capability=(9, 0))
    with fake_gpu():
        packed = pack(ROWS, GPU)
    assert packed.selected is not None
    assert len(packed.selected) == bucket(packed.spans[-1][1]) > packed.spans[-1][1]


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
@pytest.mark.parametrize("rows", BATCHES, ids=len)
def test_the_states_are_those_of_a_whole_last_layer(tmp_path: Path, family: str, rows: list[Encoding]) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, family=family, num_layers=2), "test")
    weights, _ = read_weights(checkpoint, WeightFormat(CPU, torch.float32, Plain), lambda done, total: None)
    packed = pack(rows, CPU)
    assert packed.selected is not None
    attend = prepare_sdpa(packed.layout, CPU, torch.float32)
    with torch.inference_mode():
        whole = encode(weights, checkpoint.shape, packed.tokens, attend)
        by_torch = encode(weights, checkpoint.shape, packed.tokens, attend, packed.selected)
    by_onnx = OnnxEncoder(weights, checkpoint.shape, 1)(packed.tokens, packed.layout, packed.selected)
    for states in (by_torch, by_onnx):
        torch.testing.assert_close(states, whole[packed.selected], atol=1e-5, rtol=0)


class Counting(Plain):
    """Notes the numbers of tokens that it is called with."""

    def __init__(self, known: Plain, seen: list[int]) -> None:
        super().__init__(known.weight, known.bias)
        object.__setattr__(self, "seen", seen)

    def gelu(self, hidden: torch.Tensor, approximate: Gelu) -> torch.Tensor:
        self.seen.append(len(hidden))  # type: ignore[attr-defined]
        return super().gelu(hidden, approximate)


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_the_last_layer_computes_no_other_token(tmp_path: Path, family: str) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, family=family, num_layers=3), "test")
    weights, _ = read_weights(checkpoint, WeightFormat(CPU, torch.float32, Plain), lambda done, total: None)
    seen: list[int] = []
    counting = tuple(replace(layer, ffn_in=Counting(layer.ffn_in, seen)) for layer in weights.layers)  # type: ignore[arg-type]
    packed = pack(ROWS, CPU)
    assert packed.selected is not None
    compute = of_torch(CPU, "float32", "none").bind(replace(weights, layers=counting), checkpoint.shape, prepare_sdpa)
    with torch.inference_mode():
        compute(packed.tokens, packed.layout, packed.selected)
    assert seen == [packed.layout.num_tokens, packed.layout.num_tokens, len(packed.selected)]
