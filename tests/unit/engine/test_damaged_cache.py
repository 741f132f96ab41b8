"""Damaged cached weights: found, removed, and converted again from the checkpoint; never used once they are known."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.checkpoints.checked_file import DamagedFile
from service.checkpoints.checkpoint import Checkpoint, describe
from service.domain import Encoding
from service.engine import weight_cache
from service.engine.engine import Engine
from service.engine.linear import choose
from service.engine.weight_cache import WeightLoader
from service.engine.weights import WeightFormat
from service.errors import CheckpointError
from tests.checkpoints import make_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return describe(make_checkpoint(tmp_path_factory.mktemp("model"), num_layers=1, file_format="bin"), "test")


@pytest.fixture
def map_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as a large one, whose content is checked while it is used."""
    monkeypatch.setattr(weight_cache, "CHECKED_FIRST_BYTES", 0)


def loader(checkpoint: Checkpoint, cache: Path) -> WeightLoader:
    wanted = WeightFormat(CPU, torch.float32, choose(CPU, torch.float32, "none"))
    return WeightLoader(checkpoint, wanted, lambda done, total: None, cache, "cpu")


def numbers(of: WeightLoader, *, in_full: bool = False) -> list[Tensor]:
    """What the weights compute, and some of them."""
    weights = of.load(in_full=in_full)
    layer = weights.layers[0]
    hidden = torch.ones(3, weights.words.shape[1])
    with torch.inference_mode():
        maps = (layer.qkv(hidden), layer.attention_out(hidden), layer.ffn_out(layer.ffn_in(hidden)))
        return [weights.words.clone(), weights.positions.clone(), layer.ffn_norm(hidden), *maps]


def are_equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def cached_file(cache: Path) -> Path:
    (file,) = cache.glob("*.safetensors")
    return file


def change(file: Path, place: int, content: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        stream.write(content)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), in_head=st.booleans(), noise=st.binary(min_size=1, max_size=5000))
def test_weights_are_the_same_after_any_damage(
    checkpoint: Checkpoint, tmp_path: Path, place: float, in_head: bool, noise: bytes
) -> None:
    known = numbers(loader(checkpoint, tmp_path))
    file = cached_file(tmp_path)
    sound = file.read_bytes()
    limit = int.from_bytes(sound[:8], "little") + 4000 if in_head else len(sound)
    start = int(place * limit)
    file.write_bytes((sound[:start] + noise + sound[start + len(noise) :])[: len(sound)])
    again = loader(checkpoint, tmp_path)
    assert are_equal(numbers(again), known)
    assert file.read_bytes() == sound
    assert again.has_found_damage or (sound[start : start + len(noise)] == noise[: len(sound) - start])


def fill_folder(file: Path) -> None:
    file.mkdir()
    (file / "kept").touch()


@pytest.mark.parametrize(
    ("make", "is_replaced"), [(Path.touch, True), (os.mkfifo, True), (Path.mkdir, True), (fill_folder, False)]
)
def test_what_is_in_place_of_the_file_is_replaced(
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], None],
    is_replaced: bool,
) -> None:
    known = numbers(loader(checkpoint, tmp_path))
    file = cached_file(tmp_path)
    file.unlink()
    make(file)
    assert are_equal(numbers(loader(checkpoint, tmp_path)), known)
    assert file.is_file() == is_replaced
    assert lines(caplog) == ["cached weights are damaged" if is_replaced else "weights are not cached"]


@pytest.mark.usefixtures("map_at_once")
def test_a_head_is_checked_before_a_large_file_is_mapped(checkpoint: Checkpoint, tmp_path: Path) -> None:
    known = numbers(loader(checkpoint, tmp_path))
    file = cached_file(tmp_path)
    sound = file.read_bytes()
    header_bytes = int.from_bytes(sound[:8], "little")
    for place in range(8 + header_bytes, 8 + header_bytes + 3000, 100):  # the layouts of packed weights
        change(file, place, bytes([sound[place] ^ 0x10]))
        again = loader(checkpoint, tmp_path)
        assert are_equal(numbers(again), known)
        assert again.has_found_damage
        assert file.read_bytes() == sound


