"""The parity tests of tests/unit/engine on a GPU. The reference runs on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import (
    Cls,
    Encoding,
    Labels,
    Mean,
    Output,
    Pooled,
    PoolingMode,
    Quantization,
    Spans,
    TokenScores,
    TopTokens,
)
from service.engine.attention import BACKENDS, AttentionConfig
from service.engine.device import check_capability
from service.engine.engine import Engine
from service.errors import SettingError
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import DenseOf, make_embedding_model
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


def backends(dtype: torch.dtype) -> list[str]:
    if not torch.cuda.is_available():
        return list(BACKENDS)
    place = AttentionConfig(torch.device("cuda"), dtype, num_heads=2, head_size=256)
    return [name for name, backend in BACKENDS.items() if backend.runs_on(place)]


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """Disables TF32. monkeypatch cannot restore this attribute: it is computed, and undoing would delete it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def load(path: Path, precision: str = "float32", backend: str = "auto") -> Engine:
    return Engine.load(describe(path, "test"), device="cuda", precision=precision, backend=backend)


def large_heads(folder: Path) -> Path:
    """Heads of 256, as in the 1.3B models."""
    return make_checkpoint(folder, hidden_size=512, num_heads=2, init_std=0.03)


def have_cosine_above(outputs: Sequence[Output], wanted: Sequence[np.ndarray], least: float = 0.999) -> bool:
    pairs = [(output.scores[0], each) for output, each in zip(outputs, wanted, strict=True)]
    return all(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > least for a, b in pairs)


def mean_states(path: Path, rows: Sequence[Encoding]) -> list[np.ndarray]:
    hidden = reference(load_reference(path, "megatron-bert", "masked-lm"), rows).hidden
    return [hidden[index, : row.num_tokens].mean(0).numpy() for index, row in enumerate(rows)]


@pytest.mark.parametrize("backend", backends(torch.float32))
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_matches_the_reference(tmp_path: Path, family: str, backend: str) -> None:
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
def test_label_logits_match_the_reference(tmp_path: Path, family: str) -> None:
    path = make_checkpoint(tmp_path, family=family, kind="sequence-classification", num_labels=3)
    wanted = reference(load_reference(path, family, "sequence-classification"), mean_rows()).logits
    outputs = load(path).run([replace(row, readout=Labels()) for row in mean_rows()])
    assert max_difference(outputs, [each[None] for each in wanted]) < TOLERANCE


def test_every_pooling_and_the_dense_layers_match_the_cpu(tmp_path: Path) -> None:
    modes: tuple[PoolingMode, ...] = get_args(PoolingMode)
    path = make_embedding_model(tmp_path, pooling=modes, dense=[DenseOf(24), DenseOf(8, use_residual=True)])
    rows = [
        replace(row, readout=Pooled(modes, num_skipped=index % row.num_tokens, is_projected=index % 2 == 0))
        for index, row in enumerate(mean_rows())
    ]
    engine = load(path)
    engine.warm_up()
    wanted = Engine.load(describe(path, "test"), precision="float32").run(rows)
    # The root of the number of tokens makes values of up to 20.
    assert max_difference(engine.run(rows), [torch.from_numpy(output.scores) for output in wanted]) < 20 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_span_logits_match_the_reference(tmp_path: Path, family: str) -> None:
    path = make_checkpoint(tmp_path, family=family, kind="question-answering")
    wanted = reference(load_reference(path, family, "question-answering"), mean_rows()).logits
    outputs = load(path).run([replace(row, readout=Spans()) for row in mean_rows()])
    assert max_difference(outputs, [each[:, :length] for each, length in zip(wanted, LENGTHS, strict=True)]) < TOLERANCE


