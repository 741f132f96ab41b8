"""4-bit blocks: expanded exactly; those that are not declared or not whole are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.checkpoints.checkpoint import BLOCK_SIZE, BLOCKS, describe
from service.checkpoints.shape import Kind
from service.domain import Mean
from service.engine import blocks as packed_blocks
from service.engine.blocks import BLOCK_BYTES, expand_into
from service.engine.engine import Engine
from service.errors import CheckpointError
from tests.checkpoints import FileFormat, make_checkpoint, write_weights
from tests.unit.engine.rows import plain_row

Tensors = dict[str, torch.Tensor]
DECLARED = {"quant_method": BLOCKS, "block_size": BLOCK_SIZE}
QUERY = "encoder.layer.0.attention.self.query.weight"


def weights_of(block: bytes) -> list[float]:
    """The definition, a bit at a time."""
    (scale,) = struct.unpack("<e", block[:2])
    low = [byte % 16 for byte in block[2:]]
    high = [byte // 16 for byte in block[2:]]
    return [(q - 8) * scale for q in low + high]


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Blocks [out, in / 32, 18] of a weight [out, in], rounded."""
    groups = weight.view(weight.shape[0], -1, BLOCK_SIZE)
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half()
    q = (groups / scale.float()).round().clamp(-8, 7).add(8).to(torch.uint8)
    return torch.cat([scale.view(torch.uint8), q[..., :16] | q[..., 16:] << 4], dim=-1)


def make_pair(
    path: Path,
    kind: Kind = "masked-lm",
    file_format: FileFormat = "safetensors",
    change: Callable[..., None] | None = None,
) -> tuple[Path, Path]:
    """A checkpoint of blocks, and the same with the weights in them; `change` is called with the packed tensors."""
    tensors = load_file(make_checkpoint(path / "source", family="bert", kind=kind, num_layers=2) / "model.safetensors")
    packed = {name: pack(tensor) if _is_packed(name) else tensor for name, tensor in tensors.items()}
    plain = {name: expanded(tensor) if _is_packed(name) else tensor for name, tensor in packed.items()}
    if change:
        change(packed)
    for name, content in (("packed", packed), ("plain", plain)):
        folder = make_checkpoint(path / name, family="bert", kind=kind, num_layers=2)
        (folder / "model.safetensors").unlink()
        write_weights(folder, content, file_format)
    declare(path / "packed", DECLARED)
    return path / "packed", path / "plain"


def _is_packed(name: str) -> bool:
    return name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight", "word_embeddings.weight")) or (
        name == "cls.predictions.decoder.weight"
    )


def expanded(blocks: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[each for block in row for each in weights_of(bytes(block))] for row in blocks.tolist()])


def declare(path: Path, config: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))


def answer(path: Path, precision: str = "float32", cache: Path | None = None) -> np.ndarray:
    engine = Engine.load(describe(path, "test"), precision=precision, weight_cache=cache)
    return engine.run([plain_row(9, Mean())])[0].scores


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_blocks_expand_to_their_definition(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_blocks, "_ELEMENTS_AT_ONCE", 100)  # several pieces, and a shorter last one
    random = np.random.default_rng(0)
    blocks = torch.from_numpy(random.integers(0, 256, (7, 3, BLOCK_BYTES), dtype=np.uint8))
    scales = [0.0, -0.0, 6e-8, -6e-8, 1.0, -1.0, 65504.0, 0.1]
    for index, scale in enumerate(scales):
        blocks[index % 7, index // 7, :2] = torch.frombuffer(bytearray(struct.pack("<e", scale)), dtype=torch.uint8)
    blocks[..., 1] &= 0b10111111  # no infinity and no NaN
    blocks[0, 0, 2:] = torch.arange(0, 256, 17, dtype=torch.uint8)
    out = torch.empty(7, 96, dtype=precision)
    expand_into(blocks, out)
    assert torch.equal(out, expanded(blocks).to(precision))


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_checkpoint_of_blocks_answers_as_its_weights_do(
    tmp_path: Path, file_format: FileFormat, precision: str
) -> None:
    packed, plain = make_pair(tmp_path, file_format=file_format)
    assert np.array_equal(answer(packed, precision), answer(plain, precision))


def test_blocks_are_cached_as_weights(tmp_path: Path) -> None:
    packed, plain = make_pair(tmp_path, file_format="bin")
    for _ in range(2):  # converted, then mapped
        assert np.array_equal(answer(packed, cache=tmp_path / "cache"), answer(plain))


def test_blocks_that_config_json_does_not_declare_are_refused(tmp_path: Path) -> None:
    packed, _ = make_pair(tmp_path)
    declare(packed, None)
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight has shape \[\d+, 2, 18\]; wanted \[\d+, 64\]"):
        answer(packed)


def test_blocks_of_another_size_are_refused(tmp_path: Path) -> None:
    def cut(tensors: Tensors) -> None:
        name = next(name for name in tensors if name.endswith(QUERY))
        tensors[name] = tensors[name][..., :17].contiguous()

    packed, _ = make_pair(tmp_path, change=cut)
    with pytest.raises(CheckpointError, match=r"query\.weight has shape \[64, 2, 17\]; wanted \[64, 64\]"):
        answer(packed)


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        name = next(name for name in tensors if name.endswith(QUERY))
        tensors[name][3, 1, :2] = torch.frombuffer(bytearray(struct.pack("<e", float("inf"))), dtype=torch.uint8)

    packed, _ = make_pair(tmp_path, change=damage)
    with pytest.raises(CheckpointError, match=r"query\.weight holds NaN or infinity as torch\.float32"):
        answer(packed)
