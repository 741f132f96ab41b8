"""The ranges of the inputs of the linear maps on known rows, from which maps with fixed scales are made."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.shape import Shape
from service.domain import Cls, Encoding
from service.engine.attention_backends import prepare_sdpa
from service.engine.encoder import encode
from service.engine.linear import InputRange, Linear
from service.engine.ops import Gelu, Norm
from service.engine.packing import pack
from service.engine.weights import MAPS, Layer, Weights, layer_name

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class _Recorder(Linear):
    """Computes as another map does, and keeps the range of the inputs of its last call."""

    def __init__(self, exact: Linear) -> None:
        self.range: InputRange | None = None
        self._exact = exact

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        raise NotImplementedError

    def __call__(self, hidden: Tensor) -> Tensor:
        self.range = InputRange.of(hidden)
        return self._exact(hidden)

    def gelu(self, hidden: Tensor, approximate: Gelu) -> Tensor:
        self.range = InputRange.of(hidden)
        return self._exact.gelu(hidden, approximate)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        self.range = InputRange.of(hidden)
        return self._exact.add_norm(hidden, residual, norm)


_LENGTHS = (1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
"""Short rows too: the fewer tokens a token attends to, the further its context may lie from zero."""


def random_rows(shape: Shape) -> list[Encoding]:
    """Rows of random ids, for models that come without texts, as in benchmarks."""
    rng = np.random.default_rng(0)
    return [_random_row(min(length, shape.max_positions), shape, rng) for length in _LENGTHS]


def _random_row(length: int, shape: Shape, rng: np.random.Generator) -> Encoding:
    ids = rng.integers(shape.vocab_size, size=length, dtype=np.int32)
    return Encoding("random", ids, np.zeros(length, dtype=np.int32), np.arange(length, dtype=np.int32), Cls())


@torch.inference_mode()
def measure_ranges(weights: Weights, shape: Shape, rows: Sequence[Encoding]) -> dict[str, InputRange]:
    """The range of the inputs of each map of the encoder, by the name of the map."""
    started = time.monotonic()
    recorders: dict[str, _Recorder] = {}
    layers = tuple(_recording(layer, layer_name(index), recorders) for index, layer in enumerate(weights.layers))
    recording = replace(weights, layers=layers)
    packed = pack(rows, CPU)
    layout = replace(packed.layout, num_tokens=packed.offsets[-1])  # without the padding, which no row sees
    tokens = packed.tokens[:, : layout.num_tokens]
    encode(recording, shape, tokens, prepare_sdpa(layout, CPU, weights.words.dtype))
    extra = {"tokens": layout.num_tokens, "seconds": round(time.monotonic() - started, 1)}
    logger.info("inputs measured", extra=extra)
    return {name: recorder.range for name, recorder in recorders.items() if recorder.range}


def _recording(layer: Layer, name: str, recorders: dict[str, _Recorder]) -> Layer:
    """The layer with recorders in place of its maps, which are added to `recorders` by name."""
    made = {field: _Recorder(getattr(layer, field)) for field in MAPS}
    recorders |= {f"{name}.{MAPS[field]}": recorder for field, recorder in made.items()}
    return Layer(attention_norm=layer.attention_norm, ffn_norm=layer.ffn_norm, **made)
