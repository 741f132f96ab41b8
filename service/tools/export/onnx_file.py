"""Writes a model as model.onnx, beside its config and tokenizer, and compares it with the engine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import CONFIG_FILES
from service.domain import Encoding, FloatArray, Labels, Mean, Output, Pooled, Readout, Spans, TokenScores
from service.engine.engine import Engine
from service.engine.linear import Plain
from service.engine.weights import WeightFormat, read_dense, read_weights
from service.errors import CheckpointError, SettingError, StartupError
from service.host import install_command
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import NO, YES
from service.tools.export.folder import Draft, copy_companions, write_config
from service.tools.export.graph import Graph, inputs_of, output_of

ONNX_FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
LIMIT = 1e-3
"""The largest difference from the engine, of numbers of about 1; what remains is the order of sums in float32."""
EXTERNAL_BYTES = 1_800_000_000
"""A file of ONNX has at most 2 GB; larger weights lie in a file beside it."""
_LENGTHS = (9, 5, 12)
_BLOCKS = ((2, 4), (4, 5))
"""The options of the rows that are compared."""


def require_packages() -> None:
    """
    Raises:
        StartupError: a package is not installed; says how to install it.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise StartupError(f"--to onnx needs {', '.join(missing)}: {install_command('-r requirements/export.txt')}")


