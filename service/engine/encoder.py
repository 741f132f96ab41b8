"""The forward pass over packed rows: pre-norm MegatronBert and post-norm BERT, from ids to final hidden states.

Knows nothing of how attention is computed, nor of what is read from the hidden states. Compare transformers'
modeling_megatron_bert.py and modeling_bert.py.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.checkpoint import Shape
from service.engine.attention import Attend, Plan
from service.engine.packing import Packed
from service.engine.weights import Affine, Layer, Weights


def encode(weights: Weights, shape: Shape, packed: Packed, plan: Plan, attend: Attend) -> Tensor:
    """The final hidden states of all tokens, [tokens, hidden]."""
    hidden = F.embedding(packed.ids, weights.words)
    hidden += F.embedding(packed.segment_ids, weights.segments)
    hidden += F.embedding(packed.positions, weights.positions)
    if weights.embedding_norm:
        hidden = norm(hidden, weights.embedding_norm, shape)
    run_layer = _pre_norm_layer if weights.final_norm else _post_norm_layer
    for layer in weights.layers:
        hidden = run_layer(hidden, layer, shape, plan, attend)
    return norm(hidden, weights.final_norm, shape) if weights.final_norm else hidden


def linear(hidden: Tensor, affine: Affine) -> Tensor:
    return F.linear(hidden, affine.weight, affine.bias)


def norm(hidden: Tensor, affine: Affine, shape: Shape) -> Tensor:
    """A layer norm; torch sums in float32 whatever the precision is."""
    return F.layer_norm(hidden, (shape.hidden_size,), affine.weight, affine.bias, shape.norm_eps)


def activate(hidden: Tensor, shape: Shape) -> Tensor:
    return F.gelu(hidden, approximate="tanh" if shape.activation == "gelu_new" else "none")


def _pre_norm_layer(hidden: Tensor, layer: Layer, shape: Shape, plan: Plan, attend: Attend) -> Tensor:
    hidden += _attention(norm(hidden, layer.attention_norm, shape), layer, shape, plan, attend)
    hidden += _ffn(norm(hidden, layer.ffn_norm, shape), layer, shape)
    return hidden


def _post_norm_layer(hidden: Tensor, layer: Layer, shape: Shape, plan: Plan, attend: Attend) -> Tensor:
    hidden = norm(hidden + _attention(hidden, layer, shape, plan, attend), layer.attention_norm, shape)
    return norm(hidden + _ffn(hidden, layer, shape), layer.ffn_norm, shape)


def _attention(hidden: Tensor, layer: Layer, shape: Shape, plan: Plan, attend: Attend) -> Tensor:
    qkv = linear(hidden, layer.qkv).view(-1, 3, shape.num_heads, shape.head_size)
    return linear(attend(qkv, plan), layer.attention_out)


def _ffn(hidden: Tensor, layer: Layer, shape: Shape) -> Tensor:
    return linear(activate(linear(hidden, layer.ffn_in), shape), layer.ffn_out)
