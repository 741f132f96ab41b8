"""A fresh MegatronBert, initialised so that a small corpus is enough.

Two departures from random weights: word embeddings come counted from the corpus, and half of the heads of the first
layers start with equal query and key projections, so that a token attends to tokens like it from the first step (after
Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023). What a text and a snippet, a question or
a paraphrase have in common is found much sooner that way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

from service.domain import FloatArray
from service.training.recipe import Fresh

EMBEDDING_STD = 0.1
QUERY_GAIN = 0.9


def fresh_config(shape: Fresh, vocab_size: int, dropout: float) -> MegatronBertConfig:
    return MegatronBertConfig(
        architectures=["MegatronBertForMaskedLM"],
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_size,
        max_position_embeddings=shape.max_positions,
        hidden_act="gelu_new",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.6 / shape.hidden_size**0.5,
        layer_norm_eps=1e-12,
    )


def fresh_model(shape: Fresh, vocab_size: int, embeddings: FloatArray, dropout: float) -> MegatronBertForMaskedLM:
    """A masked LM with tied embeddings; the caller has seeded torch."""
    model = MegatronBertForMaskedLM(fresh_config(shape, vocab_size, dropout))
    with torch.no_grad():
        tables = model.bert.embeddings
        tables.word_embeddings.weight.copy_(torch.from_numpy(embeddings) * EMBEDDING_STD)
        tables.position_embeddings.weight.mul_(0.25)
        for index in range(min(shape.matching_layers, shape.num_layers)):
            projection = model.bert.encoder.get_submodule(f"layer.{index}.attention.self").get_parameter
            _match_similar(projection("query.weight"), projection("key.weight"))
    return model


def _match_similar(query: Tensor, key: Tensor) -> None:
    """In half of the heads queries and keys become one projection, so that equal tokens score highest."""
    size = len(query)
    rotation = QUERY_GAIN * torch.linalg.qr(torch.randn(size, size))[0]
    query[: size // 2] = rotation[: size // 2]
    key[: size // 2] = rotation[: size // 2]
