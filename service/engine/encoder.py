"""The forward pass over packed rows: pre-norm MegatronBert, post-norm BERT and RoBERTa, ids to final hidden states.

Source: modeling_megatron_bert.py, modeling_bert.py and modeling_xlm_roberta.py of transformers.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.checkpoints.shape import Shape
from service.engine.attention_backends import Attend
from service.engine.ops import Gelu, Norm
from service.engine.weights import Layer, Weights


def encode(weights: Weights, shape: Shape, tokens: Tensor, attend: Attend, selected: Tensor | None = None) -> Tensor:
    """The final hidden states [tokens, hidden] of ids, segment ids and positions, [3, tokens].

    Those of the `selected` tokens, where some are: of the others the last layer computes keys and values alone.
    """
    hidden = _embed(weights, tokens)
    if weights.final_norm:
        return _pre_norm_layers(hidden, weights.layers, weights.final_norm, shape, attend, selected)
    return _post_norm_layers(hidden, weights.layers, shape, attend, selected)


def _embed(weights: Weights, tokens: Tensor) -> Tensor:
    """The input of the first layer, [tokens, hidden]."""
    ids, segment_ids, positions = tokens
    hidden = F.embedding(ids, weights.words)
    hidden += F.embedding(segment_ids, weights.segments)
    hidden += F.embedding(positions, weights.positions)
    return weights.embedding_norm(hidden) if weights.embedding_norm else hidden


def gelu_of(shape: Shape) -> Gelu:
    return "tanh" if shape.activation == "gelu_new" else "none"


def _pre_norm_layers(
    hidden: Tensor,
    layers: tuple[Layer, ...],
    final_norm: Norm,
    shape: Shape,
    attend: Attend,
    selected: Tensor | None,
) -> Tensor:
    """Each residual sum is normalized for its consumer: the next layer, or for the last layer the readouts.

    Tensors end with their last use: of a full batch, each is nearly as large as the maps of a layer.
    """
    following = (*(layer.attention_norm for layer in layers[1:]), final_norm)
    normed = layers[0].attention_norm(hidden)
    for layer, next_norm in zip(layers, following, strict=True):
        context = _attention(normed, layer, shape, attend)
        if selected is not None and layer is layers[-1]:
            context, hidden = context[selected], hidden[selected]
        del normed
        hidden, inner = layer.attention_out.add_norm(context, hidden, layer.ffn_norm)
        del context
        inner = layer.ffn_in.gelu(inner, gelu_of(shape))
        hidden, normed = layer.ffn_out.add_norm(inner, hidden, next_norm)
    return normed


def _post_norm_layers(
    hidden: Tensor, layers: tuple[Layer, ...], shape: Shape, attend: Attend, selected: Tensor | None
) -> Tensor:
    for layer in layers:
        context = _attention(hidden, layer, shape, attend)
        if selected is not None and layer is layers[-1]:
            context, hidden = context[selected], hidden[selected]
        _, hidden = layer.attention_out.add_norm(context, hidden, layer.attention_norm)
        inner = layer.ffn_in.gelu(hidden, gelu_of(shape))
        _, hidden = layer.ffn_out.add_norm(inner, hidden, layer.ffn_norm)
    return hidden


def _attention(hidden: Tensor, layer: Layer, shape: Shape, attend: Attend) -> Tensor:
    """The context of all heads, [tokens, hidden], before the output projection."""
    return attend(layer.qkv(hidden).view(-1, 3, shape.num_heads, shape.head_size))
