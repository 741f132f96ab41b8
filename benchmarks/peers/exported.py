"""A checkpoint as files of the runtimes: exported with `python -m service export --to onnx`, quantised by each runtime.

The files are kept, and made again when the code that writes them or the pins of the runtimes have changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT
from benchmarks.peers.processes import FOLDER, REQUIREMENTS
from benchmarks.peers.rounds import make_texts
from service.checkpoints.checkpoint import Checkpoint
from service.domain import Encoding, Pooled
from service.host import THREAD_WAITING
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.labels import NO_LABELS, LabelList
from service.tasks.text_model import TextModel
from service.tools.export.graph import inputs_of
from service.tools.export.onnx_file import feed

ENVIRONMENT = "runtimes"
RUNTIMES = ("onnxruntime", "openvino")
SERVERS = Path(__file__).parent / "servers"
LABELS = ("财经", "体育", "娱乐", "科技")
CALIBRATION_TEXTS, CALIBRATION_SEED = 64, 2
"""Other texts than those that are measured."""
MAKERS = ("service/tools/export", "service/engine/encoder.py", "benchmarks/peers/servers/runtimes.py")


def export(checkpoint: Checkpoint, source: str | Path, python: Path, lengths: str, *, has_int8: bool = True) -> Path:
    """The folder of model.onnx and its int8 files; `python` has the runtimes. RuntimeError when one cannot be made.

    Quantising needs several times the memory of the weights; without `has_int8` it is left out.
    """
    folder = (FOLDER / "onnx" / checkpoint.name).absolute()
    digest = _digest(checkpoint)
    exported, quantised = folder / "exported", folder / "quantised"
    if not _holds(exported, digest):
        print(f"{checkpoint.name}: exporting, a minute", file=sys.stderr)
        _call(sys.executable, "-m", "service", "export", source, "--to", "onnx", "--output", folder, "--overwrite")
        exported.write_text(digest)
    if has_int8 and not _holds(quantised, digest):
        print(f"{checkpoint.name}: quantising, a minute", file=sys.stderr)
        texts = make_texts(lengths, CALIBRATION_TEXTS, CALIBRATION_SEED)
        save_batches(folder / "calibration.npz", checkpoint, encode(checkpoint, texts), 1)
        for runtime in RUNTIMES:
            _call(python, SERVERS / "runtimes.py", "quantize", runtime, folder)
        quantised.write_text(digest)
    return folder


def _holds(stamp: Path, digest: str) -> bool:
    return stamp.is_file() and stamp.read_text() == digest


def encode(checkpoint: Checkpoint, texts: Sequence[str]) -> list[Encoding]:
    """The rows of the task that the model is for: an embedding, a choice between four labels, or its own labels."""
    model = TextModel.load(checkpoint)
    if spec := checkpoint.embedding:
        pooled = Pooled(spec.pooling, is_projected=bool(spec.dense))  # as the graph does, whatever the pooling is
        return [replace(row, readout=pooled) for row in EMBED.encode(model, EmbedQuery(tuple(texts)))]
    labels = LabelList.of(LABELS) if checkpoint.kind == "masked-lm" else NO_LABELS
    return CLASSIFY.encode(model, ClassifyQuery(tuple(map(Text, texts)), labels))


def save_batches(file: Path, checkpoint: Checkpoint, rows: Sequence[Encoding], batch_rows: int) -> None:
    """What `read_batches` of the runtimes reads: the padded inputs of the graph."""
    arrays: dict[str, Any] = {}
    for number, start in enumerate(range(0, len(rows), batch_rows)):
        inputs = feed(rows[start : start + batch_rows], inputs_of(checkpoint))
        arrays |= {f"{number}/{name}": array for name, array in inputs.items()}
    np.savez(file, **arrays)


def _digest(checkpoint: Checkpoint) -> str:
    """Of the code and pins behind the files, and of the size and time of the weights."""
    found = hashlib.sha256((REQUIREMENTS / f"{ENVIRONMENT}.txt").read_bytes())
    for path in map(ROOT.joinpath, MAKERS):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.read_bytes())
    for file in sorted(checkpoint.path.iterdir()):
        found.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return found.hexdigest()


def _call(*command: str | Path) -> None:
    environment = {**THREAD_WAITING, **os.environ}
    if (status := subprocess.run(list(map(str, command)), env=environment, stdout=sys.stderr).returncode) != 0:
        raise RuntimeError(f"{' '.join(map(str, command[1:5]))} ends with {status}")
