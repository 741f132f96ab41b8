"""`export --to onnx`: what onnxruntime computes equals the engine, for batches and lengths that were never exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import cli
from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.spec import parse_spec
from service.domain import Encoding
from service.engine.engine import Engine
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.labels import LabelList
from service.tasks.text_model import TextModel
from service.tools.export.graph import inputs_of
from service.tools.export.onnx_file import run
from tests.adapters import make_adapter
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import make_embedding_model

pytest.importorskip("onnxscript")

pytestmark = [pytest.mark.system, pytest.mark.slow]

SMALL: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_heads": 2}
TEXTS = ("天气很好", "今天去看书，明天不去", "火")


def export(source: Path, output: Path) -> Checkpoint:
    assert cli.main(["export", str(source), "--to", "onnx", "--output", str(output)]) == 0
    return resolve(parse_spec(str(source)))


def computed(checkpoint: Checkpoint, folder: Path, rows: Sequence[Encoding]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The outputs of onnxruntime for the batch, and of the engine for each row."""
    engine = Engine.load(checkpoint, precision="float32")
    return run(folder / "model.onnx", rows, inputs_of(checkpoint)), [each.scores for each in engine.run(rows)]


def test_the_logits_of_an_adapted_classifier(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", kind="sequence-classification", num_labels=3, **SMALL)
    checkpoint = export(make_adapter(tmp_path / "news", base), tmp_path / "out")
    assert str(Path(cli.__file__).parent).encode() not in (tmp_path / "out" / "model.onnx").read_bytes()
    rows = CLASSIFY.encode(TextModel.load(checkpoint), ClassifyQuery(tuple(Text(text) for text in TEXTS)))
    for some in (rows, rows[:1]):
        ours, theirs = computed(checkpoint, tmp_path / "out", some)
        assert ours.shape == (len(some), 3)
        np.testing.assert_allclose(ours, np.concatenate(theirs), atol=1e-5)


def test_yes_and_no_of_the_options_of_a_choice(tmp_path: Path) -> None:
    checkpoint = export(make_checkpoint(tmp_path / "made", **SMALL), tmp_path / "out")
    model = TextModel.load(checkpoint)
    query = ClassifyQuery(tuple(Text(text) for text in TEXTS), labels=LabelList.of(("体育", "财经", "人工智能")))
    rows = CLASSIFY.encode(model, query)
    assert all(len(row.blocks) == 3 for row in rows)
    ours, theirs = computed(checkpoint, tmp_path / "out", rows)
    assert ours.shape == (3, 3, 2)
    np.testing.assert_allclose(ours, np.stack(theirs), atol=1e-5)


def test_the_embedding_of_a_text(tmp_path: Path) -> None:
    folder = make_embedding_model(tmp_path / "made", pooling=("mean",), normalize=True, family="bert")
    checkpoint = export(folder, tmp_path / "out")
    model = TextModel.load(checkpoint)
    rows = EMBED.encode(model, EmbedQuery(TEXTS))
    results = EMBED.decode(model, EmbedQuery(TEXTS), rows, Engine.load(checkpoint, precision="float32").run(rows))
    ours, _ = computed(checkpoint, tmp_path / "out", rows)
    np.testing.assert_allclose(ours, [result.embedding for result in results], atol=1e-5)
