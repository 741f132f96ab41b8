"""Damaged and malicious weight files are refused with an error that names the file, the tensor and the expectation."""

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


def test_the_error_of_a_truncated_file_names_both_lengths(sound: Path, tmp_path: Path) -> None:
    broken = with_words(sound, tmp_path / "cut", words_of(sound), "safetensors")
    file = broken / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*it has {size - 1} bytes; wanted {size}, by its"):
        load(broken)


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize(("number", "precision"), [(np.nan, "float32"), (np.inf, "float32"), (3.4e38, "bfloat16")])
def test_a_single_nan_or_infinity_is_refused(
    sound: Path, tmp_path: Path, file_format: FileFormat, number: float, precision: str
) -> None:
    words = words_of(sound)
    words[-1, -1] = number  # of a token that no warm-up reads; 3.4e38 overflows in bfloat16 only
    broken = with_words(sound, tmp_path / "broken", words, file_format)
    with pytest.raises(CheckpointError, match=rf"tensor {WORDS} holds NaN or infinity as torch\.{precision}; wanted"):
        load(broken, precision)


def test_large_finite_numbers_are_accepted_although_their_sum_overflows(sound: Path, tmp_path: Path) -> None:
    words = torch.full_like(words_of(sound), 3e38)
    assert torch.equal(load(with_words(sound, tmp_path / "large", words)).weights.words, words)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_a_sparse_or_meta_tensor_is_refused(sound: Path, tmp_path: Path, kind: str) -> None:
    words = words_of(sound)
    unusual = words.to_sparse() if kind == "sparse" else words.to("meta")
    with pytest.raises(CheckpointError, match=rf"{BIN}: tensor {WORDS} is sparse, nested or without numbers"):
        load(with_words(sound, tmp_path / "unusual", unusual))


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
def test_float8_weights_without_a_scale_are_refused(sound: Path, tmp_path: Path, file_format: FileFormat) -> None:
    broken = with_words(sound, tmp_path / "fp8", words_of(sound).to(torch.float8_e4m3fn), file_format)
    with pytest.raises(CheckpointError, match=rf"tensor {WORDS} has type (F8_E4M3|torch\.float8_e4m3fn); wanted float"):
        load(broken)


def test_a_compressed_archive_is_refused_before_decompression(sound: Path, tmp_path: Path) -> None:
    """The file is memory-mapped, so its compressed bytes would be read as weights."""
    broken = with_words(sound, tmp_path / "compressed", words_of(sound))
    with zipfile.ZipFile(broken / BIN) as stored, zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as new:
        for name in stored.namelist():
            new.writestr(name, stored.read(name))
    (tmp_path / "new").replace(broken / BIN)
    for read in (load, tensor_names):
        with pytest.raises(CheckpointError, match=rf"{BIN}: .*/data\.pkl in it is compressed; wanted"):
            read(broken)


def test_a_config_of_huge_sizes_is_compared_with_the_file_before_allocation(sound: Path, tmp_path: Path) -> None:
    """Each size is within its limit, but together they are 4e12 parameters, which must not be allocated."""
    broken = with_words(sound, tmp_path / "huge", words_of(sound))
    huge = {"hidden_size": 65_536, "num_hidden_layers": 256, "vocab_size": 2_000_000, "intermediate_size": 262_144}
    config = json.loads((broken / "config.json").read_text(encoding="utf-8")) | huge
    (broken / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{BIN}: tensor {WORDS} has shape .*; wanted \[2000000, 65536\]"):
        load(broken)


def write_old(target: Path, sound: Path) -> None:
    """Writes the format that torch used before 1.6."""
    torch.save(load_file(sound / "model.safetensors"), target / BIN, _use_new_zipfile_serialization=False)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with flipped bits, inserted bytes and removed bytes, in the header or anywhere."""
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
    """The detail of the CheckpointError on loading, or None. Any other exception fails the test."""
    try:
        outputs = load(path).run([plain_row(9, Mean())])
    except CheckpointError as error:
        return error.detail
    assert outputs[0].scores.shape == (1, 16)
    return None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["safetensors", "bin", "old"])
def test_a_damaged_file_is_refused_by_name_or_loads(sound: Path, tmp_path: Path, kind: str) -> None:
    """A damaged file may load: only the zip archive of a `.bin` has checksums that detect a changed number."""
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