def export_onnx(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> float:
    """Returns the largest difference from the engine.

    Raises:
        SettingError: the folder is not free, or the model is no choice model.
        CheckpointError: the weights are damaged, or the outputs differ from those of the engine.
    """
    require_packages()
    yes_no = find_yes_no(checkpoint)
    with Draft(output, overwrite=overwrite) as draft:
        encoder = copy_companions(checkpoint, draft)
        write_config(checkpoint, encoder / CONFIG_FILES[0], "float32")
        _write(checkpoint, yes_no, encoder / ONNX_FILE)
        rows = rows_to_compare(checkpoint, yes_no)
        found = run(encoder / ONNX_FILE, rows, inputs_of(checkpoint))
        difference = largest_difference(checkpoint, rows, found, run_engine(checkpoint, rows))
        if not difference <= LIMIT:
            raise CheckpointError(
                f"{ONNX_FILE} of {checkpoint.name} differs from the engine by {difference:.2g}; wanted at most "
                f"{LIMIT}; it was not written"
            )
    return difference


def find_yes_no(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The ids of the words that a choice model answers with; None for other kinds of model.

    Raises:
        SettingError: the vocabulary of a masked LM lacks them, or the inputs of the graph could not say all.
    """
    spec = checkpoint.embedding
    if spec and spec.prompts and not spec.include_prompt:
        raise SettingError(f"--to onnx: {checkpoint.name} leaves the tokens of a prompt out of its pooling")
    if checkpoint.kind != "masked-lm":
        return None
    model = TextModel.load(checkpoint)
    if model.yes is None or model.no is None:
        raise SettingError(
            f"--to onnx: {checkpoint.name} is a masked LM whose vocabulary lacks {YES} or {NO}; wanted a choice model, "
            "a classifier, a question-answering or an embedding model"
        )
    return model.yes, model.no


def build_graph(checkpoint: Checkpoint, yes_no: tuple[int, int] | None) -> Graph:
    cpu = torch.device("cpu")
    weights, _ = read_weights(checkpoint, WeightFormat(cpu, torch.float32, Plain), lambda done, total: None)
    return Graph(checkpoint, replace(weights, dense=read_dense(checkpoint, cpu)), yes_no).eval()


def _write(checkpoint: Checkpoint, yes_no: tuple[int, int] | None, file: Path) -> None:
    names = inputs_of(checkpoint)
    # Sizes of 2 and more: a dimension of 1 in the example would stay 1.
    arrays = feed(rows_to_compare(checkpoint, yes_no), names)
    example = {name: torch.from_numpy(array) for name, array in arrays.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    batch, length, options = (torch.export.Dim(name) for name in ("batch", "length", "options"))
    shapes = {name: {0: batch, 1: options if name == "option_positions" else length} for name in names}
    is_large = 4 * checkpoint.shape.num_parameters > EXTERNAL_BYTES
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            build_graph(checkpoint, yes_no),
            (),
            kwargs=example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(names),
            output_names=[output_of(checkpoint)],
            opset_version=OPSET,
            verbose=False,
        )
        for node in program.model.graph.all_nodes():  # stacks, with the paths of this machine
            node.metadata_props.clear()
        program.save(str(file), external_data=is_large)


def feed(encodings: Sequence[Encoding], names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The inputs of the graph for rows of the engine, padded to the longest one.

    The options of a choice are the positions of its `TokenScores`.
    """
    size = (len(encodings), max(each.num_tokens for each in encodings))
    readouts = [each.readout for each in encodings]
    positions = [readout.positions if isinstance(readout, TokenScores) else (0,) for readout in readouts]
    arrays = {name: np.zeros(size, dtype=np.int64) for name in names}
    if "option_positions" in arrays:
        arrays["option_positions"] = np.zeros((len(encodings), max(map(len, positions))), dtype=np.int64)
    for row, encoding in enumerate(encodings):
        parts: dict[str, NDArray[Any]] = {
            "input_ids": encoding.ids,
            "attention_mask": np.ones(encoding.num_tokens),
            "token_type_ids": encoding.segment_ids,
            "position_ids": encoding.positions,
            "block_ids": _block_ids(encoding),
            "option_positions": np.array(positions[row]),
        }
        for name in names:
            arrays[name][row, : len(parts[name])] = parts[name]
    return arrays


def _block_ids(encoding: Encoding) -> NDArray[np.int64]:
    numbers = np.zeros(encoding.num_tokens, dtype=np.int64)
    for number, (start, end) in enumerate(encoding.blocks, 1):
        numbers[start:end] = number
    return numbers


def run_engine(checkpoint: Checkpoint, rows: Sequence[Encoding]) -> list[Output]:
    """What the engine computes for the rows in float32."""
    return Engine.load(checkpoint, precision="float32").run(rows)


def largest_difference(
    checkpoint: Checkpoint, rows: Sequence[Encoding], found: FloatArray, expected: Sequence[Output]
) -> float:
    """Between the outputs of the graph for a batch of rows and those of the engine in float32; of large numbers their
    share."""
    is_unit = checkpoint.embedding is not None and checkpoint.embedding.normalize
    worst = 0.0
    for output, row, of_engine in zip(found, rows, expected, strict=True):
        theirs = of_engine.scores / np.linalg.norm(of_engine.scores) if is_unit else of_engine.scores
        largest = max(1.0, float(np.abs(theirs).max()))
        worst = max(worst, float(np.abs(_of_row(output, row) - theirs).max()) / largest)
    return worst


def run(file: Path, rows: Sequence[Encoding], names: Sequence[str]) -> FloatArray:
    """What onnxruntime computes for the rows, in one batch."""
    runtime: Any = import_module("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed(rows, names))[0], dtype=np.float32)


def _of_row(output: FloatArray, row: Encoding) -> FloatArray:
    """The part of a batch's output that the engine returns for the row."""
    if isinstance(row.readout, TokenScores):
        return output[: len(row.readout.positions)]
    if isinstance(row.readout, Spans):
        return output[:, : row.num_tokens]
    if isinstance(row.readout, Mean):
        return np.asarray(output[: row.num_tokens].mean(0, keepdims=True))
    return output[None]


def rows_to_compare(checkpoint: Checkpoint, yes_no: tuple[int, int] | None) -> list[Encoding]:
    """Rows of several lengths, with ids spread over the vocabulary."""
    generator = np.random.default_rng(0)
    shape, rows = checkpoint.shape, []
    for size in _LENGTHS:
        length = min(size, shape.max_positions)
        ids = generator.integers(0, shape.vocab_size, length).astype(np.int32)
        segments = np.zeros(length, dtype=np.int32)
        readout = _readout(checkpoint, yes_no)
        blocks = _BLOCKS if isinstance(readout, TokenScores) else ()
        positions = np.arange(length, dtype=np.int32)
        if blocks:  # every option starts at the same position, as in UniMC
            positions[4:] -= 2
        rows.append(Encoding(checkpoint.name, ids, segments, positions, readout, blocks))
    return rows


def _readout(checkpoint: Checkpoint, yes_no: tuple[int, int] | None) -> Readout:
    if yes_no is not None:
        return TokenScores(tuple(start for start, _ in _BLOCKS), yes_no)
    if checkpoint.kind == "sequence-classification":
        return Labels()
    if checkpoint.kind == "question-answering":
        return Spans()
    spec = checkpoint.embedding
    return Pooled(spec.pooling, is_projected=bool(spec.dense)) if spec else Mean()
