"""What the writer writes is what the library reads, and a changed byte is noticed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from service.engine.safetensors_writer import is_sound, num_bytes, write

TENSORS = {
    "matrix": torch.arange(6.0).view(2, 3),
    "transposed": torch.arange(12.0).view(3, 4).T,
    "half": torch.tensor([0.5, -0.25], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "名字": torch.ones(5),
    "round": torch.arange(128.0).view(8, 16),
    "codes": torch.arange(-64, 64, dtype=torch.int8),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "zeros": torch.zeros(3, dtype=torch.int32),
    "small": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn),
}


def ignore(done: int) -> None:
    pass


def test_the_library_reads_it(tmp_path: Path) -> None:
    told: list[int] = []
    write(tmp_path / "file", TENSORS, told.append)
    read = load_file(tmp_path / "file")
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    assert told[-1] == num_bytes(TENSORS) == sum(tensor.nbytes for tensor in read.values())


def test_what_has_a_round_size_begins_at_a_round_place(tmp_path: Path) -> None:
    write(tmp_path / "file", TENSORS, ignore)
    with safe_open(tmp_path / "file", framework="pt") as opened:
        assert list(opened.offset_keys())[:3] == ["empty", "round", "codes"]
        assert opened.metadata()["format"] == "pt"
    length = int.from_bytes((tmp_path / "file").read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write(file, TENSORS, ignore)
    sound = file.read_bytes()
    assert is_sound(file)
    for place in (40, 200, len(sound) - 1):  # the checksum itself, a name, a number
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert not is_sound(file)
    file.write_bytes(sound[:-1])
    assert not is_sound(file)
