"""The weight cache: weights are converted once, and a broken cache or a full disk does not change them."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from service.checkpoints import converted
from service.checkpoints.checkpoint import describe
from service.checkpoints.converted import lock
from service.domain import Quantization
from service.engine import torch_private
from service.engine.engine import Engine
from service.engine.linear import Linear, OneDnn, Plain, choose
from service.engine.weight_cache import WeightLoader, save_tensors
from service.engine.weights import WeightFormat
from service.errors import CheckpointError
from tests.checkpoints import make_checkpoint

BIN = "pytorch_model.bin"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", num_layers=1, file_format="bin")


def weights(
    path: Path, cache: Path | None, precision: str = "float32", quantization: Quantization = "none"
) -> dict[str, Tensor]:
    """Some tensors of each kind: plain, fused, repacked, and one that has two names."""
    checkpoint = describe(path, "test")
    loaded = Engine.load(checkpoint, precision=precision, quantization=quantization, weight_cache=cache).weights
    assert loaded.mlm
    hidden = torch.ones(3, checkpoint.shape.hidden_size, dtype=loaded.words.dtype)
    with torch.inference_mode():
        mapped = loaded.layers[0].ffn_in(loaded.layers[0].qkv(hidden)[:, : checkpoint.shape.hidden_size])
    return {
        "words": loaded.words,
        "mapped": mapped,
        "decoder": loaded.mlm.decoder.weight,
        "decoder bias": loaded.mlm.decoder.bias,
        "norm": loaded.layers[0].ffn_norm.weight,
        "qkv bias": loaded.layers[0].qkv.tensors()["bias"],
        "transform": loaded.mlm.transform.weight,
    }


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert all(torch.equal(one[name], two[name]) for name in one)


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors*"))


def replace_content(file: Path, content: bytes) -> None:
    """Replaces the file's content by one that is no weights, with the same size and times."""
    status = file.stat()
    file.write_bytes(content.ljust(status.st_size, b"\0"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_weights_equal_those_of_the_pickle(
    checkpoint: Path, tmp_path: Path, precision: str, quantization: Quantization
) -> None:
    cache = tmp_path / "cache"
    direct = weights(checkpoint, None, precision, quantization)
    assert_same(direct, weights(checkpoint, cache, precision, quantization))
    assert len(files(cache)) == 1
    replace_content(checkpoint / BIN, b"not opened any more")
    assert_same(direct, weights(checkpoint, cache, precision, quantization))


def test_a_question_answering_head_is_cached(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", kind="question-answering", num_layers=1, file_format="bin")
    heads = [Engine.load(describe(path, "test"), weight_cache=tmp_path).weights.spans for _ in range(2)]
    assert heads[0]
    assert heads[1]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_cached_weights_are_memory_mapped_and_not_copied(
    checkpoint: Path, tmp_path: Path, quantization: Quantization
) -> None:
    weights(checkpoint, tmp_path)
    kind = choose(torch.device("cpu"), torch.float32, quantization)
    assert kind.field_names()[0] == "weight"
    described = describe(checkpoint, "test")
    loaded = [
        Engine.load(described, precision="float32", quantization=quantization, weight_cache=tmp_path).weights
        for _ in range(2)
    ]
    (file,) = tmp_path.glob("*-int8-*" if quantization == "int8" else "*-float32-*")
    for each in loaded:
        assert str(file) in mapping_of(each.words.data_ptr())
        assert str(file) in mapping_of(torch_private.packed_values(each.layers[0].qkv.weight).data_ptr())


@pytest.mark.parametrize("quantization", ["none", "int8", "fp8"])
def test_cached_weights_of_gpu_maps_equal_the_converted_ones(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    """Uses the linear maps for GPUs on a CPU."""
    monkeypatch.setattr("service.engine.linear.check_capability", lambda *of: None)
    kind = choose(torch.device("cuda"), torch.bfloat16, quantization)
    described, wanted = describe(checkpoint, "test"), WeightFormat(torch.device("cpu"), torch.bfloat16, kind)
    direct, made, opened = (
        WeightLoader(described, wanted, lambda done, total: None, folder, "gpu").load()
        for folder in (None, tmp_path, tmp_path)
    )
    for one in (made, opened):
        for name in kind.field_names():
            kept, known = (getattr(each.layers[0].qkv, name) for each in (one, direct))
            assert kept.dtype == known.dtype
            assert torch.equal(kept.float(), known.float())


def mapping_of(address: int) -> str:
    """The line of this process's memory map that has the address."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        begin, end = (int(each, 16) for each in line.split(" ", 1)[0].split("-"))
        if begin <= address < end:
            return line
    return ""


def test_a_conversion_logs_its_sizes_and_reports_its_progress(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    steps: list[tuple[int, int]] = []
    Engine.load(
        describe(checkpoint, "test"),
        precision="bfloat16",
        weight_cache=tmp_path / "cache",
        progress=lambda *step: steps.append(step),
    )
    (done,) = [record for record in caplog.records if record.message == "weights converted"]
    assert vars(done)["source_bytes"] == (checkpoint / BIN).stat().st_size
    assert vars(done)["cache_bytes"] == files(tmp_path / "cache")[0].stat().st_size
    assert sum(done_bytes == total for done_bytes, total in steps) == 2  # once for the conversion, once for the load


def test_a_small_safetensors_checkpoint_is_not_converted(tmp_path: Path) -> None:
    weights(make_checkpoint(tmp_path / "model", num_layers=1), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_large_safetensors_checkpoint_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_checkpoint(tmp_path / "model", num_layers=1)
    monkeypatch.setattr(converted, "WORTHWHILE_BYTES", (model / "model.safetensors").stat().st_size)
    direct = weights(model, None)
    assert_same(direct, weights(model, tmp_path / "cache"))
    replace_content(model / "model.safetensors", b"not opened any more")
    assert_same(direct, weights(model, tmp_path / "cache"))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 10)


def cut_to_nothing(file: Path) -> None:
    os.truncate(file, 0)


def overwrite_header(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:20] + b"}" * 20 + content[40:])


def rename_a_tensor(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"word_embeddings", b"word_embedding5", 1))


@pytest.mark.parametrize("damage", [cut, cut_to_nothing, overwrite_header, rename_a_tensor])
def test_a_broken_cache_file_is_replaced(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    direct = weights(checkpoint, None)
    weights(checkpoint, tmp_path / "cache")
    (file,) = files(tmp_path / "cache")
    sound = file.read_bytes()
    damage(file)
    assert_same(direct, weights(checkpoint, tmp_path / "cache"))
    assert messages(caplog) == ["cached weights are damaged"]
    assert file.read_bytes() == sound


def test_changed_weights_are_converted_and_replace_the_old_ones(checkpoint: Path, tmp_path: Path) -> None:
    weights(checkpoint, tmp_path / "cache")
    make_checkpoint(checkpoint, num_layers=1, file_format="bin", seed=1)
    assert_same(weights(checkpoint, None), weights(checkpoint, tmp_path / "cache"))
    assert len(files(tmp_path / "cache")) == 1


def test_the_error_of_a_missing_tensor_names_the_checkpoint_and_not_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint / BIN, weights_only=True)
    del tensors["bert.encoder.layer.0.output.dense.bias"]
    torch.save(tensors, checkpoint / BIN)
    with pytest.raises(CheckpointError, match=r"model: tensor .* is missing"):
        weights(checkpoint, tmp_path / "cache")
    assert not files(tmp_path / "cache")


def flip_a_bit_of_a_tensor(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_pickle_is_not_cached(checkpoint: Path, tmp_path: Path) -> None:
    flip_a_bit_of_a_tensor(checkpoint / BIN)
    with pytest.raises(
        CheckpointError, match=rf"{BIN}: \w+/data/\d+ in it is corrupt: wanted the CRC-32 [0-9a-f]{{8}};"
    ):
        weights(checkpoint, tmp_path / "cache")
    assert not files(tmp_path / "cache")


def test_a_pickle_without_checksums_is_converted(checkpoint: Path, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint / BIN, weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, checkpoint / BIN)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(weights(checkpoint, None), weights(checkpoint, tmp_path / "cache"))
    assert len(files(tmp_path / "cache")) == 1


class _Malicious:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_malicious_pickle_is_refused_and_not_cached(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"evil": _Malicious(tmp_path / "made")}, checkpoint / BIN)
    with pytest.raises(CheckpointError, match="refused"):
        weights(checkpoint, tmp_path / "cache")
    assert not (tmp_path / "made").exists()
    assert not files(tmp_path / "cache")


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writes beyond `num_bytes` fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_load_uncached_on_a_full_disk(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with file_size_limit(100_000):
        loaded = weights(checkpoint, tmp_path / "cache")
    assert_same(weights(checkpoint, None), loaded)
    assert messages(caplog) == ["weights are not cached"]
    assert not files(tmp_path / "cache")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("is_seen_before", [True, False], ids=["full before", "full during"])
def test_weights_load_uncached_on_a_small_disk(
    checkpoint: Path,
    small_disk: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_seen_before: bool,
) -> None:
    if not is_seen_before:  # as when the disk is filled after the check
        monkeypatch.setattr(converted, "SPARE_BYTES", -(1 << 30))
    assert_same(weights(checkpoint, None), weights(checkpoint, small_disk / "cache"))
    (warning,) = caplog.records
    assert warning.message == "weights are not cached"
    reason = r"0\.0 GB are free; the weights need .* must stay free" if is_seen_before else "No space left on device"
    assert re.fullmatch(reason, vars(warning)["reason"])
    assert not files(small_disk / "cache")


def test_weights_load_uncached_without_a_cache_folder(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file in place of the folder")
    assert_same(weights(checkpoint, None), weights(checkpoint, tmp_path / "file" / "cache"))
    assert vars(caplog.records[0])["reason"] == "Not a directory"


def test_weights_load_uncached_with_a_torch_that_cannot_map_them(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_private, "_LIBRARY", Path("libc.so.6"))
    torch_private._c_function.cache_clear()
    try:
        assert_same(weights(checkpoint, None), weights(checkpoint, tmp_path / "cache"))
    finally:
        torch_private._c_function.cache_clear()
    (warning,) = caplog.records
    assert (warning.message, vars(warning)["reason"]) == (
        "weights are not cached",
        f"torch {torch.__version__} has no create_tensor_from_blob_v2",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_weights_load_uncached_in_a_read_only_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert_same(weights(checkpoint, None), weights(checkpoint, tmp_path / "cache"))


def test_one_of_two_concurrent_loads_converts(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    together = threading.Barrier(2)
    loaded = []

    def load() -> None:
        together.wait()
        loaded.append(weights(checkpoint, tmp_path / "cache"))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(*loaded)
    assert messages(caplog).count("weights converted") == 1


def test_a_load_that_waits_for_the_lock_uses_the_converted_file(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache, is_waiting = tmp_path / "cache", threading.Event()
    direct = weights(checkpoint, tmp_path / "other")
    loaded = []

    def watch(record: logging.LogRecord) -> bool:
        if record.msg.startswith("waiting"):
            is_waiting.set()
        return True

    caplog.handler.addFilter(watch)
    with lock(cache):
        thread = threading.Thread(target=lambda: loaded.append(weights(checkpoint, cache)))
        thread.start()
        assert is_waiting.wait(60)
        (made,) = files(tmp_path / "other")
        made.rename(cache / made.name)
    thread.join()
    assert_same(direct, *loaded)
    assert messages(caplog).count("weights converted") == 1


def test_cached_tensors_of_another_class_of_maps_are_not_used(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a setting of torch changes the class of maps on the same CPU: the file name stays the same."""
    described = describe(checkpoint, "test")

    def load(linear_class: type[Linear]) -> type[Linear]:
        wanted = WeightFormat(torch.device("cpu"), torch.float32, linear_class)
        loader = WeightLoader(described, wanted, lambda done, total: None, tmp_path / "cache", "cpu")
        return type(loader.load().layers[0].qkv)

    assert [load(each) for each in (OneDnn, Plain, OneDnn)] == [OneDnn, Plain, OneDnn]
    assert set(messages(caplog)) == {"cached weights do not fit"}


TENSORS = {
    "matrix": torch.arange(6.0).view(2, 3),
    "half": torch.tensor([0.5, -0.25], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "名字": torch.ones(5),
    "codes": torch.arange(-64, 64, dtype=torch.int8),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "zeros": torch.zeros(3, dtype=torch.int32),
    "small": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn),
}


def test_saved_tensors_are_readable_by_the_safetensors_library(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert save_tensors(file, TENSORS) == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o644, "replicas of another user map it too"
    read = load_file(file)
    assert {name for name in read if not name.endswith(".padding")} == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())


@pytest.mark.parametrize("length", range(1, 70, 7))
def test_every_tensor_is_aligned_to_a_cache_line(tmp_path: Path, length: int) -> None:
    save_tensors(tmp_path / "file", TENSORS | {"x" * length: torch.ones(10 * length)})
    content = (tmp_path / "file").read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    assert (8 + header_bytes) % 64 == 0
    assert {entry["data_offsets"][0] % 64 for name, entry in header.items() if name in TENSORS} == {0}
