"""The tensors of a checkpoint, loaded one by one into the precision and onto the device where they will be used.

Every destination is allocated once, before anything is read; each tensor of the file, which stays mapped and never
becomes memory of our own, is cast while it is copied there. Query, key and value go straight into one fused tensor.
Knows the upstream names, not what is computed with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from service.checkpoint import Checkpoint
from service.engine.tensor_files import TensorFiles
from service.errors import CheckpointError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear map or a layer norm: weight [out, in] or [size], bias [out] or [size]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One encoder layer; the norms stand before their blocks in MegatronBert, after them in BERT."""

    attention_norm: Affine
    qkv: Affine
    attention_out: Affine
    ffn_norm: Affine
    ffn_in: Affine
    ffn_out: Affine


@dataclass(frozen=True, slots=True)
class MlmHead:
    """decoder.weight is the word embedding itself, unless the checkpoint has untied them."""

    transform: Affine
    norm: Affine
    decoder: Affine


@dataclass(frozen=True, slots=True)
class LabelHead:
    pooler: Affine
    classifier: Affine


@dataclass(frozen=True, slots=True)
class Weights:
    """embedding_norm is BERT's only, final_norm MegatronBert's only."""

    words: Tensor
    positions: Tensor
    segments: Tensor
    layers: tuple[Layer, ...]
    embedding_norm: Affine | None = None
    final_norm: Affine | None = None
    mlm: MlmHead | None = None
    labels: LabelHead | None = None


_WORDS = "embeddings.word_embeddings.weight"
_Slots = dict[str, Tensor]  # canonical tensor name -> where it goes

# What a checkpoint may hold beside what its kind needs. Anything else that is unknown is an error: a model that is
# silently not the one in the file answers nonsense.
_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids", "cls.", "pooler.", "classifier.")


def load_weights(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, progress: Progress | None = None
) -> Weights:
    """Reads the weights; CheckpointError names the file, the tensor and what was wanted of it."""
    with TensorFiles.open(checkpoint.path) as files:
        slots: _Slots = {}
        weights = _Allocator(checkpoint, files, device, dtype, slots).weights()
        _refuse_unknown(files, slots)
        _fill(files, slots, progress or (lambda done, total: None))
    return weights


class _Allocator:
    """Makes the empty tensors, once the file is known to hold theirs, and notes which name each is filled from."""

    def __init__(
        self, checkpoint: Checkpoint, files: TensorFiles, device: torch.device, dtype: torch.dtype, slots: _Slots
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = checkpoint.shape
        self._files = files
        self._device = device
        self._dtype = dtype
        self._slots = slots

    def weights(self) -> Weights:
        shape, kind = self._shape, self._checkpoint.kind
        is_megatron = self._checkpoint.family == "megatron-bert"
        words = self._tensor(_WORDS, shape.vocab_size, shape.hidden_size)
        return Weights(
            words=words,
            positions=self._tensor("embeddings.position_embeddings.weight", shape.max_positions, shape.hidden_size),
            segments=self._tensor("embeddings.token_type_embeddings.weight", shape.num_segments, shape.hidden_size),
            layers=tuple(self._layer(f"encoder.layer.{index}", is_megatron) for index in range(shape.num_layers)),
            embedding_norm=None if is_megatron else self._norm("embeddings.LayerNorm"),
            final_norm=self._norm("encoder.ln") if is_megatron else None,
            mlm=self._mlm(words) if kind == "masked-lm" else None,
            labels=self._labels() if kind == "sequence-classification" else None,
        )

    def _layer(self, name: str, is_megatron: bool) -> Layer:
        hidden, ffn = self._shape.hidden_size, self._shape.ffn_size
        return Layer(
            attention_norm=self._norm(f"{name}.attention.ln" if is_megatron else f"{name}.attention.output.LayerNorm"),
            qkv=self._qkv(f"{name}.attention.self"),
            attention_out=self._linear(f"{name}.attention.output.dense", hidden, hidden),
            ffn_norm=self._norm(f"{name}.ln" if is_megatron else f"{name}.output.LayerNorm"),
            ffn_in=self._linear(f"{name}.intermediate.dense", ffn, hidden),
            ffn_out=self._linear(f"{name}.output.dense", hidden, ffn),
        )

    def _qkv(self, name: str) -> Affine:
        size = self._shape.hidden_size
        fused = Affine(self._empty(3 * size, size), self._empty(3 * size))
        for index, part in enumerate(("query", "key", "value")):
            rows = slice(index * size, (index + 1) * size)
            self._files.expect(f"{name}.{part}.weight", (size, size))
            self._files.expect(f"{name}.{part}.bias", (size,))
            self._slots[f"{name}.{part}.weight"] = fused.weight[rows]
            self._slots[f"{name}.{part}.bias"] = fused.bias[rows]
        return fused

    def _mlm(self, words: Tensor) -> MlmHead:
        size, vocab_size, name = self._shape.hidden_size, self._shape.vocab_size, "cls.predictions"
        # The bias goes by two names that are one parameter; a file holds either or both.
        has_other_name_only = f"{name}.decoder.bias" in self._files and f"{name}.bias" not in self._files
        bias_name = f"{name}.decoder.bias" if has_other_name_only else f"{name}.bias"
        decoder_name = f"{name}.decoder.weight"
        is_tied = decoder_name not in self._files or self._files.are_equal(decoder_name, _WORDS)
        decoder = words if is_tied else self._tensor(decoder_name, vocab_size, size)
        return MlmHead(
            transform=self._linear(f"{name}.transform.dense", size, size),
            norm=self._norm(f"{name}.transform.LayerNorm"),
            decoder=Affine(decoder, self._tensor(bias_name, vocab_size)),
        )

    def _labels(self) -> LabelHead:
        size = self._shape.hidden_size
        num_labels = len(self._checkpoint.labels) or next(iter(self._files.shape("classifier.weight")), 0)
        return LabelHead(
            pooler=self._linear("pooler.dense", size, size), classifier=self._linear("classifier", num_labels, size)
        )

    def _linear(self, name: str, num_out: int, num_in: int) -> Affine:
        return Affine(self._tensor(f"{name}.weight", num_out, num_in), self._tensor(f"{name}.bias", num_out))

    def _norm(self, name: str) -> Affine:
        size = self._shape.hidden_size
        return Affine(self._tensor(f"{name}.weight", size), self._tensor(f"{name}.bias", size))

    def _tensor(self, name: str, *sizes: int) -> Tensor:
        self._files.expect(name, sizes)
        tensor = self._empty(*sizes)
        self._slots[name] = tensor
        return tensor

    def _empty(self, *sizes: int) -> Tensor:
        return torch.empty(sizes, device=self._device, dtype=self._dtype)


def _refuse_unknown(files: TensorFiles, slots: _Slots) -> None:
    unknown = sorted(name for name in files.names() if name not in slots and not name.startswith(_IGNORED))
    if unknown:
        raise CheckpointError(
            f"{files.where(unknown[0])}: tensor {unknown[0]} has no place in the model that config.json describes "
            f"({len(unknown)} such tensors)"
        )


def _fill(files: TensorFiles, slots: _Slots, progress: Progress) -> None:
    total = sum(slot.nbytes for slot in slots.values())
    done = 0
    for name, slot in slots.items():
        files.copy_into(name, slot)
        done += slot.nbytes
        progress(done, total)
