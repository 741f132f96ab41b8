"""The model as one graph over padded rows, for ONNX: the engine's own encoder and heads, without its packing.

Inputs are int64 [batch, length] unless they say otherwise; batch and length are free:

- input_ids, attention_mask (1 for tokens, 0 for padding at the end), token_type_ids;
- of a choice model also position_ids, block_ids (0 outside of all options, else the number of the option that a token
  belongs to, from 1) and option_positions [batch, options].

The one output is float32: `logits` [batch, classes] of a classifier, `logits` [batch, options, 2] of yes and no of a
choice model, `logits` [batch, 2, length] of a question-answering model, `sentence_embedding` [batch, dimensions] of an
embedding model, and `token_embeddings` [batch, length, hidden] of any other encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from service.checkpoints.checkpoint import Checkpoint
from service.domain import PoolingMode
from service.engine.encoder import encode, gelu_of
from service.engine.weights import DenseLayer, Weights

PLAIN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CHOICE_INPUTS = (*PLAIN_INPUTS, "position_ids", "block_ids", "option_positions")


def inputs_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    return CHOICE_INPUTS if checkpoint.kind == "masked-lm" else PLAIN_INPUTS


def output_of(checkpoint: Checkpoint) -> str:
    if checkpoint.kind != "encoder":
        return "logits"
    return "sentence_embedding" if checkpoint.embedding else "token_embeddings"


class Graph(nn.Module):
    """`yes_no` are the ids of the two words that a choice model answers with."""

    def __init__(self, checkpoint: Checkpoint, weights: Weights, yes_no: tuple[int, int] | None) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._yes_no = yes_no
        self._weights: Weights = _register(self, weights, "weights")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        option_positions: Tensor | None = None,
    ) -> Tensor:
        length = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length).expand_as(input_ids)
        hidden = self._encode(input_ids, token_type_ids, position_ids, _scores_mask(attention_mask, block_ids))
        weights, kind = self._weights, self._checkpoint.kind
        if kind == "sequence-classification":
            assert weights.labels
            return weights.labels.classifier(torch.tanh(weights.labels.pooler(hidden[:, 0])))
        if kind == "question-answering":
            assert weights.spans
            logits: Tensor = weights.spans(hidden).transpose(1, 2)
            return logits
        if kind == "masked-lm":
            assert option_positions is not None
            return self._choose(hidden, option_positions)
        return self._embed(hidden, attention_mask) if self._checkpoint.embedding else hidden

    def _encode(self, ids: Tensor, segments: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        shape = self._checkpoint.shape
        batch, length = ids.shape

        def attend(qkv: Tensor) -> Tensor:
            heads = qkv.view(batch, length, 3, shape.num_heads, shape.head_size).permute(2, 0, 3, 1, 4)
            query, key, value = heads.unbind(0)
            scores = query @ key.transpose(-1, -2) / shape.head_size**0.5 + mask
            context = scores.softmax(-1) @ value
            rows: Tensor = context.transpose(1, 2).reshape(batch * length, shape.hidden_size)
            return rows

        tokens = torch.stack([ids, segments, positions]).reshape(3, batch * length)
        return encode(self._weights, shape, tokens, attend).view(batch, length, shape.hidden_size)

    def _choose(self, hidden: Tensor, option_positions: Tensor) -> Tensor:
        head = self._weights.mlm
        assert head
        assert self._yes_no
        places = option_positions[..., None].expand(-1, -1, hidden.shape[-1])
        states = head.norm(head.transform.gelu(hidden.gather(1, places), gelu_of(self._checkpoint.shape)))
        yes_no = list(self._yes_no)
        return F.linear(states, head.decoder.weight[yes_no], head.decoder.bias[yes_no])

    def _embed(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        spec = self._checkpoint.embedding
        assert spec
        vectors = torch.cat([_pool(hidden, attention_mask, mode) for mode in spec.pooling], dim=1)
        for layer in self._weights.dense:
            vectors = _project(layer, vectors)
        return F.normalize(vectors, dim=1) if spec.normalize else vectors


def _scores_mask(attention_mask: Tensor, block_ids: Tensor | None) -> Tensor:
    """What is added to the scores of attention, [batch, 1, length or 1, length]."""
    is_seen = attention_mask[:, None, None, :] != 0
    if block_ids is not None:
        query, key = block_ids[:, None, :, None], block_ids[:, None, None, :]
        is_seen = is_seen & ((query == 0) | (key == 0) | (query == key))
    return torch.where(is_seen, 0.0, torch.finfo(torch.float32).min)


def _pool(hidden: Tensor, attention_mask: Tensor, mode: PoolingMode) -> Tensor:
    mask = attention_mask[..., None].to(hidden.dtype)
    count = mask.sum(1)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        last = (attention_mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, last)[:, 0]
    if mode == "max":
        return torch.where(mask > 0, hidden, torch.finfo(torch.float32).min).amax(1)
    if mode == "weightedmean":
        mask = mask * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
        count = mask.sum(1)
    total = (hidden * mask).sum(1)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _project(layer: DenseLayer, vectors: Tensor) -> Tensor:
    out = layer.activation(F.linear(vectors, layer.weight, layer.bias))
    if layer.is_residual:
        return out + (vectors if layer.shortcut is None else F.linear(vectors, layer.shortcut))
    return out


def _register(module: nn.Module, value: Any, name: str) -> Any:
    """The same weights, whose tensors are buffers of the module: an export keeps those as the model's own."""
    if isinstance(value, Tensor):
        module.register_buffer(name, value.float() if value.is_floating_point() else value)
        return module.get_buffer(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_register(module, each, f"{name}_{index}") for index, each in enumerate(value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(
        value,
        **{each.name: _register(module, getattr(value, each.name), f"{name}_{each.name}") for each in fields(value)},
    )
