"""Heads: the number of classes, the problem type, the activation and the labels of a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from service.checkpoints.checkpoint import Checkpoint, describe
from service.checkpoints.files import tensor_rows
from service.checkpoints.heads import CLASSIFIERS, Head
from service.errors import CheckpointError
from tests.checkpoints import FileFormat, make_checkpoint

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"


def classifier(path: Path, num_labels: int = 2, file_format: FileFormat = "safetensors", **config: Any) -> Path:
    """A checkpoint whose config.json also has these keys; None removes a key."""
    make_checkpoint(
        path,
        kind="sequence-classification",
        num_labels=num_labels,
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        file_format=file_format,
    )
    file = path / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | config
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    return path


def head_of(path: Path, *labels: str) -> tuple[Head | None, tuple[str, ...]]:
    checkpoint: Checkpoint = describe(path, "m", labels=labels)
    return checkpoint.head, checkpoint.labels


# the number of classes


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("num_labels", [1, 2, 300, 5000])
def test_the_number_of_classes_is_that_of_the_weights(tmp_path: Path, num_labels: int, file_format: FileFormat) -> None:
    head, labels = head_of(classifier(tmp_path, num_labels, file_format, id2label={"0": "LABEL_0"}))
    assert head is not None
    assert (head.num_classes, labels, head.label_source) == (num_labels, (), "placeholder")


def test_the_number_of_classes_is_read_from_an_old_bin(tmp_path: Path) -> None:
    path = classifier(tmp_path, 3, "bin", id2label=None)
    tensors = torch.load(path / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert tensor_rows(path, CLASSIFIERS[0]) == 3


def test_the_number_of_classes_is_read_from_shards(tmp_path: Path) -> None:
    save_file({"bert.pooler.dense.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    save_file({"module.classifier.weight": torch.zeros(5, 2)}, tmp_path / "b.safetensors")
    weight_map = {"bert.pooler.dense.weight": "a.safetensors", "module.classifier.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert tensor_rows(tmp_path, CLASSIFIERS[0]) == 5
    assert tensor_rows(tmp_path, "other.weight") is None


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02garbage", b"PK\x03\x04", b"\x80\x02X\x11\x00\x00\x00classifier.weight."]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_config_has_the_number_of_classes_where_the_weights_cannot_be_read(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = classifier(tmp_path, 3, "bin" if name.endswith("bin") else "safetensors")
    (path / name).write_bytes(content)
    head, _ = head_of(path)
    assert head is not None
    assert head.num_classes == 3


# problem type and activation


@pytest.mark.parametrize(
    ("num_labels", "config", "head"),
    [
        (2, {}, Head(2, SINGLE, "softmax")),
        (3, {"problem_type": SINGLE}, Head(3, SINGLE, "softmax")),
        (3, {"problem_type": MULTI}, Head(3, MULTI, "sigmoid")),
        (3, {"problem_type": "regression"}, Head(3, "regression", "identity")),
        (3, {"sbert_ce_default_activation_function": IDENTITY}, Head(3, SINGLE, "softmax")),
        (1, {}, Head(1, None, "sigmoid")),
        (1, {"problem_type": SINGLE}, Head(1, SINGLE, "sigmoid")),
        (1, {"problem_type": MULTI}, Head(1, MULTI, "sigmoid")),
        (1, {"problem_type": "regression"}, Head(1, "regression", "identity")),
        (1, {"sbert_ce_default_activation_function": IDENTITY}, Head(1, None, "identity")),
        (1, {"sbert_ce_default_activation_function": SIGMOID}, Head(1, None, "sigmoid")),
        (1, {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, Head(1, None, "identity")),
        (1, {"sentence_transformers": {"version": "4.1.0"}}, Head(1, None, "sigmoid")),
    ],
)
def test_the_activation_follows_what_config_declares(
    tmp_path: Path, num_labels: int, config: dict[str, Any], head: Head
) -> None:
    assert head_of(classifier(tmp_path, num_labels, **config)) == (head, ())


def test_a_cross_encoder_may_have_its_activation_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = classifier(tmp_path, 1, sbert_ce_default_activation_function=SIGMOID)
    (path / "config_sentence_transformers.json").write_text(json.dumps({"activation_fn": IDENTITY}))
    assert head_of(path)[0] == Head(1, None, "identity")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; wanted one of single_label_classification, multi_"),
        ({"problem_type": ["regression"]}, r"problem_type is \"\['regression'\]\"; wanted one of"),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
            "sbert_ce_default_activation_function is 'torch.nn.modules.activation.Tanh'; wanted one of torch.nn",
        ),
        ({"sentence_transformers": {"activation_fn": 1}}, "activation_fn is '1'; wanted one of torch.nn"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {words}"):
        head_of(classifier(tmp_path, 1, **config))


def test_models_without_a_classifier_have_no_head(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, num_layers=1)
    assert describe(path, "m").head is None


# labels


@pytest.mark.parametrize(
    "id2label",
    [
        {"0": 0, "1": 1},
        ["差评", "好评"],
        {"1": "差评", "2": "好评"},
        {"0": "a", "2": "b"},
        {"x": "a"},
        {"0": "a", "1": "a"},
    ],
)
def test_the_setting_wins_over_any_id2label(tmp_path: Path, id2label: object) -> None:
    path = classifier(tmp_path, id2label=id2label)
    assert head_of(path, "坏", "好") == (Head(2, label_source="setting"), ("坏", "好"))
    with pytest.raises(CheckpointError, match=r"config\.json: .*id2label.* name all 2 with --labels m=A,B$"):
        head_of(path)


def test_the_setting_wins_over_the_number_of_labels_in_config(tmp_path: Path) -> None:
    path = classifier(tmp_path, 3, id2label={"0": "a", "1": "b"})
    assert head_of(path, "甲", "乙", "丙")[1] == ("甲", "乙", "丙")
    words = "the classifier has 3 classes, id2label names 2; name all 3 with --labels m=A,B,C$"
    with pytest.raises(CheckpointError, match=words):
        head_of(path)


def test_placeholders_never_count(tmp_path: Path) -> None:
    path = classifier(tmp_path, 5, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert head_of(path) == (Head(5), ())
    with pytest.raises(
        CheckpointError, match=r"has 5 classes, --labels names 1; name all 5 with --labels m=A,B,C,D,\.\.\.$"
    ):
        head_of(path, "好")


def test_one_output_may_have_a_label(tmp_path: Path) -> None:
    path = classifier(tmp_path, 1)
    checkpoint = describe(path, "m", labels=("相似",))
    assert (checkpoint.labels, checkpoint.tasks) == (("相似",), ("similarity",))
    with pytest.raises(CheckpointError, match=r"has 1 class, --labels names 2; name it with --labels m=A$"):
        head_of(path, "不相似", "相似")


@pytest.mark.parametrize(("num_labels", "source", "named"), [(2, "name", 2), (3, "placeholder", 0)])
def test_the_labels_of_upstreams_names_need_as_many_classes(
    tmp_path: Path, num_labels: int, source: str, named: int
) -> None:
    head, labels = head_of(classifier(tmp_path / "Mine-Sentiment", num_labels))
    assert head is not None
    assert (head.label_source, len(labels)) == (source, named)


def test_labels_of_config_are_told_from_the_others(tmp_path: Path) -> None:
    path = classifier(tmp_path, id2label={"1": "是", "0": "否"})
    assert head_of(path) == (Head(2, label_source="config"), ("否", "是"))


# the commit


def test_a_folder_of_the_hubs_cache_has_a_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = classifier(tmp_path / "models--a--b" / "snapshots" / commit)
    assert describe(path, "m").commit == commit
    assert describe(classifier(tmp_path / "folder" / commit), "m").commit is None
