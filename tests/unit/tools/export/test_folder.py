"""A model as a folder: an adapter merged, other tensors left out, and the rest of its files with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from service.checkpoints.adapter import BASE_KEY
from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.folders import locate_shipped
from service.checkpoints.spec import parse_spec
from service.domain import Labels, Pooled
from service.engine.engine import Engine
from service.errors import SettingError
from service.tools.export.folder import export_folder
from tests.adapters import make_adapter
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import make_embedding_model
from tests.unit.engine.rows import plain_row

SMALL: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}


def found(text: Path | str) -> Checkpoint:
    return resolve(parse_spec(str(text)), offline=True)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """An adapter of a masked LM that was trained as a classifier."""
    base = make_checkpoint(tmp_path / "base", **SMALL)
    whole = {
        "bert.pooler.dense.weight": torch.randn(16, 16),
        "bert.pooler.dense.bias": torch.randn(16),
        "classifier.weight": torch.randn(3, 16),
        "classifier.bias": torch.randn(3),
    }
    adapter = make_adapter(tmp_path / "news", base, whole=whole, task_type="SEQ_CLS")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {
        "architectures": ["MegatronBertForSequenceClassification"],
        "id2label": {"0": "体育", "1": "财经", "2": "科技"},
        BASE_KEY: {},
    }
    (adapter / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (adapter / "README.md").write_text("# news\n", encoding="utf-8")
    (adapter / "tokenizer_config.json").write_text('{"model_max_length": 64}', encoding="utf-8")
    return adapter


def test_a_merged_adapter_answers_as_the_adapter(classifier: Path, tmp_path: Path) -> None:
    export_folder(found(classifier), tmp_path / "out", precision="float32", overwrite=False)
    row = [plain_row(9, Labels())]
    one, two = (Engine.load(found(path), precision="float32").run(row) for path in (classifier, tmp_path / "out"))
    assert np.array_equal(one[0].scores, two[0].scores)
    assert found(tmp_path / "out").labels == ("体育", "财经", "科技")


def test_a_merged_adapter_is_what_transformers_loads(classifier: Path, tmp_path: Path) -> None:
    export_folder(found(classifier), tmp_path / "out", precision="float32", overwrite=False)
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["architectures"], config["dtype"]) == (["MegatronBertForSequenceClassification"], "float32")
    assert BASE_KEY not in config


def test_the_files_of_the_adapter_count_before_those_of_its_base(classifier: Path, tmp_path: Path) -> None:
    export_folder(found(classifier), tmp_path / "out", precision="float16", overwrite=False)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
    assert "64" in (tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_an_adapted_choice_model_stays_one(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", **SMALL)
    export_folder(found(make_adapter(tmp_path / "news", base)), tmp_path / "out", precision="float16", overwrite=False)
    assert found(tmp_path / "out").kind == "masked-lm"
    Engine.load(found(tmp_path / "out"), precision="float32")


@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
def test_the_modules_of_an_embedding_model_go_with_it(tmp_path: Path, subfolder: str) -> None:
    folder = make_embedding_model(tmp_path / "made", pooling=("cls",), subfolder=subfolder)
    export_folder(found(folder), tmp_path / "out", precision="float32", overwrite=False)
    assert found(tmp_path / "out").embedding == found(folder).embedding


@pytest.mark.slow
def test_packed_weights_are_written_as_numbers(tmp_path: Path) -> None:
    shipped = locate_shipped("e5-small")
    export_folder(found(shipped), tmp_path / "out", precision="float32", overwrite=False)
    row = [plain_row(9, Pooled(("mean",)))]
    one, two = (Engine.load(found(path), precision="float32").run(row) for path in (shipped, tmp_path / "out"))
    assert np.array_equal(one[0].scores, two[0].scores)


def test_a_folder_with_files_is_not_written_into(classifier: Path) -> None:
    with pytest.raises(SettingError, match="is not empty; choose another folder, or replace with --overwrite"):
        export_folder(found(classifier), classifier, precision="float16", overwrite=False)


def test_nothing_is_left_of_an_export_that_fails(classifier: Path, tmp_path: Path) -> None:
    broken = found(classifier)
    (classifier / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(Exception, match="not a safetensors file"):
        export_folder(broken, tmp_path / "out", precision="float16", overwrite=False)
    assert list((tmp_path / "out").iterdir()) == []
