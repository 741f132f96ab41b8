"""Weights that are damaged, lie, or were made to do harm: each is refused, by file, tensor and expectation."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.checkpoints.checkpoint import describe
from service.checkpoints.files import tensor_names
from service.domain import Mean
from service.engine.engine import Engine
from service.errors import CheckpointError
from tests.checkpoints import FileFormat, make_checkpoint, write_weights
from tests.unit.engine.rows import plain_row

WORDS = "bert.embeddings.word_embeddings.weight"
BIN = "pytorch_model.bin"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sound"), num_layers=1, hidden_size=16, num_heads=2)


def load(path: Path, precision: str = "float32") -> Engine:
    return Engine.load(describe(path, "test"), precision=precision)


def with_words(sound: Path, target: Path, words: torch.Tensor, file_format: FileFormat = "bin") -> Path:
    """A copy of the checkpoint with other word embeddings."""
    target.mkdir()
    for name in ("config.json", "vocab.txt"):
        shutil.copy(sound / name, target)
    write_weights(target, load_file(sound / "model.safetensors") | {WORDS: words}, file_format)
    return target


def words_of(sound: Path) -> torch.Tensor:
    return load_file(sound / "model.safetensors")[WORDS]


def test_a_file_that_was_cut_off_is_told_its_length(sound: Path, tmp_path: Path) -> None:
    broken = with_words(sound, tmp_path / "cut", words_of(sound), "safetensors")
    file = broken / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*it has {size - 1} bytes; wanted {size}, by its"):
        load(broken)


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize(("number", "precision"), [(np.nan, "float32"), (np.inf, "float32"), (3.4e38, "bfloat16")])
def test_one_number_that_is_not_finite_is_found(
    sound: Path, tmp_path: Path, file_format: FileFormat, number: float, precision: str
) -> None:
    words = words_of(sound)
    words[-1, -1] = number  # of a token that no warm-up reads; 3.4e38 is too much for bfloat16 only
    broken = with_words(sound, tmp_path / "broken", words, file_format)
    with pytest.raises(CheckpointError, match=rf"tensor {WORDS} holds NaN or infinity as torch\.{precision}; wanted"):
        load(broken, precision)


def test_large_numbers_whose_sum_is_not_finite_are_numbers(sound: Path, tmp_path: Path) -> None:
    words = torch.full_like(words_of(sound), 3e38)
    assert torch.equal(load(with_words(sound, tmp_path / "large", words)).weights.words, words)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_a_tensor_that_is_no_plain_one_is_refused(sound: Path, tmp_path: Path, kind: str) -> None:
    words = words_of(sound)
    odd = words.to_sparse() if kind == "sparse" else words.to("meta")
    with pytest.raises(CheckpointError, match=rf"{BIN}: tensor {WORDS} is sparse, nested or without numbers"):
        load(with_words(sound, tmp_path / "odd", odd))


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
def test_numbers_that_mean_nothing_without_a_scale_are_refused(
    sound: Path, tmp_path: Path, file_format: FileFormat
) -> None:
    broken = with_words(sound, tmp_path / "fp8", words_of(sound).to(torch.float8_e4m3fn), file_format)
    with pytest.raises(CheckpointError, match=rf"tensor {WORDS} has type (F8_E4M3|torch\.float8_e4m3fn); wanted float"):
        load(broken)


def test_a_compressed_archive_is_refused_before_it_unfolds(sound: Path, tmp_path: Path) -> None:
    """Mapped as it is, its compressed bytes would be taken for weights."""
    broken = with_words(sound, tmp_path / "compressed", words_of(sound))
    with zipfile.ZipFile(broken / BIN) as stored, zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as new:
        for name in stored.namelist():
            new.writestr(name, stored.read(name))
    (tmp_path / "new").replace(broken / BIN)
    for read in (load, tensor_names):
        with pytest.raises(CheckpointError, match=rf"{BIN}: .*/data\.pkl in it is compressed; wanted"):
            read(broken)


def test_a_config_of_absurd_sizes_is_held_against_the_file_first(sound: Path, tmp_path: Path) -> None:
    """Within the limits of each size, but four trillion numbers: nothing is allocated for them."""
    broken = with_words(sound, tmp_path / "absurd", words_of(sound))
    vast = {"hidden_size": 65_536, "num_hidden_layers": 256, "vocab_size": 2_000_000, "intermediate_size": 262_144}
    config = json.loads((broken / "config.json").read_text(encoding="utf-8")) | vast
    (broken / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{BIN}: tensor {WORDS} has shape .*; wanted \[2000000, 65536\]"):
        load(broken)


def write_old(target: Path, sound: Path) -> None:
    """The format of before torch 1.6."""
    torch.save(load_file(sound / "model.safetensors"), target / BIN, _use_new_zipfile_serialization=False)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes put in or left out: near the start, where the formats say what comes, or anywhere."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(rng.choice((200, 4000, len(out))))
        match rng.randrange(3):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                del out[at : at + rng.randrange(1, 9)]
    return bytes(out)


def refusal(path: Path) -> str | None:
    """Why it cannot be loaded; any other error than CheckpointError is a failure of the test."""
    try:
        outputs = load(path).run([plain_row(9, Mean())])
    except CheckpointError as error:
        return error.detail
    assert outputs[0].scores.shape == (1, 16)
    return None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["safetensors", "bin", "old"])
def test_damage_is_refused_by_name_or_does_not_matter(sound: Path, tmp_path: Path, kind: str) -> None:
    """Or is a number that was changed into another one, which no format but the zip archive of a `.bin` could tell."""
    rng = random.Random(kind)
    broken = with_words(sound, tmp_path / "broken", words_of(sound), "safetensors" if kind == "safetensors" else "bin")
    if kind == "old":
        write_old(broken, sound)
    (file,) = broken.glob("*model.*")
    content = file.read_bytes()
    reasons = []
    for _ in range(150):
        file.write_bytes(damaged(content, rng))
        reasons.append(refusal(broken))
    refused = [reason for reason in reasons if reason]
    assert len(refused) > 50
    assert [reason for reason in refused if str(broken) not in reason] == []
