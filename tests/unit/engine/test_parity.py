"""Parity with transformers' own classes: within 2e-5 in float32, for single rows and mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification, XLMRobertaModel

from service.checkpoints.checkpoint import describe
from service.domain import Cls, Encoding, Labels, Mean, Output, Runtime, Spans, TokenScores, TopTokens
from service.engine.attention import BACKENDS, AttentionConfig
from service.engine.engine import Engine
from service.engine.packing import pack
from tests.checkpoints import Family, FileFormat, Kind, make_checkpoint
from tests.unit.engine.rows import (
    LENGTHS,
    VOCAB_SIZE,
    Reference,
    choice_row,
    dense_mask,
    load_reference,
    max_difference,
    mean_rows,
    plain_row,
    reference,
)

TOLERANCE = 2e-5
FAMILIES = ("megatron-bert", "bert", "xlm-roberta")
KINDS = ("masked-lm", "sequence-classification")
CONFIG = AttentionConfig(torch.device("cpu"), torch.float32, num_heads=4, head_size=16)
ONNX: Runtime = "onnxruntime"
"""In place of a backend: it has an attention of its own."""
CPU_BACKENDS = [*(name for name, backend in BACKENDS.items() if backend.runs_on(CONFIG)), ONNX]


@dataclass(frozen=True)
class Pair:
    engine: Engine
    model: torch.nn.Module
    path: Path


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Pair]:
    """Builds an engine and its reference; the reference of a checkpoint is built once."""
    models: dict[tuple[str, str], tuple[Path, torch.nn.Module]] = {}

    def make(family: str, kind: str, backend: str) -> Pair:
        if (family, kind) not in models:
            path = make_checkpoint(tmp_path_factory.mktemp("parity"), family=family, kind=kind, num_labels=3)
            models[family, kind] = path, load_reference(path, family, kind)
        path, model = models[family, kind]
        chosen: dict[str, Any] = {"runtime": ONNX} if backend == ONNX else {"backend": backend}
        engine = Engine.load(describe(path, "test"), precision="float32", **chosen)
        assert engine.backend == backend
        return Pair(engine, model, path)

    return make


@pytest.fixture(scope="module", params=[(f, b) for f in FAMILIES for b in CPU_BACKENDS], ids="-".join)
def masked_lm(request: pytest.FixtureRequest, make_pair: Callable[[str, str, str], Pair]) -> Pair:
    family, backend = request.param
    return make_pair(family, "masked-lm", backend)


@pytest.fixture(scope="module", params=[(f, b) for f in FAMILIES for b in CPU_BACKENDS], ids="-".join)
def classifier(request: pytest.FixtureRequest, make_pair: Callable[[str, str, str], Pair]) -> Pair:
    family, backend = request.param
    return make_pair(family, "sequence-classification", backend)


@pytest.fixture(scope="module", params=[(f, b) for f in FAMILIES for b in CPU_BACKENDS], ids="-".join)
def question_answering(request: pytest.FixtureRequest, make_pair: Callable[[str, str, str], Pair]) -> Pair:
    family, backend = request.param
    return make_pair(family, "question-answering", backend)


@pytest.fixture(scope="module")
def references() -> dict[Path, Reference]:
    return {}


def padded(pair: Pair, references: dict[Path, Reference]) -> Reference:
    """The reference for mean_rows(), computed once per checkpoint."""
    if pair.path not in references:
        references[pair.path] = reference(pair.model, mean_rows())
    return references[pair.path]


def with_readout(readout: object, rows: Sequence[Encoding]) -> list[Encoding]:
    return [replace(row, readout=readout) for row in rows]


def one_by_one(engine: Engine, rows: Sequence[Encoding]) -> list[Output]:
    return [output for row in rows for output in engine.run([row])]


def test_hidden_states_of_every_token_match_the_reference(masked_lm: Pair, references: dict[Path, Reference]) -> None:
    rows = mean_rows()
    wanted = padded(masked_lm, references).hidden
    packed = pack(rows, torch.device("cpu"))
    hidden = masked_lm.engine.hidden_states(packed)
    for index, row in enumerate(packed.rows):
        ours = hidden[packed.offsets[index] : packed.offsets[index + 1]]
        assert (ours - wanted[row, : LENGTHS[row]]).abs().max() < TOLERANCE


@pytest.mark.parametrize("run", [Engine.run, one_by_one], ids=["mixed", "alone"])
def test_cls_and_mean_match_the_reference(
    masked_lm: Pair, references: dict[Path, Reference], run: Callable[[Engine, list[Encoding]], list[Output]]
) -> None:
    hidden = padded(masked_lm, references).hidden
    means = [hidden[row, :length].mean(0, keepdim=True) for row, length in enumerate(LENGTHS)]
    assert max_difference(run(masked_lm.engine, mean_rows()), means) < TOLERANCE
    firsts = [hidden[row, :1] for row in range(len(LENGTHS))]
    assert max_difference(run(masked_lm.engine, with_readout(Cls(), mean_rows())), firsts) < TOLERANCE


@pytest.mark.parametrize("run", [Engine.run, one_by_one], ids=["mixed", "alone"])
def test_label_logits_match_the_reference(
    classifier: Pair, references: dict[Path, Reference], run: Callable[[Engine, list[Encoding]], list[Output]]
) -> None:
    logits = padded(classifier, references).logits
    outputs = run(classifier.engine, with_readout(Labels(), mean_rows()))
    assert max_difference(outputs, [logits[row][None] for row in range(len(LENGTHS))]) < TOLERANCE


@pytest.mark.parametrize("run", [Engine.run, one_by_one], ids=["mixed", "alone"])
def test_span_logits_match_the_reference(
    question_answering: Pair,
    references: dict[Path, Reference],
    run: Callable[[Engine, list[Encoding]], list[Output]],
) -> None:
    logits = padded(question_answering, references).logits
    outputs = run(question_answering.engine, with_readout(Spans(), mean_rows()))
    assert max_difference(outputs, [logits[row, :, :length] for row, length in enumerate(LENGTHS)]) < TOLERANCE


@pytest.mark.parametrize("run", [Engine.run, one_by_one], ids=["mixed", "alone"])
def test_masked_lm_logits_match_the_reference(
    masked_lm: Pair, references: dict[Path, Reference], run: Callable[[Engine, list[Encoding]], list[Output]]
) -> None:
    logits = padded(masked_lm, references).logits
    token_ids = (7, 0, VOCAB_SIZE - 1, 7)
    positions = [(0, length - 1, length // 2) for length in LENGTHS]
    rows = [
        replace(row, readout=TokenScores(where, token_ids)) for row, where in zip(mean_rows(), positions, strict=True)
    ]
    wanted = [logits[row][list(where)][:, list(token_ids)] for row, where in enumerate(positions)]
    assert max_difference(run(masked_lm.engine, rows), wanted) < TOLERANCE


def test_logits_of_the_whole_vocabulary_match_the_reference(masked_lm: Pair, references: dict[Path, Reference]) -> None:
    row = replace(mean_rows()[4], readout=TokenScores(tuple(range(17)), tuple(range(VOCAB_SIZE))))
    wanted = padded(masked_lm, references).logits[4, :17]
    assert max_difference(masked_lm.engine.run([row]), [wanted]) < TOLERANCE


def test_top_tokens_match_the_reference(masked_lm: Pair, references: dict[Path, Reference]) -> None:
    rows = [replace(row, readout=TopTokens((0, 16), k)) for row, k in zip(mean_rows()[3:6], (1, 5, 9), strict=True)]
    best = padded(masked_lm, references).logits[3:6, [0, 16]].softmax(-1).topk(9)
    outputs = masked_lm.engine.run(rows)
    wanted = [best.values[index, :, :k] for index, k in enumerate((1, 5, 9))]
    assert max_difference(outputs, wanted) < TOLERANCE
    for index, output in enumerate(outputs):
        assert output.ids is not None
        assert output.ids.dtype == np.int32
        assert output.ids.tolist() == best.indices[index, :, : output.ids.shape[1]].tolist()


@pytest.mark.parametrize(
    ("options", "rest"), [((3, 3), 5), ((2, 9, 4, 1), 40), ((7,), 3), ((5,) * 15, 120), ((30,) * 4, 391)]
)
def test_choice_rows_match_the_reference_with_a_dense_mask(
    masked_lm: Pair, options: tuple[int, ...], rest: int
) -> None:
    row = choice_row(options, rest)
    wanted = reference(masked_lm.model, [row], dense_mask(row)).logits[0]
    assert isinstance(row.readout, TokenScores)
    scores = wanted[list(row.readout.positions)][:, list(row.readout.token_ids)]
    batch = [plain_row(50, Mean()), row, choice_row((4, 4), 20), plain_row(row.num_tokens, Cls())]
    assert max_difference(masked_lm.engine.run([row]), [scores]) < TOLERANCE
    assert max_difference(masked_lm.engine.run(batch)[1:2], [scores]) < TOLERANCE


def test_options_do_not_attend_to_each_other(masked_lm: Pair) -> None:
    """[CLS] is made a block too: it attends to every option, and would pass information from one to another."""
    row = choice_row((4, 4, 4), 0)
    changed = replace(row, ids=row.ids.copy())
    changed.ids[6:9] = (row.ids[6:9] + 7) % VOCAB_SIZE
    blocks_only = [replace(each, blocks=((0, 1), *each.blocks)) for each in (row, changed)]
    before, after = (output.scores for output in masked_lm.engine.run(blocks_only))
    assert np.abs(before[[0, 2]] - after[[0, 2]]).max() < TOLERANCE
    assert np.abs(before[1] - after[1]).max() > 100 * TOLERANCE


def test_outputs_do_not_depend_on_the_batch_or_its_order(masked_lm: Pair) -> None:
    rows = [*mean_rows(), choice_row((3, 5), 30), choice_row((3, 5), 30, seed=1), choice_row((2, 2, 2), 60)]
    rows[2:4] = with_readout(TopTokens((0,), 4), rows[2:4])
    rows[5] = replace(rows[5], readout=Cls())
    together = masked_lm.engine.run(rows)
    backwards = masked_lm.engine.run(rows[::-1])[::-1]
    for alone, first, second in zip(one_by_one(masked_lm.engine, rows), together, backwards, strict=True):
        assert np.abs(alone.scores - first.scores).max() < TOLERANCE
        assert np.abs(alone.scores - second.scores).max() < TOLERANCE
        assert np.array_equal(alone.ids, first.ids) if alone.ids is not None else first.ids is None


@pytest.mark.parametrize(
    ("family", "activation"),
    [(family, activation) for family in ("megatron-bert", "bert") for activation in ("gelu", "gelu_new")],
)
def test_both_activations_match_the_reference_in_both_families(tmp_path: Path, family: str, activation: str) -> None:
    path = make_checkpoint(tmp_path, family=family, activation=activation, num_layers=2, init_std=0.3)
    row = plain_row(20, TokenScores((3,), (1, 2, 3)))
    wanted = reference(load_reference(path, family, "masked-lm"), [row]).logits[0, [3], 1:4]
    outputs = Engine.load(describe(path, "test"), precision="float32").run([row])
    assert max_difference(outputs, [wanted]) < 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_head_size_256_matches_the_reference(tmp_path: Path, family: str) -> None:
    """256 is the head size of the 1.3B models and the largest that common kernels support."""
    path = make_checkpoint(tmp_path, family=family, hidden_size=512, num_heads=2, num_layers=2, init_std=0.03)
    rows = [plain_row(40, Cls()), plain_row(129, Cls())]
    wanted = reference(load_reference(path, family, "masked-lm"), rows).hidden
    outputs = Engine.load(describe(path, "test"), precision="float32").run(rows)
    assert max_difference(outputs, [wanted[0, :1], wanted[1, :1]]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_bfloat16_have_a_cosine_near_one(tmp_path: Path, family: str) -> None:
    path = make_checkpoint(tmp_path, family=family, hidden_size=128, num_layers=4)
    model = load_reference(path, family, "masked-lm")
    engine = Engine.load(describe(path, "test"), precision="bfloat16")
    assert engine.weights.words.dtype == torch.bfloat16
    hidden = reference(model, mean_rows()).hidden
    for row, output in enumerate(engine.run(mean_rows())):
        wanted = hidden[row, : LENGTHS[row]].mean(0)
        assert torch.cosine_similarity(torch.from_numpy(output.scores[0]), wanted, dim=0) > 0.999
    choice = choice_row((3, 5), 30)
    scores = reference(model, [choice], dense_mask(choice)).logits[0, [1, 4], 5]
    assert np.abs(engine.run([choice])[0].scores[:, 0] - scores.numpy()).max() < 0.05 * float(scores.abs().max()) + 0.05


@pytest.mark.parametrize(("family", "kind"), [("bert", "masked-lm"), ("xlm-roberta", "masked-lm")])
def test_a_model_of_one_segment_matches_the_reference(tmp_path: Path, family: Family, kind: Kind) -> None:
    path = make_checkpoint(tmp_path, family=family, kind=kind, num_segments=1, num_layers=2)
    rows = [replace(row, segment_ids=np.zeros_like(row.segment_ids)) for row in mean_rows((1, 40, 512))]
    hidden = reference(load_reference(path, family, kind), rows).hidden
    outputs = Engine.load(describe(path, "test"), precision="float32").run(rows)
    wanted = [hidden[index, : row.num_tokens].mean(0, keepdim=True) for index, row in enumerate(rows)]
    assert max_difference(outputs, wanted) < TOLERANCE


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("kind", ["encoder", "masked-lm", "sequence-classification"])
def test_xlm_roberta_numbers_positions_as_the_reference(tmp_path: Path, kind: Kind, file_format: FileFormat) -> None:
    """The reference gets ids alone: it counts positions from `pad_token_id` + 1 itself. One segment, as in XLM-R."""
    path = make_checkpoint(
        tmp_path,
        family="xlm-roberta",
        kind=kind,
        num_segments=1,
        max_positions=64,
        num_labels=3,
        file_format=file_format,
    )
    random = np.random.default_rng(3)
    ids = random.integers(2, VOCAB_SIZE, 64, dtype=np.int32)
    row = Encoding("test", ids, np.zeros(64, np.int32), np.arange(64, dtype=np.int32), Mean())
    classes = {
        "encoder": XLMRobertaModel,
        "masked-lm": XLMRobertaForMaskedLM,
        "sequence-classification": XLMRobertaForSequenceClassification,
    }
    with torch.no_grad():
        out = classes[kind].from_pretrained(path).eval()(torch.from_numpy(ids[None]).long(), output_hidden_states=True)
    engine = Engine.load(describe(path, "test"), precision="float32")
    assert (engine.shape.max_positions, engine.shape.first_position) == (64, 2)
    assert max_difference(engine.run([row]), [out.hidden_states[-1][0].mean(0, keepdim=True)]) < TOLERANCE
    if kind == "masked-lm":
        scores = replace(row, readout=TokenScores(tuple(range(64)), tuple(range(VOCAB_SIZE))))
        assert max_difference(engine.run([scores]), [out.logits[0]]) < TOLERANCE
    elif kind == "sequence-classification":
        assert max_difference(engine.run([replace(row, readout=Labels())]), [out.logits]) < TOLERANCE
