"""Adapters as peft makes them, and as `finetune --lora` does: served as peft's own merge computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from service.checkpoints.checkpoint import resolve
from service.checkpoints.files import canonical_name
from service.checkpoints.spec import parse_spec
from service.domain import Labels
from service.engine.engine import Engine
from service.engine.weights import open_tensors
from tests.checkpoints import Family, make_checkpoint
from tests.unit.engine.rows import plain_row

peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.system, pytest.mark.slow]


def make_base(path: Path, family: Family = "bert", kind: Any = "sequence-classification") -> Path:
    return make_checkpoint(path, family=family, kind=kind, num_layers=2, hidden_size=16, num_heads=2)


def tensors_of(text: str) -> dict[str, torch.Tensor]:
    with open_tensors(resolve(parse_spec(text))) as files:
        return {name: files.find(name).load() for name in files.names()}


def assert_equals_merge_of_peft(base: Path, adapter: Path, load: Any = AutoModelForSequenceClassification) -> None:
    model = peft.PeftModel.from_pretrained(load.from_pretrained(base, dtype=torch.float32), adapter)
    ours = tensors_of(str(adapter))
    theirs = {canonical_name(name): tensor for name, tensor in model.merge_and_unload().state_dict().items()}
    compared = theirs.keys() & ours.keys()
    assert {"encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"} <= compared
    for name in compared:
        torch.testing.assert_close(ours[name], theirs[name].float(), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["bert", "megatron-bert", "xlm-roberta"])
@pytest.mark.parametrize(
    "config",
    [
        {"bias": "lora_only"},
        {"bias": "all", "use_rslora": True},
        {"lora_bias": True},
        {"target_modules": ["query", "word_embeddings"], "rank_pattern": {"query": 2}, "alpha_pattern": {"y": 3}},
        {"fan_in_fan_out": True, "init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear"},
    ],
    ids=[
        "biases of the layers",
        "all biases, rslora",
        "lora_bias",
        "embeddings, patterns",
        "fan_in_fan_out",
        "all-linear",
    ],
)
def test_a_merged_adapter_equals_merge_and_unload(tmp_path: Path, family: Family, config: dict[str, Any]) -> None:
    base, adapter = make_base(tmp_path / "base", family), tmp_path / "adapter"
    settings = {"target_modules": ["query", "dense"], "r": 4, "lora_alpha": 16, "task_type": "SEQ_CLS"} | config
    model = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), peft.LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(adapter)
    assert_equals_merge_of_peft(base, adapter)


def finetune(*flags: str | Path) -> None:
    command = [sys.executable, "-m", "service", "finetune", *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("form", ["head", "choice"])
def test_a_saved_adapter_of_finetune_answers_as_the_merged_model(tmp_path: Path, form: str) -> None:
    base = make_base(tmp_path / "base", "megatron-bert", "masked-lm")
    rows = [
        f"{'天气很好' if index % 2 else '天气不好'}第{index}天,{'好评' if index % 2 else '差评'}" for index in range(40)
    ]
    (tmp_path / "reviews.csv").write_text("\n".join(["评论,情感", *rows]) + "\n", encoding="utf-8")
    flags = ("--text", "评论", "--label", "情感", "--model", base, "--form", form, "--lora", "4", "--max-steps", "4")
    flags += ("--lr", "1e-2", "--batch-size", "8", "--precision", "float32")
    finetune(tmp_path / "reviews.csv", *flags, "--output", tmp_path / "adapter", "--save-adapter")
    finetune(tmp_path / "reviews.csv", *flags, "--output", tmp_path / "merged")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert_equals_merge_of_peft(
        base, tmp_path / "adapter", AutoModelForSequenceClassification if form == "head" else AutoModelForMaskedLM
    )
    adapted, merged = (resolve(parse_spec(str(tmp_path / name))) for name in ("adapter", "merged"))
    assert (adapted.kind, adapted.labels, adapted.choice) == (merged.kind, merged.labels, merged.choice)
    one, two = tensors_of(str(tmp_path / "adapter")), tensors_of(str(tmp_path / "merged"))
    moved = "encoder.layer.1.output.dense.weight"
    torch.testing.assert_close(one[moved], two[moved], atol=1e-3, rtol=1e-2)  # the merged one is in half precision
    assert not torch.allclose(one[moved], tensors_of(str(base))[moved], atol=1e-3)
    if form == "head":
        row = [plain_row(9, Labels())]
        scores = [Engine.load(each, precision="float32").run(row)[0].scores for each in (adapted, merged)]
        np.testing.assert_allclose(scores[0], scores[1], atol=0.02)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base
    )