@pytest.mark.parametrize("is_warm", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("backend", backends(torch.float32))
@pytest.mark.parametrize("options", [(3, 3), (2, 9, 4, 1), (5,) * 15])
def test_choice_rows_match_the_reference_with_a_dense_mask(
    tmp_path: Path, options: Sequence[int], backend: str, is_warm: bool
) -> None:
    path = make_checkpoint(tmp_path)
    row = choice_row(options, 60)
    assert isinstance(row.readout, TokenScores)
    logits = reference(load_reference(path, "megatron-bert", "masked-lm"), [row], dense_mask(row)).logits[0]
    wanted = logits[list(row.readout.positions)][:, list(row.readout.token_ids)]
    engine = load(path, backend=backend)
    if is_warm:
        engine.warm_up()
    outputs = engine.run([plain_row(50, Mean()), row, plain_row(3, TopTokens((1,), 4))])
    assert max_difference(outputs[1:2], [wanted]) < TOLERANCE


@pytest.mark.parametrize("backend", backends(torch.bfloat16))
def test_auto_precision_is_bfloat16_and_embeddings_have_a_cosine_near_one(tmp_path: Path, backend: str) -> None:
    path = large_heads(tmp_path)
    engine = load(path, "auto", backend)
    assert engine.precision == ("bfloat16" if torch.cuda.is_bf16_supported(False) else "float32")
    choices = [choice_row((3, 5), 30), choice_row((30,) * 4, 391), choice_row((3, 5), 30, seed=1)]
    outputs = engine.run([*mean_rows(), *(replace(row, readout=Mean()) for row in choices)])
    assert have_cosine_above(outputs[: len(LENGTHS)], mean_states(path, mean_rows()))
    model = load_reference(path, "megatron-bert", "masked-lm")
    for row, output in zip(choices, outputs[len(LENGTHS) :], strict=True):
        hidden = reference(model, [row], dense_mask(row)).hidden
        assert have_cosine_above([output], [hidden[0].mean(0).numpy()])


def test_the_fastest_backend_is_chosen_and_cudnn_disabled(tmp_path: Path) -> None:
    assert load(large_heads(tmp_path), "bfloat16").backend in BACKENDS
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_outputs_are_equal_with_and_without_cuda_graphs(tmp_path: Path) -> None:
    engine = load(large_heads(tmp_path))
    before = [engine.run([row]) for row in mean_rows()]
    engine.warm_up()
    for row, wanted in zip(mean_rows() * 2, before * 2, strict=True):
        assert np.abs(engine.run([row])[0].scores - wanted[0].scores).max() < TOLERANCE
    together = engine.run(mean_rows())
    for ours, wanted in zip(together, before, strict=True):
        assert np.abs(ours.scores - wanted[0].scores).max() < TOLERANCE


@pytest.mark.parametrize("backend", ["flex", "varlen+flex"])
def test_graphs_of_many_tokens_compute_what_the_kernels_do(tmp_path: Path, backend: str) -> None:
    engine = load(large_heads(tmp_path), "bfloat16", backend)
    choices = [replace(choice_row((30,) * 4, 250, seed=seed), readout=Mean()) for seed in range(3)]
    batches = [mean_rows([100, 200, 300, 400]), choices, [*mean_rows([300, 50]), *choices], mean_rows([9] * 200)]
    before = [[output.scores[0] for output in engine.run(batch)] for batch in batches]
    engine.warm_up()
    graphs = [check for check in engine.checks if check.kind == "graph"]
    assert [check.reason for check in graphs if not check.is_sound] == []
    attentions = {check.name.partition(" ")[0] for check in graphs}
    assert attentions == {"dense", "flex"} | ({"varlen"} if backend == "varlen+flex" else set())
    for batch, wanted in zip(batches, before, strict=True):
        assert have_cosine_above(engine.run(batch), wanted)


def test_batches_prepared_ahead_keep_their_outputs(tmp_path: Path) -> None:
    engine = load(large_heads(tmp_path), "bfloat16")
    engine.warm_up()
    batches = [[row] for row in mean_rows()] + [mean_rows()]
    wanted = [engine.run(batch) for batch in batches]
    finishes = [engine.prepare(batch) for batch in batches]
    for finish, outputs in zip(finishes, wanted, strict=True):
        for ours, each in zip(finish(), outputs, strict=True):
            assert np.array_equal(ours.scores, each.scores)


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
@pytest.mark.parametrize("is_warm", [False, True], ids=["eager", "graphs"])
def test_embeddings_of_quantised_maps_have_a_cosine_near_one(
    tmp_path: Path, quantization: Quantization, is_warm: bool
) -> None:
    try:
        check_capability(quantization, torch.device("cuda", 0))
    except SettingError as error:
        pytest.skip(error.detail)
    path = large_heads(tmp_path)
    engine = Engine.load(describe(path, "test"), device="cuda", precision="bfloat16", quantization=quantization)
    if is_warm:
        engine.warm_up()
    outputs = [engine.run([row])[0] for row in mean_rows()]
    assert have_cosine_above(outputs, mean_states(path, mean_rows()), least=0.99)
    assert have_cosine_above(engine.run(mean_rows()), mean_states(path, mean_rows()), least=0.99)
