"""Checkpoints: model specs, config.json, and the family, kind, shape and labels derived from them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.checkpoints.checkpoint import Family, ModelSpec, Shape, describe, parse_spec, resolve
from service.checkpoints.files import weight_files
from service.errors import CheckpointError, SettingError
from tests.checkpoints import make_checkpoint, vocabulary


@pytest.fixture
def masked_lm(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made", num_layers=1, hidden_size=16, num_heads=2)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made", kind="sequence-classification", num_layers=1, hidden_size=16, num_heads=2)


def edit(path: Path, **changes: object) -> Path:
    """Sets keys of the config; None removes a key."""
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("IDEA-CCNL/Erlangshen", ModelSpec("Erlangshen", "IDEA-CCNL/Erlangshen")),
        ("IDEA-CCNL/Erlangshen@v1.0", ModelSpec("Erlangshen", "IDEA-CCNL/Erlangshen", "v1.0")),
        ("news=IDEA-CCNL/Erlangshen@main", ModelSpec("news", "IDEA-CCNL/Erlangshen", "main")),
        (" big = /models/big ", ModelSpec("big", "/models/big")),
        ("/models/mini/", ModelSpec("mini", "/models/mini/")),
        ("named=/models/a=b", ModelSpec("named", "/models/a=b")),
    ],
)
def test_parse_spec_reads_name_source_and_revision(text: str, spec: ModelSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize("text", ["", "=", "name=", "a@", "name=@main", "=source", "/models/a=b", "/models/模型"])
def test_invalid_specs_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="wanted SOURCE, NAME=SOURCE or NAME=SOURCE@REVISION"):
        parse_spec(text)


def test_a_directory_name_may_contain_an_at_sign(tmp_path: Path) -> None:
    (tmp_path / "run@3").mkdir()
    assert parse_spec(f"x={tmp_path}/run@3") == ModelSpec("x", f"{tmp_path}/run@3")


def test_a_local_folder_is_described(masked_lm: Path) -> None:
    checkpoint = resolve(parse_spec(f"mine={masked_lm}"), offline=True)
    assert (checkpoint.name, checkpoint.family, checkpoint.kind) == ("mine", "megatron-bert", "masked-lm")
    assert checkpoint.path == masked_lm
    assert (checkpoint.labels, checkpoint.tasks) == ((), ())
    assert checkpoint.shape == Shape(1, 16, 2, 64, len(vocabulary()), 512, 2, 1e-12, "gelu_new")
    assert checkpoint.shape.head_size == 8


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_num_parameters_counts_embeddings_and_encoder(tmp_path: Path, family: Family) -> None:
    path = make_checkpoint(tmp_path / "made", family=family, kind="encoder", num_layers=2, hidden_size=16, num_heads=2)
    tensors = load_file(path / "model.safetensors")
    own = sum(tensor.numel() for name, tensor in tensors.items() if "pooler" not in name)
    assert describe(path, "made").shape.num_parameters == own


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all"])
def test_a_missing_folder_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve(ModelSpec("x", source), offline=False)


@pytest.mark.parametrize(
    ("classes", "family", "kind"),
    [
        (["MegatronBertForMaskedLM"], "megatron-bert", "masked-lm"),
        (["MegatronBertForPreTraining"], "megatron-bert", "masked-lm"),
        (["MegatronBertForSequenceClassification"], "megatron-bert", "sequence-classification"),
        (["MegatronBertModel"], "megatron-bert", "encoder"),
        (["BertForMaskedLM"], "bert", "masked-lm"),
        (["BertModel"], "bert", "encoder"),
    ],
)
def test_family_and_kind_follow_architectures(masked_lm: Path, classes: list[str], family: str, kind: str) -> None:
    checkpoint = describe(edit(masked_lm, architectures=classes, model_type=family), "x")
    assert (checkpoint.family, checkpoint.kind) == (family, kind)
    # Without model_type, the class's prefix gives the family.
    assert describe(edit(masked_lm, model_type=None), "x").family == family


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", ["masked-lm", "sequence-classification", "encoder"])
def test_kind_follows_the_tensors_without_architectures(tmp_path: Path, kind: str, file_format: str) -> None:
    path = make_checkpoint(tmp_path, kind=kind, file_format=file_format, num_layers=1, architectures=[])
    assert describe(path, "x").kind == kind
    assert describe(edit(path, architectures=["MegatronBertModel", "MegatronBertForMaskedLM"]), "x").kind == kind


def test_kind_follows_the_tensors_of_an_old_bin(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, file_format="bin", num_layers=1, architectures=[])
    tensors = torch.load(path / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert describe(path, "x").kind == "masked-lm"


DEEP_HEADER = (100_000).to_bytes(8, "little") + b"[" * 100_000
HUGE_STRING = b"\x80\x02\x8d" + (1 << 62).to_bytes(8, "little")


@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04", DEEP_HEADER, HUGE_STRING])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_unreadable_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = make_checkpoint(tmp_path, file_format="bin", num_layers=1, architectures=[])
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read as weights"):
        describe(path, "x")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", None, "num_hidden_layers is missing; wanted a whole number from 1 to 256"),
        ("num_hidden_layers", 0, "num_hidden_layers is '0'"),
        ("num_hidden_layers", True, "num_hidden_layers is 'True'"),
        ("hidden_size", 10**9, "hidden_size is '1000000000'"),
        ("hidden_size", "16", "hidden_size is '16'"),
        ("vocab_size", 2.5, "vocab_size is '2.5'"),
        ("max_position_embeddings", -512, "max_position_embeddings is '-512'"),
        ("num_attention_heads", 3, "num_attention_heads is '3'; wanted a divisor of hidden_size = 16"),
        ("layer_norm_eps", "tiny", "layer_norm_eps is 'tiny'"),
        ("hidden_act", "relu", "hidden_act is 'relu'; wanted one of gelu, gelu_new"),
        ("model_type", "gpt2", "model_type is 'gpt2'; wanted megatron-bert or bert"),
        ("model_type", "bert", "model_type is 'bert'; wanted megatron-bert or bert, as in architectures"),
        ("architectures", ["GPT2Model"], "architectures is 'GPT2Model'"),
        ("architectures", ["BertForTokenClassification"], "architectures is 'BertForTokenClassification'"),
        ("architectures", "BertModel", "architectures is 'BertModel'; wanted a list"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'; wanted absolute"),
        ("is_decoder", True, "is_decoder is 'True'; wanted False"),
    ],
)
def test_the_error_of_an_invalid_config_names_the_key(masked_lm: Path, key: str, value: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {words}"):
        describe(edit(masked_lm, **{key: value}), "x")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, rb'{"id2label": {"0": "\ud800"}}'])
def test_a_config_that_is_not_a_json_object_is_refused(masked_lm: Path, content: bytes) -> None:
    (masked_lm / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: (cannot be read as JSON|wanted a JSON object)"):
        describe(masked_lm, "x")


def test_a_huge_config_is_refused_without_reading_it(masked_lm: Path) -> None:
    os.truncate(masked_lm / "config.json", 1 << 40)
    with pytest.raises(CheckpointError, match=r"config\.json: has 1099511627776 bytes; wanted at most 67108864$"):
        describe(masked_lm, "x")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        describe(tmp_path, "x")


@pytest.mark.parametrize("name", ["../model.bin", "/etc/passwd", "a/b.bin", "model.txt"])
def test_an_index_with_paths_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"weight_map: wanted plain \.safetensors or \.bin file names"):
        weight_files(tmp_path)


def test_the_error_of_unreadable_weights_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: Input/output error$"):
        weight_files(tmp_path)


def test_the_error_of_a_git_lfs_pointer_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a git-lfs pointer, not the weights.*git lfs pull"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("source", "labels", "tasks"),
    [
        ("IDEA/Erlangshen-1.3B-Similarity", ("不相似", "相似"), ("similarity",)),
        ("IDEA/Erlangshen-1.3B-Sentiment/", ("负面", "正面"), ()),
        ("IDEA/Erlangshen", (), ()),
    ],
)
def test_known_sources_have_known_labels_and_tasks(
    classifier: Path, source: str, labels: tuple[str, ...], tasks: tuple[str, ...]
) -> None:
    checkpoint = describe(classifier, "x", source)
    assert (checkpoint.labels, checkpoint.tasks) == (labels, tasks)


@pytest.mark.parametrize(
    ("labels", "tasks"),
    [
        (("矛盾", "中立", "蕴含"), ("nli",)),
        (("Entailment", "neutral", "contradiction"), ("nli",)),
        (("相似", "不相似"), ("similarity",)),
        (("坏", "好"), ()),
    ],
)
def test_tasks_follow_the_labels_of_an_unknown_source(
    tmp_path: Path, labels: tuple[str, ...], tasks: tuple[str, ...]
) -> None:
    path = make_checkpoint(tmp_path / "m", kind="sequence-classification", num_labels=len(labels), num_layers=1)
    assert describe(path, "m", labels=labels).tasks == tasks


def test_a_source_named_nli_has_the_nli_labels(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "Mine-NLI", kind="sequence-classification", num_labels=3, num_layers=1)
    checkpoint = resolve(parse_spec(str(path)))
    assert (checkpoint.labels, checkpoint.tasks) == (("矛盾", "中立", "蕴含"), ("nli",))


def test_labels_prefer_the_setting_then_the_config_then_the_source(classifier: Path) -> None:
    edit(classifier, id2label={"1": "是", "0": "否"})
    assert describe(classifier, "x", "a-Similarity").labels == ("否", "是")
    assert describe(classifier, "x", "a-Similarity", labels=("坏", "好")).labels == ("坏", "好")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("一", "二", "三"), r"the classifier has 2 classes, --labels names 3; name all 2 with --labels x=A,B$"),
        (("好", "好"), "the labels of --labels must differ and not be empty, but '好' is there 2 times"),
        (("好", ""), "must differ and not be empty, but one is empty; name all 2 with --labels x=A,B$"),
    ],
)
def test_invalid_labels_are_refused(classifier: Path, labels: tuple[str, ...], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        describe(classifier, "x", labels=labels)


def test_labels_without_a_classifier_are_refused(masked_lm: Path) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint has no classifier"):
        describe(masked_lm, "x", labels=("坏", "好"))
