"""Files with checksums: any change is found, and one of the head before the file is used."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from service.checkpoints.checked_file import CheckedFile, DamagedFile, Part, write_checked

CONTENT = bytes(range(256)) * 12
HEAD_CONTENT = b"a layout" * 30


def part(name: str, content: bytes) -> Part:
    return Part(name, "U8", [len(content)], len(content), lambda: content)


HEAD = [part("w.layout", HEAD_CONTENT)]
BODY = [part("w", CONTENT), part("名字", b"\x01\x02\x03"), part("empty", b"")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("checked") / "weights.safetensors"
    assert write_checked(file, HEAD, BODY) == file.stat().st_size
    return file


def is_found(file: Path) -> bool:
    """Whether the file is refused, by its head or by a complete check."""
    try:
        CheckedFile.open(file).check()
    except DamagedFile:
        return True
    return False


def test_the_library_reads_the_tensors(written: Path) -> None:
    read = load_file(written)
    assert {name for name in read if not name.endswith(".padding")} == {"w.layout", "w", "名字", "empty"}
    assert read["w"].tobytes() == CONTENT
    assert read["w.layout"].tobytes() == HEAD_CONTENT
    assert not is_found(written)
    assert CheckedFile.open(written).size == written.stat().st_size


def test_every_single_byte_is_covered(written: Path, tmp_path: Path) -> None:
    sound = written.read_bytes()
    head_bytes = sound.index(HEAD_CONTENT) + len(HEAD_CONTENT)
    copy = tmp_path / "copy"
    for place in range(len(sound)):
        copy.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << place % 8)]) + sound[place + 1 :])
        if place < head_bytes:
            place_of_body_sum = sound.index(b'"crc32":"') + len(b'"crc32":"') + 9
            if not place_of_body_sum <= place < place_of_body_sum + 8:
                with pytest.raises(DamagedFile):
                    CheckedFile.open(copy)
        assert is_found(copy), place


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found(written: Path, tmp_path: Path, data: st.DataObject) -> None:
    sound = written.read_bytes()
    place = data.draw(st.integers(0, len(sound)))
    kind = data.draw(st.sampled_from(["overwrite", "cut", "insert", "append", "zero"]))
    noise = data.draw(st.binary(min_size=1, max_size=80))
    match kind:
        case "overwrite":
            damaged = (sound[:place] + noise + sound[place + len(noise) :])[: len(sound)]
        case "cut":
            damaged = sound[:place]
        case "insert":
            damaged = sound[:place] + noise + sound[place:]
        case "append":
            damaged = sound + noise
        case _:
            damaged = sound[:place].ljust(len(sound), b"\0")
    (tmp_path / "copy").write_bytes(damaged)
    assert is_found(tmp_path / "copy") == (damaged != sound)


def test_damage_after_opening_is_found_even_once_the_file_is_removed(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(written.read_bytes())
    opened = CheckedFile.open(copy)
    opened.check(share=0.5)
    assert opened.is_in_place()
    with copy.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")
    copy.unlink()
    assert not opened.is_in_place()
    with pytest.raises(DamagedFile, match=r"its content has the CRC-32 \w{8}; wanted \w{8}"):
        opened.check()


def test_a_file_that_shrinks_while_it_is_open_is_found(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(written.read_bytes())
    opened = CheckedFile.open(copy)
    os.truncate(copy, copy.stat().st_size - 1)
    with pytest.raises(DamagedFile, match=r"it has \d+ bytes; wanted \d+"):
        opened.check()


def make_folder(file: Path) -> None:
    file.mkdir()


def make_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(file))


def make_circle(file: Path) -> None:
    file.symlink_to(file)


@pytest.mark.parametrize("make", [os.mkfifo, make_folder, make_socket, make_circle, Path.touch])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "file")
    with pytest.raises(DamagedFile):
        CheckedFile.open(tmp_path / "file")


def test_a_missing_file_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CheckedFile.open(tmp_path / "file")


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, DamagedFile), (errno.ENOMEM, OSError)])
def test_a_disk_error_is_damage_and_a_lack_of_memory_is_not(
    written: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    opened = CheckedFile.open(written)

    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(error):
        opened.check()
