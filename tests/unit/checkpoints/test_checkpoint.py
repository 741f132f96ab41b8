"""Checkpoints: model specs, config.json, and the family, kind, shape and labels derived from them."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.checkpoints.checkpoint import CHOICE_KEY, OwnChoice, describe, resolve
from service.checkpoints.files import weight_files
from service.checkpoints.shape import Family, Kind, Shape
from service.checkpoints.spec import ModelSpec, parse_spec
from service.errors import CheckpointError, SettingError
from tests.checkpoints import FileFormat, make_checkpoint, vocabulary, write_weights


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
        ("/模型/情感分类", ModelSpec("情感分类", "/模型/情感分类")),
        ("情感=/models/a", ModelSpec("情感", "/models/a")),
        ("/models/新闻 分类 v2/", ModelSpec("新闻 分类 v2", "/models/新闻 分类 v2/")),
        ("/models/BERT😀", ModelSpec("BERT😀", "/models/BERT😀")),
        ("/models/bert:v2", ModelSpec("bert:v2", "/models/bert:v2")),
        ("/models/.hidden", ModelSpec(".hidden", "/models/.hidden")),
        ("/models/run@3", ModelSpec("run@3", "/models/run@3")),
        ("/models/cafe\u0301", ModelSpec("caf\u00e9", "/models/cafe\u0301")),
        ("IDEA-CCNL/Erlangshen/", ModelSpec("Erlangshen", "IDEA-CCNL/Erlangshen")),
        ("~nobody-of-this-name/模型", ModelSpec("模型", "~nobody-of-this-name/模型")),
        ("/models/" + "长" * 200, ModelSpec("长" * 200, "/models/" + "长" * 200)),
    ],
)
def test_parse_spec_reads_name_source_and_revision(text: str, spec: ModelSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize("text", ["", "=", "name=", "a@", "name=@main", "=source"])
def test_invalid_specs_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="wanted SOURCE, NAME=SOURCE or NAME=SOURCE@REVISION"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/models/a=b", "'a=b' cannot be a model's name: it contains =; give it one: --model a-b=/models/a=b"),
        ("/models/a;b", "'a;b' cannot be a model's name: it contains ;; give it one: --model 'a-b=/models/a;b'"),
        ("/models/a\u3000b", "it contains U+3000; give it one: --model 'a-b=/models/a\u3000b'"),
        ("/models/👨\u200d👩", "it contains U+200D; give it one: --model '👨-👩=/models/👨\u200d👩'"),
        ("/models/none", "it stands for no model in the metrics; give it one: --model NAME=/models/none"),
        ("/", "it is empty; give it one: --model NAME=/"),
        ("/models/" + "x" * 201, "it has 201 characters; wanted at most 200; give it one: --model xxx"),
        ("org/news=/models/a", "'org/news' cannot be a model's name: it contains /"),
        ("none=/models/a", "'none' cannot be a model's name"),
        ("/models/\udce9", r"'/models/\udce9': the path is not UTF-8; rename the folder, or make a link to it"),
        (
            "https://huggingface.co/IDEA-CCNL/X/tree/main",
            "an address (https://...); wanted a folder, or a hub id: --model IDEA-CCNL/X",
        ),
        ("x=https://www.modelscope.cn/models/IDEA-CCNL/X", "wanted a folder, or a hub id: --model ms://IDEA-CCNL/X"),
        ("file:///模型/情感", "an address (file://...); wanted a folder, or a hub id: --model '/模型/情感'"),
        ("https://user:secret@host/", "an address (https://...); wanted a folder, or a hub id: --model ORG/NAME"),
    ],
)
def test_the_error_of_what_cannot_be_a_name_has_the_reason_and_the_line_to_type(text: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_spec(text)
    assert words in caught.value.detail
    assert "secret" not in caught.value.detail


def test_the_suggested_lines_are_accepted(tmp_path: Path) -> None:
    for name in ("a=b", "a;b", "none", "a\u3000b"):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(SettingError) as caught:
            parse_spec(str(folder))
        (line,) = shlex.split(caught.value.detail.partition("--model ")[2])
        assert parse_spec(line).source == str(folder)


def test_a_directory_name_may_contain_an_at_sign(tmp_path: Path) -> None:
    (tmp_path / "run@3").mkdir()
    assert parse_spec(f"x={tmp_path}/run@3") == ModelSpec("x", f"{tmp_path}/run@3")
    assert parse_spec(f"{tmp_path}/run@3@main") == ModelSpec("run@3", f"{tmp_path}/run@3", "main")


def test_a_relative_folder_may_contain_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=2e-5").mkdir()
    with pytest.raises(
        SettingError, match=r"'lr=2e-5' cannot be a model's name: it contains =.*--model lr-2e-5=lr=2e-5"
    ):
        parse_spec("lr=2e-5")
    assert parse_spec("a=lr=2e-5") == ModelSpec("a", "lr=2e-5")
    (tmp_path / "2e-5").mkdir()
    assert parse_spec("lr=2e-5") == ModelSpec("lr", "2e-5")


def test_a_local_folder_is_described(masked_lm: Path) -> None:
    checkpoint = resolve(parse_spec(f"mine={masked_lm}"), offline=True)
    assert (checkpoint.name, checkpoint.family, checkpoint.kind) == ("mine", "megatron-bert", "masked-lm")
    assert checkpoint.path == masked_lm
    assert (checkpoint.labels, checkpoint.tasks) == ((), ())
    assert checkpoint.shape == Shape(1, 16, 2, 64, len(vocabulary()), 512, 2, 1e-12, "gelu_new")
    assert checkpoint.shape.head_size == 8


@pytest.mark.parametrize("family", ["megatron-bert", "bert", "xlm-roberta"])
def test_num_parameters_counts_embeddings_and_encoder(tmp_path: Path, family: Family) -> None:
    path = make_checkpoint(tmp_path / "made", family=family, kind="encoder", num_layers=2, hidden_size=16, num_heads=2)
    tensors = load_file(path / "model.safetensors")
    own = sum(tensor.numel() for name, tensor in tensors.items() if "pooler" not in name)
    assert describe(path, "made").shape.num_parameters == own


@pytest.mark.parametrize(
    "source", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all", "~nobody-of-this-name/x", "/models/run@3"]
)
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
        (["XLMRobertaForMaskedLM"], "xlm-roberta", "masked-lm"),
        (["XLMRobertaModel"], "xlm-roberta", "encoder"),
        (["MegatronBertForQuestionAnswering"], "megatron-bert", "question-answering"),
        (["BertForQuestionAnswering"], "bert", "question-answering"),
        (["XLMRobertaForQuestionAnswering"], "xlm-roberta", "question-answering"),
        (["RobertaForQuestionAnswering"], "roberta", "question-answering"),
        (["RobertaForSequenceClassification"], "roberta", "sequence-classification"),
    ],
)
def test_family_and_kind_follow_architectures(masked_lm: Path, classes: list[str], family: str, kind: str) -> None:
    checkpoint = describe(edit(masked_lm, architectures=classes, model_type=family, hidden_act="gelu"), "x")
    assert (checkpoint.family, checkpoint.kind) == (family, kind)
    # Without model_type, the class's prefix gives the family.
    assert describe(edit(masked_lm, model_type=None), "x").family == family


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", ["masked-lm", "sequence-classification", "question-answering", "encoder"])
def test_kind_follows_the_tensors_without_architectures(tmp_path: Path, kind: str, file_format: str) -> None:
    path = make_checkpoint(tmp_path, kind=kind, file_format=file_format, num_layers=1, architectures=[])
    assert describe(path, "x").kind == kind
    assert describe(edit(path, architectures=["MegatronBertModel", "MegatronBertForMaskedLM"]), "x").kind == kind


def test_kind_follows_the_tensors_of_an_old_bin(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, file_format="bin", num_layers=1, architectures=[])
    tensors = torch.load(path / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert describe(path, "x").kind == "masked-lm"


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
@pytest.mark.parametrize("kind", ["masked-lm", "sequence-classification", "question-answering", "encoder"])
@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("config", ["bert_config.json", "config.json"])
def test_family_and_kind_follow_the_tensors_where_the_config_names_neither(
    tmp_path: Path, family: Family, kind: str, file_format: str, config: str
) -> None:
    path = make_checkpoint(tmp_path, family=family, kind=kind, file_format=file_format, num_layers=1, architectures=[])
    edit(path, model_type=None).joinpath("config.json").rename(path / config)
    checkpoint = describe(path, "x")
    assert (checkpoint.family, checkpoint.kind) == (family, kind)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_kind_follows_tensors_with_the_prefix_of_a_wrapper(tmp_path: Path, prefix: str) -> None:
    path = make_checkpoint(tmp_path, kind="sequence-classification", family="bert", num_layers=1, architectures=[])
    tensors = load_file(path / "model.safetensors")
    write_weights(path, {prefix + name: tensor for name, tensor in tensors.items()}, "safetensors")
    checkpoint = describe(edit(path, model_type=None), "x")
    assert (checkpoint.family, checkpoint.kind) == ("bert", "sequence-classification")


def test_a_roberta_without_a_model_type_is_not_taken_for_bert(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family="bert", kind="encoder", num_layers=1, architectures=[])
    with pytest.raises(CheckpointError, match=r'model_type is missing.*add "model_type": "bert" or "megatron-bert"'):
        describe(edit(path, model_type=None, pad_token_id=1), "x")


def test_config_json_is_preferred_to_the_name_of_google(masked_lm: Path) -> None:
    (masked_lm / "bert_config.json").write_text("{}")
    assert describe(masked_lm, "x").family == "megatron-bert"


@pytest.mark.parametrize("model_type", ["Megatron_BERT", "MEGATRON-BERT", "megatron-bert"])
def test_model_type_is_read_in_any_case(masked_lm: Path, model_type: str) -> None:
    assert describe(edit(masked_lm, model_type=model_type), "x").family == "megatron-bert"


def test_a_config_with_a_byte_order_mark_is_read(masked_lm: Path) -> None:
    file = masked_lm / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert describe(masked_lm, "x").kind == "masked-lm"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1, // the first\n "b": 2}', r"line 1 column 10 \(char 9\)\): JSON has no comments; remove them"),
        (b"# made by hand\n{}", "JSON has no comments; remove them"),
        ("{}".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ('{"a": "中文"}'.encode("gbk"), "save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer; fetch the files with `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>", "a web page; download the file itself"),
    ],
)
def test_the_error_of_a_config_that_is_something_else_says_what(masked_lm: Path, content: bytes, words: str) -> None:
    (masked_lm / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: cannot be read as JSON \(.*{words}$"):
        describe(masked_lm, "x")


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", ["masked-lm", "sequence-classification", "question-answering", "encoder"])
def test_kind_follows_the_tensors_of_roberta(tmp_path: Path, kind: Kind, file_format: FileFormat) -> None:
    path = make_checkpoint(
        tmp_path, family="xlm-roberta", kind=kind, file_format=file_format, num_layers=1, architectures=[]
    )
    assert (describe(path, "x").family, describe(path, "x").kind) == ("xlm-roberta", kind)


def test_positions_of_roberta_start_after_the_padding_token(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family="xlm-roberta", num_layers=1, max_positions=512)
    for padding, first in ((1, 2), (0, 1), (None, 2)):  # left out, it is 1
        shape = describe(edit(path, pad_token_id=padding), "x").shape
        assert (shape.first_position, shape.max_positions) == (first, 514 - first)
    for padding in (-1, 513, True, "1"):
        with pytest.raises(
            CheckpointError, match=r"config\.json: pad_token_id is .*; wanted a whole number from 0 to max"
        ):
            describe(edit(path, pad_token_id=padding), "x")


def test_an_activation_that_the_head_of_roberta_has_not_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family="xlm-roberta", num_layers=1)
    with pytest.raises(CheckpointError, match=r"hidden_act is 'gelu_new'; wanted gelu, as in the masked-LM head"):
        describe(edit(path, hidden_act="gelu_new"), "x")


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
        ("model_type", "gpt2", "model_type is 'gpt2'; wanted megatron-bert, bert, xlm-roberta or roberta"),
        ("model_type", "bert", "model_type is 'bert'; wanted megatron-bert, .* or roberta, as in architectures"),
        ("architectures", ["GPT2Model"], "architectures is 'GPT2Model'"),
        ("architectures", ["BertForTokenClassification"], "architectures is 'BertForTokenClassification'"),
        ("architectures", "BertModel", "architectures is 'BertModel'; wanted a list"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'; wanted absolute"),
        ("is_decoder", True, "is_decoder is 'True'; wanted False"),
        (
            "quantization_config",
            {"quant_method": "gptq", "bits": 4},
            r'quantization_config is .*"gptq".*; wanted {"quant_method": "blocks-4bit", "block_size": 32}, or the '
            "model before it was quantized$",
        ),
        ("quantization_config", {"quant_method": "blocks-4bit", "block_size": 64}, "quantization_config is .*64"),
        ("quantization_config", "int8", "quantization_config is '\"int8\"'"),
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


def test_a_folder_without_a_config_is_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; it is empty$"):
        describe(tmp_path, "x")
    (tmp_path / "Config.JSON").write_text("{}")
    (tmp_path / "vocab.txt").symlink_to("../blobs/0a1b")
    with pytest.raises(CheckpointError) as caught:
        describe(tmp_path, "x")
    assert caught.value.detail.endswith("it holds Config.JSON, vocab.txt (a link to ../blobs/0a1b, which is not there)")


def test_the_error_of_a_folder_around_the_checkpoint_leads_to_it(tmp_path: Path) -> None:
    inner = make_checkpoint(tmp_path / "情感 分类", num_layers=1)
    with pytest.raises(CheckpointError) as caught:
        describe(tmp_path, "x")
    words = "it holds 情感 分类/; wanted --model "
    assert words in caught.value.detail
    assert shlex.split(caught.value.detail.partition(words)[2]) == [str(inner)]


def test_the_error_of_a_folder_without_weights_says_what_is_there(masked_lm: Path) -> None:
    (masked_lm / "model.safetensors").rename(masked_lm / "best.safetensors")
    (masked_lm / "training_args.bin").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        weight_files(masked_lm)
    assert "it holds best.safetensors, config.json, training_args.bin, vocab.txt" in caught.value.detail
    assert caught.value.detail.endswith("if best.safetensors is the weights, rename it to model.safetensors")


def test_the_error_of_broken_links_and_of_shards_without_an_index_says_so(masked_lm: Path) -> None:
    (masked_lm / "model.safetensors").rename(masked_lm / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"vocab\.txt; shards are read with their index$"):
        weight_files(masked_lm)
    (masked_lm / "model-00001-of-00001.safetensors").unlink()
    (masked_lm / "model.safetensors").symlink_to("../../blobs/0a1b")
    with pytest.raises(CheckpointError, match=r"a link to \.\./\.\./blobs/0a1b, which is not there\), vocab\.txt$"):
        weight_files(masked_lm)


def test_symlinked_files_are_read(masked_lm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    for file in masked_lm.iterdir():
        (folder / file.name).symlink_to(file)
    assert describe(folder, "x").kind == "masked-lm"
    assert weight_files(folder) == (folder / "model.safetensors",)


def test_safetensors_are_preferred_to_a_bin(masked_lm: Path) -> None:
    write_weights(masked_lm, {"a": torch.zeros(1)}, "bin")
    assert weight_files(masked_lm) == (masked_lm / "model.safetensors",)


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
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: not the weights but a git-lfs pointer.*git lfs pull"
    ):
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


def test_a_choice_model_names_the_labels_that_it_was_fine_tuned_for(masked_lm: Path) -> None:
    own = {"labels": ["pos", "neg"], "options": ["好评", "差评"], "question": "怎么样？", "multi_label": False}
    found = describe(edit(masked_lm, **{CHOICE_KEY: own}), "tuned").choice
    assert found == OwnChoice(("pos", "neg"), ("好评", "差评"), "怎么样？")


@pytest.mark.parametrize("value", [[], {"labels": ["a"]}, {"labels": ["a", "b"], "options": ["a", "a"]}])
def test_labels_of_a_choice_that_cannot_be_served_are_refused(masked_lm: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=CHOICE_KEY):
        describe(edit(masked_lm, **{CHOICE_KEY: value}), "tuned")
