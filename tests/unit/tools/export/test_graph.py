"""The graph that becomes ONNX computes, over padded rows, what the engine computes over packed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import Checkpoint, describe, resolve
from service.checkpoints.spec import parse_spec
from service.domain import PoolingMode
from service.errors import SettingError
from service.tools.export.graph import inputs_of
from service.tools.export.onnx_file import (
    build_graph,
    feed,
    find_yes_no,
    largest_difference,
    rows_to_compare,
    run_engine,
)
from tests.adapters import make_adapter
from tests.checkpoints import Family, Kind, make_checkpoint
from tests.sentence_folders import DenseOf, make_embedding_model

PROMPTS = {"prompts": {"query": "问："}, "default_prompt_name": "query"}
SMALL: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_heads": 2}


def difference(checkpoint: Checkpoint) -> float:
    yes_no = find_yes_no(checkpoint)
    rows = rows_to_compare(checkpoint, yes_no)
    inputs = {name: torch.from_numpy(array) for name, array in feed(rows, inputs_of(checkpoint)).items()}
    with torch.no_grad():
        found = build_graph(checkpoint, yes_no)(**inputs).numpy()
    return largest_difference(checkpoint, rows, found, run_engine(checkpoint, rows))


@pytest.mark.parametrize("family", ["megatron-bert", "bert", "xlm-roberta"])
@pytest.mark.parametrize("kind", ["sequence-classification", "question-answering", "encoder"])
def test_the_graph_of_every_kind_equals_the_engine(tmp_path: Path, family: Family, kind: Kind) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, family=family, kind=kind, num_labels=3, **SMALL), "test")
    assert difference(checkpoint) < 1e-5


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_the_graph_of_a_choice_model_equals_the_engine(tmp_path: Path, family: Family) -> None:
    assert difference(describe(make_checkpoint(tmp_path, family=family, **SMALL), "test")) < 1e-5


def test_an_embedding_model_that_leaves_out_its_prompt_is_refused(tmp_path: Path) -> None:
    checkpoint = describe(
        make_embedding_model(tmp_path, pooling=("mean",), include_prompt=False, settings=PROMPTS), "test"
    )
    with pytest.raises(SettingError, match="leaves the tokens of a prompt out"):
        find_yes_no(checkpoint)


@pytest.mark.parametrize(
    "pooling", [("cls", "max"), ("mean",), ("mean_sqrt_len_tokens",), ("weightedmean",), ("lasttoken",)], ids="-".join
)
def test_the_graph_of_an_embedding_model_pools_as_the_engine(tmp_path: Path, pooling: tuple[PoolingMode, ...]) -> None:
    dense = [DenseOf(8), DenseOf(8, use_residual=True)]
    checkpoint = describe(make_embedding_model(tmp_path, pooling=pooling, dense=dense, normalize=True), "test")
    assert difference(checkpoint) < 1e-5


def test_the_graph_of_an_adapter_is_that_of_the_merged_model(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", **SMALL)
    adapter = resolve(parse_spec(str(make_adapter(tmp_path / "news", base))))
    assert difference(adapter) < 1e-5


def test_padding_and_options_become_inputs(tmp_path: Path) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, **SMALL), "test")
    rows = rows_to_compare(checkpoint, (5, 6))
    arrays = feed(rows, inputs_of(checkpoint))
    assert arrays["attention_mask"].sum(1).tolist() == [9, 5, 12]
    assert arrays["block_ids"][1].tolist() == [0, 0, 1, 1, 2, *[0] * 7]
    assert arrays["position_ids"][0, :6].tolist() == [0, 1, 2, 3, 2, 3]
    assert arrays["option_positions"].tolist() == [[2, 4]] * 3
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_a_masked_lm_without_yes_and_no_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **SMALL)
    text = (folder / "vocab.txt").read_text(encoding="utf-8").replace("是\n", "甲乙\n")
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match="lacks 是 or 非; wanted a choice model"):
        find_yes_no(describe(folder, "test"))
