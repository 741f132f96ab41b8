"""The cache of converted weights: file names, lock, clean-up and disk space. The files need not be weights here."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from service.checkpoints import converted
from service.checkpoints.converted import WORTHWHILE_BYTES, CacheEntry, files_to_read, form_of, is_worthwhile, lock
from service.checkpoints.files import read_ahead
from service.settings_sources import weight_cache_folder

MANY = 1 << 60


def entry(folder: Path, *sources: Path, form: str = "bfloat16-gpu", origin: str = "IDEA/Model@main") -> CacheEntry:
    return CacheEntry.of(folder, origin, sources, form)


def written(cached: CacheEntry, content: bytes = b"weights") -> Path:
    with lock(cached.file.parent), cached.write_entry(len(content)) as temporary:
        temporary.write_bytes(content)
    return cached.file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"pickled")
    return file


def test_the_file_name_has_the_source_and_the_form(tmp_path: Path, source: Path) -> None:
    assert entry(tmp_path, source).file.name.startswith("Model_main-")
    assert "-bfloat16-gpu-" in entry(tmp_path, source).file.name
    assert entry(tmp_path, source) == entry(tmp_path, source)
    assert entry(tmp_path, source) != entry(tmp_path, source, form="float32-gpu")


def test_a_link_has_the_entry_of_its_target(tmp_path: Path, source: Path) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to(source)
    assert entry(tmp_path, link) == entry(tmp_path, source)


def test_the_file_changes_with_size_and_time_of_the_source(tmp_path: Path, source: Path) -> None:
    first = entry(tmp_path, source)
    os.utime(source, (1, 1))
    second = entry(tmp_path, source)
    source.write_bytes(b"more is pickled")
    os.utime(source, (1, 1))
    assert len({first.file, second.file, entry(tmp_path, source).file}) == 3


def test_a_new_file_replaces_old_ones_of_the_same_source_and_form(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    old = written(entry(folder, source))
    kept = [written(entry(folder, source, form="float32-gpu")), written(entry(folder, source, origin="other"))]
    os.utime(source, (1, 1))
    new = written(entry(folder, source))
    assert not old.exists()
    assert all(file.exists() for file in (new, *kept))


def test_partial_files_of_an_exited_process_are_removed(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "half.safetensors.part").write_bytes(b"half")
    written(entry(folder, source))
    assert not list(folder.glob("*.part"))


def test_a_failed_write_leaves_no_file(tmp_path: Path, source: Path) -> None:
    def fail(cached: CacheEntry) -> None:
        with lock(cached.file.parent), cached.write_entry(4) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        fail(entry(tmp_path / "cache", source))
    assert not list((tmp_path / "cache").glob("*.safetensors*"))


def test_too_little_disk_space_is_an_error_before_the_write(tmp_path: Path, source: Path) -> None:
    cached = entry(tmp_path, source)
    with (
        pytest.raises(OSError, match=r"GB are free; the weights need .* GB, and .* GB must stay free"),
        cached.write_entry(MANY),
    ):
        pytest.fail("the body must not run")


def test_files_to_read_are_the_cached_or_the_source_files(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"

    def to_read(*forms: str, folder: Path | None = cache) -> list[Path]:
        return list(files_to_read(folder, "IDEA/Model@main", (source,), forms))

    assert to_read("bfloat16-gpu", "float32-gpu") == [source]
    cached = written(entry(cache, source, form="float32-gpu"))
    assert to_read("bfloat16-gpu", "float32-gpu") == to_read("float32-gpu") == [cached]
    assert to_read("bfloat16-gpu") == to_read("float32-gpu", folder=None) == [source]


def test_the_file_changes_with_the_version_of_torch(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = written(entry(tmp_path / "cache", source))
    monkeypatch.setattr(converted, "version", lambda name: f"{name} of tomorrow")
    new = written(entry(tmp_path / "cache", source))
    assert new != old
    assert not old.exists()


def test_the_form_depends_on_device_precision_and_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    assert form_of("cuda", "bfloat16", "none", "torch") == "bfloat16-gpu"
    assert form_of("cuda", "bfloat16", "fp8", "torch") == "fp8-bfloat16-gpu"
    monkeypatch.setattr(converted.host, "cpu_features", lambda: frozenset({"avx2", "fma"}))
    one = form_of("cpu", "float32", "int8", "torch")
    assert re.fullmatch("int8-float32-torch-cpu-[0-9a-f]{6}", one)
    assert one == form_of("cpu", "float32", "int8", "torch")
    monkeypatch.setattr(converted.host, "cpu_features", lambda: frozenset({"avx2", "fma", "avx512f"}))
    assert one != form_of("cpu", "float32", "int8", "torch")


def test_is_worthwhile_depends_on_format_size_and_device(tmp_path: Path, source: Path) -> None:
    safe = tmp_path / "model.safetensors"
    safe.touch()
    os.truncate(safe, WORTHWHILE_BYTES - 1)
    assert not is_worthwhile((safe,), "cpu")
    assert is_worthwhile((source,), "cpu")
    assert is_worthwhile((source,), "cuda")
    os.truncate(safe, WORTHWHILE_BYTES)
    assert is_worthwhile((safe,), "cpu")
    assert not is_worthwhile((safe,), "cuda")


def test_read_ahead_ends_and_ignores_missing_files(tmp_path: Path, source: Path) -> None:
    read_ahead([source, tmp_path / "not there", source])


@pytest.mark.parametrize(
    ("setting", "environ", "folder"),
    [
        ("auto", {"XDG_CACHE_HOME": "/caches"}, Path("/caches/erlangshen/weights")),
        ("auto", {}, Path.home() / ".cache/erlangshen/weights"),
        ("auto", {"XDG_CACHE_HOME": "not/absolute"}, Path.home() / ".cache/erlangshen/weights"),
        ("/fast/disk", {"XDG_CACHE_HOME": "/caches"}, Path("/fast/disk")),
        ("off", {"XDG_CACHE_HOME": "/caches"}, None),
        ("", {"XDG_CACHE_HOME": "/caches"}, None),
    ],
)
def test_weight_cache_folder_follows_the_setting_and_xdg_cache_home(
    setting: str, environ: dict[str, str], folder: Path | None
) -> None:
    assert weight_cache_folder(setting, environ) == folder
