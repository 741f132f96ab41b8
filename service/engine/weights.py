"""What the weights of a model are, and under which names they go; where they come from is not known here.

Names are the upstream ones, in their canonical form (see `tensor_files`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.engine.linear import Linear, Plain
from service.engine.pointwise import Norm
from service.engine.tensor_files import DECODER, WORDS, TensorFiles


@dataclass(frozen=True, slots=True)
class Layer:
    """One encoder layer; the norms stand before their blocks in MegatronBert, after them in BERT."""

    attention_norm: Norm
    qkv: Linear
    attention_out: Linear
    ffn_norm: Norm
    ffn_in: Linear
    ffn_out: Linear


@dataclass(frozen=True, slots=True)
class MlmHead:
    """decoder.weight is the word embedding itself, unless the checkpoint has untied them."""

    transform: Plain
    norm: Norm
    decoder: Plain


@dataclass(frozen=True, slots=True)
class LabelHead:
    pooler: Plain
    classifier: Plain


@dataclass(frozen=True, slots=True)
class Weights:
    """embedding_norm is BERT's only, final_norm MegatronBert's only."""

    words: Tensor
    positions: Tensor
    segments: Tensor
    layers: tuple[Layer, ...]
    embedding_norm: Norm | None = None
    final_norm: Norm | None = None
    mlm: MlmHead | None = None
    labels: LabelHead | None = None


class Take(Protocol):
    """How one gets at them. Both verbs raise CheckpointError for what is not there or is not as it should be."""

    def tensor(self, name: str, *sizes: int) -> Tensor: ...

    def linear(self, name: str, parts: Sequence[str], num_out: int, num_in: int) -> Linear:
        """A map of the encoder; upstream it is the maps of the names `parts`, one on top of the other."""
        ...


def assemble(checkpoint: Checkpoint, files: TensorFiles, take: Take) -> Weights:
    """Takes every tensor of the model once; `files` are where they are, and what is not there is not asked for."""
    return _Assembly(checkpoint, files, take).weights()


class _Assembly:
    def __init__(self, checkpoint: Checkpoint, files: TensorFiles, take: Take) -> None:
        self._checkpoint = checkpoint
        self._shape = checkpoint.shape
        self._files = files
        self._take = take

    def weights(self) -> Weights:
        shape, kind, take = self._shape, self._checkpoint.kind, self._take.tensor
        is_megatron = self._checkpoint.family == "megatron-bert"
        words = take(WORDS, shape.vocab_size, shape.hidden_size)
        return Weights(
            words=words,
            positions=take("embeddings.position_embeddings.weight", shape.max_positions, shape.hidden_size),
            segments=take("embeddings.token_type_embeddings.weight", shape.num_segments, shape.hidden_size),
            layers=self._layers(is_megatron),
            embedding_norm=None if is_megatron else self._norm("embeddings.LayerNorm"),
            final_norm=self._norm("encoder.ln") if is_megatron else None,
            mlm=self._mlm(words) if kind == "masked-lm" else None,
            labels=self._labels() if kind == "sequence-classification" else None,
        )

    def _layers(self, is_megatron: bool) -> tuple[Layer, ...]:
        """In the order of the file, which may count 0, 1, 10, 11: disks are quickest that way."""
        places = {name: place for place, name in enumerate(self._files.names())}
        names = [f"encoder.layer.{index}" for index in range(self._shape.num_layers)]
        in_file = sorted(names, key=lambda name: places.get(f"{name}.attention.self.query.weight", 0))
        layers = {name: self._layer(name, is_megatron) for name in in_file}
        return tuple(layers[name] for name in names)

    def _layer(self, name: str, is_megatron: bool) -> Layer:
        hidden, ffn = self._shape.hidden_size, self._shape.ffn_size
        attention = f"{name}.attention.self"
        parts = [f"{attention}.{part}" for part in ("query", "key", "value")]
        return Layer(
            attention_norm=self._norm(f"{name}.attention.ln" if is_megatron else f"{name}.attention.output.LayerNorm"),
            qkv=self._take.linear(f"{attention}.qkv", parts, 3 * hidden, hidden),
            attention_out=self._map(f"{name}.attention.output.dense", hidden, hidden),
            ffn_norm=self._norm(f"{name}.ln" if is_megatron else f"{name}.output.LayerNorm"),
            ffn_in=self._map(f"{name}.intermediate.dense", ffn, hidden),
            ffn_out=self._map(f"{name}.output.dense", hidden, ffn),
        )

    def _map(self, name: str, num_out: int, num_in: int) -> Linear:
        return self._take.linear(name, [name], num_out, num_in)

    def _mlm(self, words: Tensor) -> MlmHead:
        size, vocab_size, name = self._shape.hidden_size, self._shape.vocab_size, "cls.predictions"
        # The bias goes by two names that are one parameter; a file holds either or both.
        has_other_name_only = f"{name}.decoder.bias" in self._files and f"{name}.bias" not in self._files
        bias_name = f"{name}.decoder.bias" if has_other_name_only else f"{name}.bias"
        decoder = words if self._files.is_tied else self._take.tensor(DECODER, vocab_size, size)
        return MlmHead(
            transform=self._plain(f"{name}.transform.dense", size, size),
            norm=self._norm(f"{name}.transform.LayerNorm"),
            decoder=Plain(decoder, self._take.tensor(bias_name, vocab_size)),
        )

    def _labels(self) -> LabelHead:
        size = self._shape.hidden_size
        num_labels = len(self._checkpoint.labels) or next(iter(self._files.shape("classifier.weight")), 0)
        return LabelHead(
            pooler=self._plain("pooler.dense", size, size), classifier=self._plain("classifier", num_labels, size)
        )

    def _plain(self, name: str, num_out: int, num_in: int) -> Plain:
        take = self._take.tensor
        return Plain(take(f"{name}.weight", num_out, num_in), take(f"{name}.bias", num_out))

    def _norm(self, name: str) -> Norm:
        take, size = self._take.tensor, self._shape.hidden_size
        return Norm(take(f"{name}.weight", size), take(f"{name}.bias", size), self._shape.norm_eps)
