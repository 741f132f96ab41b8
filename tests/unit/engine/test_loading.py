"""Loading: every file format and naming scheme gives the same outputs; broken or malicious files are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.checkpoints.checkpoint import describe
from service.checkpoints.heads import Head
from service.domain import Mean, TopTokens
from service.engine.engine import Engine
from service.errors import CheckpointError, SettingError
from tests.checkpoints import FileFormat, make_checkpoint, write_weights
from tests.unit.engine.rows import plain_row

Tensors = dict[str, torch.Tensor]
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"


def load(path: Path, precision: str = "float32") -> Engine:
    return Engine.load(describe(path, "test"), precision=precision)


def answer(path: Path) -> np.ndarray:
    outputs = load(path).run([plain_row(9, Mean()), plain_row(7, TopTokens((0, 3), 6))])
    return np.concatenate([output.scores.ravel() for output in outputs])


def rewrite(source: Path, target: Path, change: Callable[[Tensors], Tensors], file_format: FileFormat) -> Path:
    """A copy of the checkpoint `source` whose tensors went through `change`."""
    target.mkdir()
    for name in ("config.json", "vocab.txt"):
        shutil.copy(source / name, target)
    write_weights(target, change(load_file(source / "model.safetensors")), file_format)
    return target


@pytest.fixture(scope="module", params=["megatron-bert", "bert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("loading"), family=request.param, num_layers=2)


def same(tensors: Tensors) -> Tensors:
    return tensors


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


def in_data_parallel(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def in_a_model(tensors: Tensors) -> Tensors:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def in_two_wrappers_without_prefix(tensors: Tensors) -> Tensors:
    return {f"module._orig_mod.{name.removeprefix('bert.')}": tensor for name, tensor in tensors.items()}


def with_old_norm_names(tensors: Tensors) -> Tensors:
    def old(name: str) -> str:
        if "LayerNorm" not in name and ".ln." not in name:
            return name
        return name.replace(".weight", ".gamma").replace(".bias", ".beta")

    return {old(name): tensor for name, tensor in tensors.items()}


def tied(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != DECODER}


def without_second_bias_name(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "cls.predictions.bias"}


def with_extras(tensors: Tensors) -> Tensors:
    extras = {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "bert.pooler.dense.weight": torch.zeros(64, 64),
        "cls.seq_relationship.weight": torch.zeros(2, 64),
    }
    return tensors | extras


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize(
    "change",
    [
        same,
        without_prefix,
        in_data_parallel,
        in_a_model,
        in_two_wrappers_without_prefix,
        with_old_norm_names,
        tied,
        without_second_bias_name,
        with_extras,
    ],
)
def test_every_naming_scheme_gives_the_same_outputs(
    checkpoint: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], file_format: FileFormat
) -> None:
    other = rewrite(checkpoint, tmp_path / "other", change, file_format)
    assert np.array_equal(answer(checkpoint), answer(other))


def test_the_old_bin_format_is_read(checkpoint: Path, tmp_path: Path) -> None:
    other = rewrite(checkpoint, tmp_path / "other", same, "bin")
    tensors = torch.load(other / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, other / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert np.array_equal(answer(checkpoint), answer(other))


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_give_the_same_outputs_as_one_file(
    checkpoint: Path, tmp_path: Path, suffix: FileFormat, has_prefix: bool
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    whole = "pytorch_model.bin" if suffix == "bin" else "model.safetensors"
    stem = whole.partition(".")[0]
    tensors = in_data_parallel(tensors) if has_prefix else tensors
    other = rewrite(checkpoint, tmp_path / "other", lambda _: {}, suffix)
    (other / whole).unlink()
    weight_map = {}
    for index, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        name = f"{stem}-0000{index}-of-00002.{suffix}"
        write_weights(other, {each: tensors[each] for each in names}, suffix).rename(other / name)
        weight_map |= dict.fromkeys(names, name)
    (other / f"{whole}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert np.array_equal(answer(checkpoint), answer(other))
    (other / f"{stem}-00002-of-00002.{suffix}").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: names the file .*00002-of-00002"):
        load(other)


def test_tied_embeddings_share_one_tensor_and_untied_ones_do_not(checkpoint: Path, tmp_path: Path) -> None:
    def untie(tensors: Tensors) -> Tensors:
        return tensors | {DECODER: tensors[WORDS] + 1}

    weights = load(checkpoint).weights
    assert weights.mlm
    assert weights.mlm.decoder.weight is weights.words
    untied = load(rewrite(checkpoint, tmp_path / "untied", untie, "bin")).weights
    assert untied.mlm
    assert torch.equal(untied.mlm.decoder.weight, weights.words + 1)


def test_half_precision_weights_are_converted_to_float32(checkpoint: Path, tmp_path: Path) -> None:
    half = rewrite(checkpoint, tmp_path / "half", lambda all_: {n: t.half() for n, t in all_.items()}, "safetensors")
    assert load(half).weights.words.dtype == torch.float32
    assert np.abs(answer(half) - answer(checkpoint)).max() < 0.02


def test_progress_reports_the_bytes_read(checkpoint: Path) -> None:
    steps: list[tuple[int, int]] = []
    engine = Engine.load(
        describe(checkpoint, "test"), precision="bfloat16", progress=lambda done, total: steps.append((done, total))
    )
    done, totals = [each[0] for each in steps], {each[1] for each in steps}
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert done[-1] > engine.weights.words.nbytes


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda all_: all_ | {WORDS: all_[WORDS][1:]},
            r"{file}: tensor {words} has shape \[\d+, 64\]; wanted \[\d+, 64\]",
        ),
        (
            lambda all_: {n: t for n, t in all_.items() if "1.output.dense.bias" not in n},
            r"1\.output\.dense\.bias is missing from {file}; wanted shape \[64\]",
        ),
        (
            lambda all_: all_ | {"bert.encoder.layer.2.output.dense.bias": torch.zeros(64)},
            r"layer\.2\.output.* no place",
        ),
        (lambda all_: all_ | {WORDS: all_[WORDS].long()}, r"{file}: tensor {words} has type (torch.int64|I64)"),
        (lambda all_: all_ | {WORDS.removeprefix("bert."): all_[WORDS]}, r"{file}: tensor .* is there twice"),
    ],
    ids=["wrong shape", "missing", "unknown", "integers", "twice"],
)
def test_the_error_of_a_wrong_tensor_names_it(
    checkpoint: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], words: str, file_format: FileFormat
) -> None:
    broken = rewrite(checkpoint, tmp_path / "broken", change, file_format)
    file = "pytorch_model.bin" if file_format == "bin" else "model.safetensors"
    with pytest.raises(CheckpointError, match=words.replace("{file}", file).replace("{words}", WORDS)):
        load(broken)


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (
            lambda name: f"backbone.{name}",
            r"the names begin with backbone\. here: .*\('backbone\.'\)$",
        ),
        (
            lambda name: name.replace(".", "/"),
            r"the names here are bert/\S+, \S+, \S+, \.\.\. \(\d+ tensors\)$",
        ),
    ],
)
def test_the_error_of_other_names_says_what_they_are(
    checkpoint: Path, tmp_path: Path, rename: Callable[[str], str], words: str, file_format: FileFormat
) -> None:
    other = rewrite(
        checkpoint, tmp_path / "other", lambda all_: {rename(name): each for name, each in all_.items()}, file_format
    )
    with pytest.raises(CheckpointError, match=rf"word_embeddings\.weight is missing from .*; {words}"):
        load(other)


@pytest.mark.parametrize(
    ("name", "other", "kind"), [("model.safetensors", "bin", "torch.save"), ("pytorch_model.bin", "safetensors", "saf")]
)
def test_the_error_of_a_format_under_the_name_of_another_has_the_right_name(
    checkpoint: Path, tmp_path: Path, name: str, other: FileFormat, kind: str
) -> None:
    path = rewrite(checkpoint, tmp_path / "other", same, other)
    right = "model.safetensors" if other == "safetensors" else "pytorch_model.bin"
    (path / right).rename(path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: not a .*\(it is a .*{kind}.*; rename it to {right}\)$"):
        load(path)
    (path / name).rename(path / right)
    assert np.array_equal(answer(checkpoint), answer(path))


def test_the_error_of_a_training_checkpoint_has_the_line_to_do(checkpoint: Path, tmp_path: Path) -> None:
    other = rewrite(checkpoint, tmp_path / "other", same, "bin")
    file = other / "pytorch_model.bin"
    inner = torch.load(file, weights_only=True)
    torch.save({"epoch": 3, "optimizer": {"step": torch.zeros(1)}, "model_state": inner}, file)
    with pytest.raises(CheckpointError) as caught:
        load(other)
    line = caught.value.detail.partition("there is one under 'model_state': ")[2]
    todo, _, where = line.partition(", with ")
    exec(f"{where}\n{todo}", {"torch": torch})
    assert np.array_equal(answer(checkpoint), answer(other))


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("keep", [0, 4, 1000, 20_000])
def test_a_truncated_file_is_refused(checkpoint: Path, tmp_path: Path, file_format: FileFormat, keep: int) -> None:
    broken = rewrite(checkpoint, tmp_path / "broken", same, file_format)
    file = next(broken.glob("*model.*"))
    os.truncate(file, keep)
    with pytest.raises(CheckpointError, match=file.name):
        load(broken)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 64, b"PK\x03\x04rest"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_file_of_another_format_is_refused(checkpoint: Path, tmp_path: Path, name: str, content: bytes) -> None:
    broken = rewrite(checkpoint, tmp_path / "broken", same, "bin")
    (broken / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load(broken)


class _Malicious:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(checkpoint: Path, tmp_path: Path, is_zip: bool) -> None:
    broken = rewrite(checkpoint, tmp_path / "broken", same, "bin")
    content = {WORDS: torch.zeros(2), "evil": _Malicious(tmp_path / "made")}
    torch.save(content, broken / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: refused"):
        load(broken)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, torch.zeros(2)])
def test_a_bin_without_a_state_dict_is_refused(checkpoint: Path, tmp_path: Path, content: object) -> None:
    broken = rewrite(checkpoint, tmp_path / "broken", same, "bin")
    torch.save(content, broken / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="wanted a state dict"):
        load(broken)


def test_a_classifier_of_another_size_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "three", kind="sequence-classification", num_labels=3, num_layers=1)
    checkpoint = describe(path, "test")
    assert Engine.load(checkpoint).weights.labels
    words = r"safetensors: the classifier has 3 classes, .* say 2; name all 3 with --labels test=A,B,C$"
    with pytest.raises(CheckpointError, match=words):
        Engine.load(replace(checkpoint, head=Head(2)))


def test_weights_that_produce_nan_or_infinity_are_refused_at_warm_up(checkpoint: Path, tmp_path: Path) -> None:
    broken = rewrite(checkpoint, tmp_path / "overflowing", lambda all_: all_ | {WORDS: all_[WORDS] * 1e38}, "bin")
    with pytest.raises(CheckpointError, match="not finite"):
        load(broken).warm_up()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu9"}, "device 'tpu9'"),
        ({"device": "meta"}, "device 'meta'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"precision": "int3"}, "precision 'int3'"),
        ({"backend": "slow"}, "backend 'slow'"),
    ],
)
def test_unknown_settings_are_refused(checkpoint: Path, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Engine.load(describe(checkpoint, "test"), **arguments)
