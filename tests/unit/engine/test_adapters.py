"""Adapters are merged into their base when it is loaded: W + scale B A, heads and biases, with the weight cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.checkpoints.adapter import BASE_KEY
from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.spec import parse_spec
from service.domain import Labels, Mean, TokenScores
from service.engine.adapters import numbers_of_base
from service.engine.engine import Engine
from service.engine.weights import open_tensors
from service.errors import CheckpointError
from tests.adapters import PREFIX, edit_tensors, make_adapter
from tests.checkpoints import Family, make_checkpoint, write_weights
from tests.unit.engine.rows import plain_row

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["megatron-bert", "bert"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("adapters") / "base", request.param)


def make_base(path: Path, family: Family = "bert", **changes: Any) -> Path:
    return make_checkpoint(path, family=family, num_layers=2, hidden_size=16, num_heads=2, **changes)


def found(text: Path | str) -> Checkpoint:
    return resolve(parse_spec(str(text)), offline=True)


def refused(text: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        Engine.load(found(text), precision="float32")
    return caught.value.detail


def merge_by_hand(base: Path, adapter: Path, scale: float) -> Tensors:
    """The tensors of the adapted model, from the formula."""
    merged, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name, b in parts.items():
        module, _, part = name.removeprefix(PREFIX).partition(".lora_B.")
        if part == "weight":
            a = parts[f"{PREFIX}{module}.lora_A.weight"]
            merged[f"{module}.weight"] = merged[f"{module}.weight"].float() + scale * (b @ a)
        elif part == "bias":
            merged[f"{module}.bias"] = merged[f"{module}.bias"].float() + scale * b
    return merged


def copy_with(base: Path, target: Path, tensors: Tensors) -> Path:
    target.mkdir()
    for name in ("config.json", "vocab.txt"):
        (target / name).write_bytes((base / name).read_bytes())
    write_weights(target, tensors, "safetensors")
    return target


def answers(checkpoint: Checkpoint, **settings: Any) -> np.ndarray:
    engine = Engine.load(checkpoint, precision="float32", **settings)
    rows = [plain_row(9, Mean()), plain_row(7, Labels() if checkpoint.head else TokenScores((0, 3), (5, 6)))]
    return np.concatenate([output.scores.ravel() for output in engine.run(rows)])


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_merged_adapter_answers_as_the_formula_says(base: Path, tmp_path: Path, with_bias: bool) -> None:
    adapter = make_adapter(tmp_path / "news", base, with_bias=with_bias)
    whole = copy_with(base, tmp_path / "whole", merge_by_hand(base, adapter, 3.0))
    assert np.array_equal(answers(found(adapter)), answers(found(whole)))
    assert not np.allclose(answers(found(adapter)), answers(found(base)), atol=0.01)


def test_a_half_precision_base_is_merged_in_float32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.float16)
    adapter = make_adapter(tmp_path / "news", base)
    whole = copy_with(base, tmp_path / "whole", merge_by_hand(base, adapter, 3.0))
    assert np.array_equal(answers(found(adapter)), answers(found(whole)))


def test_a_saved_head_takes_the_place_of_that_of_the_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind="sequence-classification")
    head = {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.arange(3.0)}
    adapter = make_adapter(tmp_path / "news", base, whole=head, task_type="SEQ_CLS")
    with open_tensors(found(adapter)) as files:
        assert torch.equal(files.find("classifier.weight").load(), head["classifier.weight"])
    assert answers(found(adapter)).size == 16 + 3


def test_saved_biases_and_norms_are_used(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    query = "bert.encoder.layer.0.attention.self.query"
    whole = {
        f"{query}.base_layer.bias": torch.ones(16),
        "bert.embeddings.LayerNorm.bias": torch.full((16,), 2.0),
        "bert.pooler.modules_to_save.dense.bias": torch.full((16,), 3.0),
        "bert.pooler.original_module.dense.bias": torch.full((16,), 4.0),
    }
    adapter = make_adapter(tmp_path / "news", base, targets=("query",), whole=whole)
    with open_tensors(found(adapter)) as files:
        read = [files.find(name).load()[0].item() for name in _plain(query)]
    assert read == [1, 2, 3]


def _plain(query: str) -> tuple[str, ...]:
    return f"{query.removeprefix('bert.')}.bias", "embeddings.LayerNorm.bias", "pooler.dense.bias"


def test_an_adapted_embedding_is_added_transposed(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind="encoder")
    rows = len(load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"])
    a, b = torch.randn(2, rows), torch.randn(16, 2)
    whole = {
        "embeddings.word_embeddings.lora_embedding_A": a,
        "embeddings.word_embeddings.lora_embedding_B": b,
    }
    adapter = make_adapter(tmp_path / "news", base, targets=(), whole=whole, target_modules=["word_embeddings"])
    with open_tensors(found(base)) as files:
        words = files.find("embeddings.word_embeddings.weight").load()
    with open_tensors(found(adapter)) as files:
        merged = files.find("embeddings.word_embeddings.weight").load()
    torch.testing.assert_close(merged, words + 3 * (b @ a).T)


def test_words_that_are_the_decoder_too_cannot_be_adapted(base: Path, tmp_path: Path) -> None:
    rows = len(load_file(base / "model.safetensors")["bert.embeddings.word_embeddings.weight"])
    whole = {"bert.embeddings.word_embeddings.weight": torch.zeros(rows, 16)}
    assert "as word embedding and as decoder" in refused(make_adapter(tmp_path / "news", base, whole=whole))


def test_a_new_layer_that_was_not_saved_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    head = {"classifier.weight": torch.ones(2, 16), "classifier.bias": torch.zeros(2)}
    message = refused(make_adapter(tmp_path / "news", base, whole=head, task_type="SEQ_CLS"))
    assert "pooler.dense.weight is neither here nor in the base" in message
    assert "train again with 'pooler' in modules_to_save" in message


def test_a_base_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "news", base)
    other = make_checkpoint(tmp_path / "other", num_layers=2, hidden_size=32, num_heads=2)
    message = refused(f"{adapter}+base={other}")
    assert "and that of the base has [32, 32]" in message
    assert f"{other} is not its base" in message


def test_a_module_that_the_base_does_not_have_is_named(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "news", base)
    more = {
        "bert__encoder__layer__9__attention__self__query__lora_A__weight": torch.zeros(2, 16),
        "bert__encoder__layer__9__attention__self__query__lora_B__weight": torch.zeros(16, 2),
    }
    message = refused(edit_tensors(adapter, **more))
    assert "it changes encoder.layer.9.attention.self.query.weight, which the base does not have" in message


def test_a_base_with_other_numbers_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "news", base)
    with open_tensors(found(base)) as files:
        numbers = numbers_of_base(files, 2)
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | {BASE_KEY: numbers}
    (adapter / "config.json").write_text(json.dumps(config), encoding="utf-8")
    half = {name: tensor.half() for name, tensor in load_file(base / "model.safetensors").items()}
    answers(found(f"{adapter}+base={copy_with(base, tmp_path / 'half', half)}"))
    moved = {name: tensor + 0.01 for name, tensor in load_file(base / "model.safetensors").items()}
    message = refused(f"{adapter}+base={copy_with(base, tmp_path / 'moved', moved)}")
    assert "of the base has other numbers than in the training" in message


def test_an_adapter_that_holds_nan_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "news", base)
    name = "bert__encoder__layer__0__attention__self__query__lora_B__weight"
    assert "holds NaN or infinity" in refused(edit_tensors(adapter, **{name: torch.full((16, 2), torch.nan)}))


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """The weights of pickles are cached, also of small models."""
    return make_base(tmp_path / "pickled", file_format="bin")


def adapt_pickled(pickled: Path, path: Path, **changes: Any) -> Path:
    twin = make_base(path.parent / "twin")  # the same tensors, in the format that `make_adapter` reads
    return make_adapter(path, twin, base_model_name_or_path=str(pickled), **changes)


def test_merged_weights_are_cached_apart_from_those_of_the_base(pickled: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    adapter = adapt_pickled(pickled, tmp_path / "news")
    plain = answers(found(pickled), weight_cache=cache)
    fresh = answers(found(adapter), weight_cache=cache)
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert np.array_equal(answers(found(adapter), weight_cache=cache), fresh)
    assert not np.allclose(plain, fresh, atol=0.01)
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_a_changed_adapter_is_converted_again(pickled: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = answers(found(adapt_pickled(pickled, tmp_path / "news")), weight_cache=cache)
    second = answers(found(adapt_pickled(pickled, tmp_path / "news", lora_alpha=12)), weight_cache=cache)
    assert len(list(cache.glob("*.safetensors"))) == 1
    assert not np.allclose(first, second, atol=0.01)
