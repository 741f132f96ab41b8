"""Adapters: what adapter_config.json and the header of the file say, their base, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.checkpoints import hub
from service.checkpoints.adapter import read_adapter
from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.spec import ModelSpec, parse_spec
from service.errors import CheckpointError, SettingError
from tests.adapters import edit_tensors, make_adapter
from tests.checkpoints import make_checkpoint

QUERY = "bert__encoder__layer__0__attention__self__query"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("adapter") / "base", num_layers=2, hidden_size=16, num_heads=2)


@pytest.fixture
def adapt(base: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        return make_adapter(tmp_path / "news", base, **changes)

    return make


def found(text: Path | str) -> Checkpoint:
    return resolve(parse_spec(str(text)), offline=True)


def refused(text: Path | str) -> str:
    with pytest.raises((CheckpointError, SettingError)) as caught:
        found(text)
    return caught.value.detail


def head(num_classes: int) -> dict[str, torch.Tensor]:
    weight = torch.zeros(num_classes, 16)
    return {"classifier.weight": weight, "classifier.bias": torch.zeros(num_classes)}


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("runs/a+base=mini", ModelSpec("a", "runs/a", None, "mini")),
        ("n=org/a@v1+base=org/b@v2", ModelSpec("n", "org/a", "v1", "org/b@v2")),
        ("n=/a+base=/models/b=c", ModelSpec("n", "/a", None, "/models/b=c")),
    ],
)
def test_a_spec_names_the_base_of_an_adapter(text: str, spec: ModelSpec) -> None:
    assert parse_spec(text) == spec


def test_a_spec_with_an_empty_base_is_refused() -> None:
    with pytest.raises(SettingError, match=r"wanted a folder or a hub id after \+base="):
        parse_spec("runs/a+base=")


def test_a_folder_whose_name_contains_base_is_found(tmp_path: Path) -> None:
    (tmp_path / "a+base=b").mkdir()
    assert parse_spec(f"x={tmp_path}/a+base=b").base is None


def test_an_adapter_is_described_with_the_weights_of_its_base(base: Path, adapt: Callable[..., Path]) -> None:
    folder = adapt()
    checkpoint = found(folder)
    assert (checkpoint.name, checkpoint.path, checkpoint.folder, checkpoint.own_folder) == (
        "news",
        base,
        folder,
        folder,
    )
    assert (checkpoint.kind, checkpoint.family) == ("masked-lm", "megatron-bert")
    assert checkpoint.adapter is not None
    assert len(checkpoint.adapter.updates) == 12
    assert checkpoint.origin == str(folder)


def test_the_scale_follows_rank_alpha_and_their_patterns(adapt: Callable[..., Path]) -> None:
    ranks, alphas = {"layer.1.attention.self.query": 4}, {r"bert.encoder.layer.\d.attention.self.key": 5}
    for root, rooted in ((False, float), (True, math.sqrt)):
        adapter = read_adapter(adapt(ranks=ranks, alpha_pattern=alphas, use_rslora=root))
        scales = {update.module: update.scale for update in adapter.updates}
        assert scales["encoder.layer.0.attention.self.query"] == 6 / rooted(2)
        assert scales["encoder.layer.1.attention.self.query"] == 6 / rooted(4)
        assert scales["encoder.layer.0.attention.self.key"] == 5 / rooted(2)


def test_the_head_of_an_adapter_decides_kind_and_classes(adapt: Callable[..., Path]) -> None:
    checkpoint = found(adapt(whole=head(3), task_type="SEQ_CLS"))
    assert checkpoint.kind == "sequence-classification"
    assert checkpoint.head is not None
    assert (checkpoint.head.num_classes, checkpoint.labels) == (3, ())
    without_task = found(adapt(whole=head(3)))
    assert without_task.kind == "sequence-classification"


def test_labels_come_from_the_setting_or_from_config_json_beside_the_adapter(
    base: Path, adapt: Callable[..., Path]
) -> None:
    folder = adapt(whole=head(2))
    assert resolve(parse_spec(str(folder)), labels=("坏", "好")).labels == ("坏", "好")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["MegatronBertForSequenceClassification"], "id2label": {"0": "体育", "1": "财经"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert found(folder).labels == ("体育", "财经")


def test_a_config_of_another_shape_is_of_another_base(base: Path, adapt: Callable[..., Path]) -> None:
    folder = adapt()
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 99}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "vocab_size is 99" in refused(folder)
    assert "the adapter is of another base" in refused(folder)


def test_the_spec_names_another_base_than_the_adapter(base: Path, adapt: Callable[..., Path]) -> None:
    folder = adapt(base_model_name_or_path="/home/trainer/base")
    assert found(f"{folder}+base={base}").path == base


def test_a_base_known_by_the_path_of_the_trainer_names_the_line_to_type(adapt: Callable[..., Path]) -> None:
    folder = adapt(base_model_name_or_path="/home/trainer/base")
    message = refused(folder)
    assert "base_model_name_or_path is '/home/trainer/base'" in message
    assert f"--model news={folder}+base=SOURCE" in message


@pytest.mark.parametrize("path", ["C:\\models\\base", "./runs/base", "runs/base/last", "~/base"])
def test_paths_of_any_form_are_no_hub_ids(adapt: Callable[..., Path], path: str) -> None:
    assert "a folder of this machine" in refused(adapt(base_model_name_or_path=path))


def test_an_adapter_without_the_name_of_its_base_is_refused(adapt: Callable[..., Path]) -> None:
    assert "base_model_name_or_path is missing; wanted name the base" in refused(adapt(base_model_name_or_path=None))


def test_the_revision_of_a_hub_base_is_fetched(
    base: Path, adapt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str | None]] = []

    def fetch(repo: str, revision: str | None, **_: Any) -> Path:
        fetched.append((repo, revision))
        return base

    monkeypatch.setattr(hub, "fetch", fetch)
    found(adapt(base_model_name_or_path="org/base", revision="v3"))
    assert fetched == [("org/base", "v3")]


def test_a_hub_base_that_cannot_be_had_says_which_adapter_wants_it(
    adapt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, **__: Any) -> Path:
        raise CheckpointError("org/base: no local directory, not in the cache")

    monkeypatch.setattr(hub, "fetch", fetch)
    folder = adapt(base_model_name_or_path="org/base")
    message = refused(folder)
    assert message.startswith(f"the base of the adapter {folder}: org/base: no local directory")
    assert "+base=SOURCE" in message


def test_the_included_model_is_a_base_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = found("mini=" + str(Path(hub.__file__).parents[1] / "models" / "mini")).path
    folder = make_adapter(tmp_path / "news", shipped, base_model_name_or_path="mini")
    assert found(folder).path == shipped


def test_an_adapter_of_an_adapter_is_refused(adapt: Callable[..., Path], tmp_path: Path, base: Path) -> None:
    other = make_adapter(tmp_path / "other", base)
    assert "is itself an adapter; merge it first" in refused(f"{adapt()}+base={other}")


def test_a_base_of_a_whole_model_is_refused(base: Path) -> None:
    assert "is no adapter; leave out +base=mini" in refused(f"{base}+base=mini")


def test_a_folder_with_an_adapter_and_a_whole_model_is_refused(base: Path, adapt: Callable[..., Path]) -> None:
    folder = adapt()
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert "an adapter and a whole model; remove one" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; wanted LORA"),
        ({"use_dora": True}, "use_dora is 'True'; wanted plain LoRA"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is '[1]'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM'; wanted SEQ_CLS"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; wanted a number"),
        ({"r": 3}, "has rank 2 and 2; wanted 3"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern is '('; wanted regular expressions"),
        ({"target_modules": ["q_proj"]}, "target_modules is 'q_proj'; wanted modules of the base"),
        (
            {"targets": ("query",), "target_modules": ["query", "key"]},
            "has no tensors of encoder.layer.0.attention.self",
        ),
        ({"targets": ("key",), "target_modules": r".*\.layer\.1\..*query"}, "encoder.layer.1.attention.self.query (1 "),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_key_and_its_value(
    adapt: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    assert words in refused(adapt(**changes))


def test_a_target_that_is_saved_whole_is_accepted(adapt: Callable[..., Path]) -> None:
    assert found(adapt(whole=head(2), targets=("query",), target_modules=["query", "classifier"])).adapter is not None


def test_a_pattern_of_targets_that_fits_is_accepted(adapt: Callable[..., Path]) -> None:
    pattern = r".*encoder\.layer\.\d+\..*\.(query|value)"
    assert found(adapt(targets=("query", "value"), target_modules=pattern)).adapter is not None


def test_a_tensor_without_its_other_half_is_refused(adapt: Callable[..., Path]) -> None:
    folder = edit_tensors(adapt(), **{f"{QUERY}__lora_B__weight": None})
    assert "has no lora_B of bert.encoder.layer.0.attention.self.query; the file is not whole" in refused(folder)


def test_tensors_of_other_methods_are_refused(adapt: Callable[..., Path]) -> None:
    folder = edit_tensors(adapt(), **{f"{QUERY}__lora_magnitude_vector": torch.zeros(2)})
    assert "is not one of plain LoRA" in refused(folder)


def test_a_missing_file_of_the_adapter_is_named(adapt: Callable[..., Path]) -> None:
    folder = adapt()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refused(folder)
    assert "adapter_model.safetensors: no such file" in message
    assert "safe_serialization=True" in message


def test_a_damaged_file_of_the_adapter_is_named(adapt: Callable[..., Path]) -> None:
    folder = adapt()
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    assert "not a safetensors file" in refused(folder)
