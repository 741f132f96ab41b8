"""The cache's names, lock and room on the disk; its files need not be weights here."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.setting_layers import weight_cache_folder
from service.weight_cache import CacheEntry, lock, to_be_read
from service.weight_files import read_ahead

MANY = 1 << 60


def entry(folder: Path, *sources: Path, precision: str = "bfloat16", origin: str = "IDEA/Model@main") -> CacheEntry:
    return CacheEntry.of(folder, origin, sources, precision)


def written(cached: CacheEntry, content: bytes = b"weights") -> Path:
    with lock(cached.file.parent), cached.being_written(len(content)) as temporary:
        temporary.write_bytes(content)
    return cached.file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"pickled")
    return file


def test_the_name_tells_the_source_and_the_precision(tmp_path: Path, source: Path) -> None:
    assert entry(tmp_path, source).file.name.startswith("Model_main-")
    assert "-bfloat16-" in entry(tmp_path, source).file.name
    assert entry(tmp_path, source) == entry(tmp_path, source)
    assert entry(tmp_path, source) != entry(tmp_path, source, precision="float32")


def test_a_link_is_what_it_points_to(tmp_path: Path, source: Path) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to(source)
    assert entry(tmp_path, link) == entry(tmp_path, source)


def test_another_size_or_time_of_the_source_is_another_file(tmp_path: Path, source: Path) -> None:
    first = entry(tmp_path, source)
    os.utime(source, (1, 1))
    second = entry(tmp_path, source)
    source.write_bytes(b"more is pickled")
    os.utime(source, (1, 1))
    assert len({first.file, second.file, entry(tmp_path, source).file}) == 3


def test_a_new_file_replaces_those_of_the_same_source_and_precision(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    old = written(entry(folder, source))
    kept = [written(entry(folder, source, precision="float32")), written(entry(folder, source, origin="other"))]
    os.utime(source, (1, 1))
    new = written(entry(folder, source))
    assert not old.exists()
    assert all(file.exists() for file in (new, *kept))


def test_what_a_dead_process_left_is_removed(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "half.safetensors.part").write_bytes(b"half")
    written(entry(folder, source))
    assert not list(folder.glob("*.part"))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, source: Path) -> None:
    def fail(cached: CacheEntry) -> None:
        with lock(cached.file.parent), cached.being_written(4) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        fail(entry(tmp_path / "cache", source))
    assert not list((tmp_path / "cache").glob("*.safetensors*"))


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, source: Path) -> None:
    cached = entry(tmp_path, source)
    with pytest.raises(OSError, match=r"GB are free, .* GB and .* GB to spare are wanted"), cached.being_written(MANY):
        pytest.fail("it must not come so far")


def test_what_a_start_will_read(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"

    def to_read(precision: str, folder: Path | None = cache, *files: Path) -> list[Path]:
        return list(to_be_read(folder, "IDEA/Model@main", files or (source,), precision))

    assert to_read("auto") == [source]
    cached = written(entry(cache, source, precision="float32"))
    assert to_read("auto") == to_read("float32") == [cached]
    assert to_read("bfloat16") == to_read("auto", None) == [source]
    safe = tmp_path / "model.safetensors"
    assert to_read("auto", cache, safe) == [safe]


def test_reading_ahead_comes_to_an_end(tmp_path: Path, source: Path) -> None:
    read_ahead([source, tmp_path / "not there"]).join(60)


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
def test_the_setting_names_the_folder(setting: str, environ: dict[str, str], folder: Path | None) -> None:
    assert weight_cache_folder(setting, environ) == folder
