"""One layer with the sizes of a model, of other numbers: what the self-test compares, and what is timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from service.checkpoints.shape import Shape
from service.engine.linear import Linear
from service.engine.ops import Norm
from service.engine.packing import Layout
from service.engine.weights import MAPS, Layer, Weights, layer_name

Fill = Callable[..., Tensor]
"""Makes a tensor of these sizes."""
MakeMap = Callable[[str, Tensor, Tensor], Linear]
"""Of a name, a weight [out, in] and a bias [out]."""


def sample_shape(shape: Shape) -> Shape:
    """The same hidden sizes and heads, with one layer and few ids and positions."""
    return replace(shape, num_layers=1, vocab_size=64, max_positions=64, first_position=0)


def sample_tokens(sample: Shape, layout: Layout) -> Tensor:
    """Ids, segment ids and positions [3, tokens] for rows of any length."""
    places = torch.arange(layout.num_tokens, dtype=torch.int32)
    return torch.stack([places * 7 % sample.vocab_size, places % sample.num_segments, places % sample.max_positions])


def make_sample(shape: Shape, fill: Fill, make_map: MakeMap) -> Weights:
    """The weights of a pre-norm encoder of `sample_shape`. The other kind has the same steps in another order."""
    hidden, shape = shape.hidden_size, sample_shape(shape)

    def make(field: str) -> Linear:
        num_out, num_in = shape.maps[field]
        name = f"{layer_name(0)}.{MAPS[field]}"
        return make_map(name, fill(num_out, num_in) / math.sqrt(num_in), fill(num_out))

    norm = Norm(torch.ones_like(fill(hidden)), fill(hidden), shape.norm_eps)
    layer = Layer(
        attention_norm=norm,
        qkv=make("qkv"),
        attention_out=make("attention_out"),
        ffn_norm=norm,
        ffn_in=make("ffn_in"),
        ffn_out=make("ffn_out"),
    )
    return Weights(
        words=fill(shape.vocab_size, hidden),
        positions=fill(shape.max_positions, hidden),
        segments=fill(shape.num_segments, hidden),
        layers=(layer,),
        final_norm=norm,
    )