@pytest.mark.usefixtures("map_at_once")
def test_the_content_of_a_large_file_is_checked_while_it_is_used(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = numbers(loader(checkpoint, tmp_path))
    file = cached_file(tmp_path)
    change(file, -1000, b"\x7f" * 500)
    used = loader(checkpoint, tmp_path)
    used.load()
    assert not used.has_found_damage
    with pytest.raises(DamagedFile):
        used.require_sound()
    assert used.has_found_damage
    assert not file.exists()
    assert lines(caplog) == ["cached weights in use are damaged"]
    assert are_equal(numbers(used), known)
    used.require_sound()
    assert file.exists()


@pytest.mark.usefixtures("map_at_once")
def test_a_complete_check_is_made_before_suspect_weights_are_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    known = numbers(loader(checkpoint, tmp_path))
    change(cached_file(tmp_path), -1000, b"\x7f" * 500)
    again = loader(checkpoint, tmp_path)
    assert are_equal(numbers(again, in_full=True), known)
    assert again.has_found_damage


def test_damage_to_a_mapped_file_is_found_by_the_next_check(checkpoint: Checkpoint, tmp_path: Path) -> None:
    used = loader(checkpoint, tmp_path)
    used.load()
    used.require_sound()
    change(cached_file(tmp_path), -1000, b"\x7f" * 500)
    with pytest.raises(DamagedFile):
        used.require_sound()


def test_a_file_that_another_process_replaced_is_not_removed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    used = loader(checkpoint, tmp_path)
    used.load()
    file = cached_file(tmp_path)
    sound = file.read_bytes()
    change(file, -1000, b"\x7f" * 500)
    file.unlink()
    file.write_bytes(sound)
    with pytest.raises(DamagedFile):
        used.require_sound()
    assert file.read_bytes() == sound


def test_a_damaged_cache_that_cannot_be_written_is_not_used(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = numbers(loader(checkpoint, tmp_path))
    file = cached_file(tmp_path)
    change(file, -1000, b"\x7f" * 500)

    def fail(*arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(weight_cache, "lock", fail)
    monkeypatch.setattr(weight_cache, "_remove", fail)
    again = loader(checkpoint, tmp_path)
    assert are_equal(numbers(again), known)
    again.require_sound()
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.message == "weights are not cached"
    reason = vars(warning)["reason"]
    assert reason.startswith(f"{file} is damaged (its content has the CRC-32 ")
    assert reason.endswith("and is not replaced: Read-only file system")


def test_a_sound_cache_that_cannot_be_written_is_used(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(loader(checkpoint, tmp_path))
    monkeypatch.delattr(weight_cache, "lock")
    loader(checkpoint, tmp_path).load(in_full=True)
    assert lines(caplog) == []


def canary(engine: Engine) -> list[Tensor]:
    batches: list[list[Encoding]] = engine.canary()
    return [torch.from_numpy(output.scores) for batch in batches for output in engine.run(batch)]


@pytest.mark.usefixtures("map_at_once")
def test_outputs_that_are_not_finite_are_blamed_on_the_cache_first(checkpoint: Checkpoint, tmp_path: Path) -> None:
    engine = Engine.load(checkpoint, precision="float32", weight_cache=tmp_path)
    known = canary(engine)
    file = cached_file(tmp_path)
    size = file.stat().st_size
    change(file, size // 2, b"\xff" * (size // 3))
    engine = Engine.load(checkpoint, precision="float32", weight_cache=tmp_path)
    assert not engine.has_found_damage
    engine.warm_up()
    assert engine.has_found_damage
    assert are_equal(canary(engine), known)


@pytest.mark.usefixtures("map_at_once")
def test_outputs_that_are_not_finite_with_sound_weights_are_blamed_on_the_model(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load(checkpoint, precision="float32", weight_cache=tmp_path)
    encode = Engine.hidden_states
    monkeypatch.setattr(Engine, "hidden_states", lambda self, packed: encode(self, packed) * torch.nan)
    with pytest.raises(CheckpointError, match="not finite; its weights are damaged"):
        engine.warm_up()
    assert cached_file(tmp_path).exists()


def test_weights_that_are_not_cached_are_never_damaged(checkpoint: Checkpoint) -> None:
    engine = Engine.load(checkpoint, precision="float32", weight_cache=None)
    engine.require_sound_weights()
    assert not engine.replace_damaged_weights()
    assert not engine.has_found_damage


def test_a_changed_config_does_not_map_weights_of_other_shapes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", num_layers=1, file_format="bin")
    numbers(loader(describe(model, "test"), tmp_path / "cache"))
    config = (model / "config.json").read_text(encoding="utf-8")
    changed = config.replace('"intermediate_size": 256', '"intermediate_size": 128')
    assert changed != config
    (model / "config.json").write_text(changed, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: tensor .* has shape"):
        loader(describe(model, "test"), tmp_path / "cache").load()
