"""Engines of random weights made in place, without a file: what a GPU computes does not depend on what they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint, Shape
from service.domain import Cls, Encoding, Quantization
from service.engine import linear
from service.engine.device import DTYPES
from service.engine.engine import Engine
from service.engine.linear import Linear
from service.engine.ops import Norm
from service.engine.weights import Layer, Weights

LARGE = Shape(24, 2048, 8, 8192, 21_248, 512, 2, 1e-12, "gelu_new")
"""Erlangshen-MegatronBert-1.3B."""
NARROW = Shape(4, 512, 2, 2048, 1000, 512, 2, 1e-12, "gelu_new")
"""Its head size, 256, in a model that a CPU computes in a moment."""
TINY = Shape(2, 64, 2, 128, 1000, 512, 2, 1e-12, "gelu_new")


class Draw:
    """Tensors of a model, one after the other; the same from one seed, whatever they become."""

    def __init__(
        self, source: torch.device, device: torch.device, dtype: torch.dtype, linear_class: type[Linear]
    ) -> None:
        self._source = source
        self._generator = torch.Generator(source).manual_seed(1)
        self._device = device
        self._dtype = dtype
        self._linear_class = linear_class

    def normal(self, *sizes: int, deviation: float = 1.0) -> Tensor:
        drawn = torch.randn(sizes, generator=self._generator, device=self._source) * deviation
        return drawn.to(self._device, self._dtype)

    def map(self, num_out: int, num_in: int) -> Linear:
        return self._linear_class.of(self.normal(num_out, num_in, deviation=num_in**-0.5), self.normal(num_out) / 10)

    def norm(self, size: int) -> Norm:
        return Norm(1 + self.normal(size) / 10, self.normal(size) / 10, 1e-12)

    def layer(self, shape: Shape) -> Layer:
        hidden, ffn = shape.hidden_size, shape.ffn_size
        return Layer(
            attention_norm=self.norm(hidden),
            qkv=self.map(3 * hidden, hidden),
            attention_out=self.map(hidden, hidden),
            ffn_norm=self.norm(hidden),
            ffn_in=self.map(ffn, hidden),
            ffn_out=self.map(hidden, ffn),
        )

    def weights(self, shape: Shape) -> Weights:
        return Weights(
            words=self.normal(shape.vocab_size, shape.hidden_size),
            positions=self.normal(shape.max_positions, shape.hidden_size),
            segments=self.normal(shape.num_segments, shape.hidden_size),
            layers=tuple(self.layer(shape) for _ in range(shape.num_layers)),
            final_norm=self.norm(shape.hidden_size),
        )


def make_engine(
    shape: Shape,
    device: torch.device,
    precision: str = "bfloat16",
    *,
    quantization: Quantization = "none",
    backend: str = "auto",
    source: torch.device | None = None,
) -> Engine:
    """`source` is where the numbers are drawn: two engines are of one model if it is the same for both."""
    dtype = DTYPES[precision]
    draw = Draw(source or device, device, dtype, linear.choose(device, dtype, quantization))
    return Engine(
        Checkpoint("random", "random", None, Path(), "megatron-bert", "encoder", shape),
        draw.weights(shape),
        device=device,
        precision=precision,
        backend=backend,
    )


def rows(shape: Shape, lengths: Sequence[int], options: Sequence[int] = ()) -> list[Encoding]:
    """Rows of these lengths; with `options`, their lengths, each row is a choice between so many."""
    random = np.random.default_rng(len(lengths))
    ends = np.cumsum([1, *options]).tolist()
    blocks = tuple(pairwise(ends))
    return [
        Encoding(
            "random",
            random.integers(0, shape.vocab_size, length, dtype=np.int32),
            np.zeros(length, dtype=np.int32),
            np.arange(length, dtype=np.int32),
            Cls(),
            blocks,
        )
        for length in lengths
    ]
