"""The engine: shapes of outputs, rows that are refused, packing, precision, and the canary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Cls, Encoding, Labels, Mean, Spans, TokenScores, TopTokens
from service.engine import packing
from service.engine.attention_backends import block_mask, make_groups
from service.engine.device import resolve_precision
from service.engine.engine import Engine
from service.engine.packing import pack
from service.errors import InferenceFailed
from service.replicas.canary import Canary
from tests.checkpoints import Kind, make_checkpoint
from tests.unit.engine.rows import VOCAB_SIZE, choice_row, dense_mask, plain_row

CPU = torch.device("cpu")
ROW = plain_row(10, Mean())


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = make_checkpoint(tmp_path_factory.mktemp("engine"), num_layers=1, max_positions=64)
    return Engine.load(describe(path, "test"), precision="float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = make_checkpoint(tmp_path_factory.mktemp("engine"), num_layers=1, kind="encoder")
    return Engine.load(describe(path, "test"), precision="float32")


def changed(field: str, index: int, value: int) -> Encoding:
    values = getattr(ROW, field).copy()
    values[index] = value
    return replace(ROW, **{field: values})


def test_run_of_no_rows_returns_no_outputs(masked_lm: Engine) -> None:
    assert masked_lm.run([]) == []


def test_warm_up_runs_for_every_kind_of_model(masked_lm: Engine, encoder: Engine, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("sequence-classification", "question-answering")
    paths = [make_checkpoint(tmp_path / kind, kind=kind, num_layers=1) for kind in kinds]
    for engine in (masked_lm, encoder, *(Engine.load(describe(path, "test")) for path in paths)):
        engine.warm_up()


def test_outputs_have_the_documented_shapes_and_types(masked_lm: Engine) -> None:
    readouts = [
        Cls(),
        Mean(),
        TokenScores((1, 2), (3, 4, 5)),
        TokenScores((), (3,)),
        TopTokens((1,), 4),
        TopTokens((), 2),
    ]
    outputs = masked_lm.run([replace(ROW, readout=readout) for readout in readouts])
    assert [output.scores.shape for output in outputs] == [(1, 64), (1, 64), (2, 3), (0, 1), (1, 4), (0, 2)]
    assert {output.scores.dtype for output in outputs} == {np.dtype(np.float32)}
    assert [None if output.ids is None else output.ids.shape for output in outputs[4:]] == [(1, 4), (0, 2)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (plain_row(65, Mean()), "a row of 65 tokens; wanted 1 to 64"),
        (plain_row(0, Mean()), "a row of 0 tokens"),
        (changed("ids", 3, VOCAB_SIZE), f"a token id of {VOCAB_SIZE}; wanted 0 to {VOCAB_SIZE - 1}"),
        (changed("ids", 3, -1), "a token id of -1"),
        (changed("segment_ids", 0, 2), "a segment id of 2"),
        (changed("positions", 9, 64), "a position of 64"),
        (replace(ROW, positions=ROW.positions[1:]), "differ in length"),
        (replace(ROW, blocks=((1, 5), (4, 6))), "blocks overlap"),
        (replace(ROW, blocks=((8, 11),)), "blocks overlap"),
        (replace(ROW, readout=Labels()), "no sequence-classification head"),
        (replace(ROW, readout=Spans()), "no question-answering head"),
        (replace(ROW, readout=TokenScores((10,), (1,))), "outside of its row of 10"),
        (replace(ROW, readout=TokenScores((1,), (VOCAB_SIZE,))), "outside of the vocabulary"),
        (replace(ROW, readout=TopTokens((1,), 0)), "the 0 best tokens"),
        (replace(ROW, readout=TopTokens((-1,), 1)), "outside of its row"),
    ],
)
def test_an_invalid_row_raises_an_error_that_names_its_fault(masked_lm: Engine, row: Encoding, words: str) -> None:
    with pytest.raises(InferenceFailed, match=words):
        masked_lm.run([ROW, row])


def test_a_masked_lm_readout_without_the_head_is_refused(encoder: Engine) -> None:
    with pytest.raises(InferenceFailed, match="no masked-LM head"):
        encoder.run([replace(ROW, readout=TopTokens((1,), 1))])


def test_readouts_of_many_positions_do_not_depend_on_the_chunk_size(
    masked_lm: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(ROW, readout=TopTokens(tuple(range(10)), 3)), replace(ROW, readout=TopTokens((4,), 5))]
    whole = masked_lm.run(rows)
    monkeypatch.setattr("service.engine.readouts._MAX_POSITIONS", 3)
    monkeypatch.setattr("service.engine.readouts._MAX_TOKENS", 100)
    for before, after in zip(whole, masked_lm.run(rows), strict=True):
        assert np.array_equal(before.ids, after.ids)
        assert np.allclose(before.scores, after.scores, atol=1e-6)


def test_span_logits_do_not_depend_on_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path, kind="question-answering", num_layers=1), "test"))
    rows = [plain_row(10, Spans()), plain_row(7, Mean()), plain_row(4, Spans())]
    whole = engine.run(rows)
    monkeypatch.setattr("service.engine.readouts._MAX_TOKENS", 3)
    for before, after, shape in zip(whole, engine.run(rows), ((2, 10), (1, 64), (2, 4)), strict=True):
        assert before.scores.shape == shape
        assert np.allclose(before.scores, after.scores, atol=1e-6)


def test_the_canary_of_a_question_answering_model_has_its_head(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path, kind="question-answering", num_layers=1), "test"))
    rows, _ = engine.canary()
    assert [row.readout for row in rows] == [Cls(), Spans()]
    assert [output.scores.shape for output in engine.run(rows)] == [(1, 64), (2, 4)]


def test_pack_groups_rows_of_equal_length() -> None:
    rows = [plain_row(5, Mean()), choice_row((2, 2), 3), plain_row(2, Mean()), plain_row(5, Mean(), seed=1)]
    packed = pack(rows, CPU)
    assert packed.rows == (2, 0, 3, 1)
    assert packed.offsets == (0, 2, 7, 12, 20)
    assert packed.tokens[0, :20].tolist() == [int(each) for row in packed.rows for each in rows[row].ids]
    assert packed.tokens[0, 20:].tolist() == [0, 0, 0, 0], "padded to the next bucket"
    groups = make_groups(packed.layout, CPU, torch.float32)
    assert [(group.start, group.num_rows, group.length) for group in groups] == [(0, 1, 2), (2, 2, 5), (12, 1, 8)]
    assert [group.mask is None for group in groups] == [True, True, False]


def test_batches_of_wide_models_are_not_padded_on_a_cpu(masked_lm: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(masked_lm.shape, hidden_size=2048)
    assert [packing.needs_padding(wide, torch.device(each)) for each in ("cpu", "cuda")] == [False, True]
    assert packing.needs_padding(replace(wide, hidden_size=1024), CPU)

    rows = [plain_row(5, Mean()), choice_row((2, 4), 3), plain_row(2, Mean())]
    padded = masked_lm.run(rows)
    seen: list[int] = []
    compute = masked_lm.hidden_states

    def observe(packed: packing.Packed) -> torch.Tensor:
        seen.append(packed.layout.num_tokens)
        return compute(packed)

    monkeypatch.setattr(packing, "LARGE_HIDDEN_SIZE", masked_lm.shape.hidden_size)
    monkeypatch.setattr(masked_lm, "hidden_states", observe)
    exact = masked_lm.run(rows)
    assert seen == [sum(row.num_tokens for row in rows)]
    for one, other in zip(padded, exact, strict=True):
        assert np.allclose(one.scores, other.scores, atol=1e-5)


def test_rows_share_a_group_only_with_equal_blocks() -> None:
    rows = [choice_row((2, 4), 3), choice_row((4, 2), 3), choice_row((2, 4), 3, seed=1), choice_row((6,), 3)]
    packed = pack(rows, CPU)
    groups = make_groups(packed.layout, CPU, torch.float32)
    assert packed.rows == (3, 0, 2, 1), "a single block masks nothing: plain rows come first"
    assert [group.num_rows for group in groups] == [1, 2, 1]
    masks = [group.mask for group in groups]
    assert masks[0] is None
    for row, mask in zip((rows[0], rows[1]), masks[1:], strict=True):
        assert mask is not None
        assert torch.equal(mask == 0, dense_mask(row)[0, 0] == 0)


def test_a_single_block_needs_no_mask() -> None:
    assert block_mask(9, ((1, 4),), CPU, torch.float32) is None


@pytest.mark.parametrize(
    ("feature", "precision"), [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx512f", "float32")]
)
def test_auto_precision_follows_the_features_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, feature: str, precision: str
) -> None:
    monkeypatch.setattr("service.host.cpu_features", lambda: frozenset({"avx2", feature}))
    assert resolve_precision("auto", CPU) == precision


def test_prepare_checks_a_batch_and_its_result_computes_it(masked_lm: Engine) -> None:
    rows = [plain_row(length, Mean()) for length in (4, 9, 4)]
    first, second = masked_lm.prepare(rows), masked_lm.prepare(rows[:1])
    outputs = [*first(), *second()]
    for ours, wanted in zip(outputs, [*masked_lm.run(rows), *masked_lm.run(rows[:1])], strict=True):
        assert np.array_equal(ours.scores, wanted.scores)
    assert masked_lm.prepare([])() == []
    with pytest.raises(InferenceFailed, match="a token id"):
        masked_lm.prepare([changed("ids", 3, -1)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_canary_reports_a_model_whose_weights_changed(tmp_path: Path, precision: str) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), precision=precision)
    engine.warm_up()
    canary = Canary({"test": engine}, 60.0)
    assert [[encoding.readout for encoding in batch] for batch in engine.canary()] == [
        [Cls(), TopTokens((0,), 1)],
        [Mean()],
        [TokenScores((0,), (0,))],
    ]
    assert canary.wrong_model() is None
    engine.weights.words.mul_(-1)
    assert canary.wrong_model() == "test"


def test_an_engine_on_a_cpu_reports_no_device_memory(masked_lm: Engine) -> None:
    assert masked_lm.device_memory() is None
