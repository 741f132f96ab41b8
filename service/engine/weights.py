"""The tensors of a checkpoint, read one by one into the precision and onto the device where they will be used.

The files are looked through before anything is allocated. Then each tensor, which stays mapped and never becomes memory
of our own, is cast while it is copied to where it belongs. Query, key and value go straight into one fused tensor, and
each map of the encoder is turned at once into what computes it. Knows the upstream names, not what becomes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from service.checkpoint import Checkpoint
from service.engine.cached_weights import open_weights
from service.engine.linear import Linear, Make, Plain, keep
from service.engine.pointwise import Norm
from service.engine.tensor_files import DECODER, WORDS, Progress, TensorFiles
from service.errors import CheckpointError

logger = logging.getLogger(__name__)


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


_Fill = Callable[[str, Tensor], None]  # puts the tensor of this canonical name there

# What a checkpoint may hold beside what its kind needs. Anything else that is unknown is an error: a model that is
# silently not the one in the file answers nonsense.
_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids", "cls.", "pooler.", "classifier.")


def load_weights(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    make: Make = keep,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Weights:
    """Reads the weights; `make` turns each map of the encoder, as soon as it is read, into what computes it.

    `cache` is the folder where pickles are kept in a form that can be read at once; None keeps none. CheckpointError
    names the file, the tensor and what was wanted of it.
    """
    progress = progress or (lambda done, total: None)
    with open_weights(checkpoint, dtype, cache, partial(_wanted, checkpoint), progress) as files:
        logger.info("reading weights", extra={"model": checkpoint.name, "files": ", ".join(map(str, files.paths))})
        total, done = _wanted(checkpoint, files) * dtype.itemsize, 0

        def fill(name: str, slot: Tensor) -> None:
            nonlocal done
            files.copy_into(name, slot)
            done += slot.nbytes
            progress(done, total)

        return _Reader(checkpoint, files, device, dtype, make, fill).weights()


def _wanted(checkpoint: Checkpoint, files: TensorFiles) -> int:
    """How many numbers the model has; CheckpointError when the files do not hold just them."""
    sizes: dict[str, int] = {}

    def note(name: str, slot: Tensor) -> None:
        sizes[name] = slot.numel()

    _Reader(checkpoint, files, torch.device("meta"), torch.float32, keep, note).weights()
    unknown = sorted(name for name in files.names() if name not in sizes and not name.startswith(_IGNORED))
    if unknown:
        raise CheckpointError(
            f"{files.where(unknown[0])}: tensor {unknown[0]} has no place in the model that config.json describes "
            f"({len(unknown)} such tensors)"
        )
    return sum(sizes.values())


class _Reader:
    """Makes the tensors one after another, each once the file is known to hold it, and has them filled."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        files: TensorFiles,
        device: torch.device,
        dtype: torch.dtype,
        make: Make,
        fill: _Fill,
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = checkpoint.shape
        self._files = files
        self._device = device
        self._dtype = dtype
        self._make = make
        self._fill = fill
        self._spare: dict[tuple[int, ...], Tensor] = {}

    def weights(self) -> Weights:
        shape, kind = self._shape, self._checkpoint.kind
        is_megatron = self._checkpoint.family == "megatron-bert"
        words = self._tensor(WORDS, shape.vocab_size, shape.hidden_size)
        return Weights(
            words=words,
            positions=self._tensor("embeddings.position_embeddings.weight", shape.max_positions, shape.hidden_size),
            segments=self._tensor("embeddings.token_type_embeddings.weight", shape.num_segments, shape.hidden_size),
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
        return Layer(
            attention_norm=self._norm(f"{name}.attention.ln" if is_megatron else f"{name}.attention.output.LayerNorm"),
            qkv=self._qkv(f"{name}.attention.self"),
            attention_out=self._map(f"{name}.attention.output.dense", hidden, hidden),
            ffn_norm=self._norm(f"{name}.ln" if is_megatron else f"{name}.output.LayerNorm"),
            ffn_in=self._map(f"{name}.intermediate.dense", ffn, hidden),
            ffn_out=self._map(f"{name}.output.dense", hidden, ffn),
        )

    def _qkv(self, name: str) -> Linear:
        size = self._shape.hidden_size
        fused = Plain(self._room(3 * size, size), self._empty(3 * size))
        for index, part in enumerate(("query", "key", "value")):
            rows = slice(index * size, (index + 1) * size)
            self._read(f"{name}.{part}.weight", fused.weight[rows])
            self._read(f"{name}.{part}.bias", fused.bias[rows])
        return self._made(fused)

    def _map(self, name: str, num_out: int, num_in: int) -> Linear:
        loaded = Plain(self._room(num_out, num_in), self._empty(num_out))
        self._read(f"{name}.weight", loaded.weight)
        self._read(f"{name}.bias", loaded.bias)
        return self._made(loaded)

    def _made(self, loaded: Plain) -> Linear:
        """What was loaded is room for the next one, unless it is still in use: there are never two copies, and memory
        that is new to the process is slow."""
        made = self._make(loaded)
        if made.weight is not loaded.weight:
            self._spare[loaded.weight.shape] = loaded.weight
        return made

    def _room(self, *sizes: int) -> Tensor:
        return self._spare.pop(sizes) if sizes in self._spare else self._empty(*sizes)

    def _mlm(self, words: Tensor) -> MlmHead:
        size, vocab_size, name = self._shape.hidden_size, self._shape.vocab_size, "cls.predictions"
        # The bias goes by two names that are one parameter; a file holds either or both.
        has_other_name_only = f"{name}.decoder.bias" in self._files and f"{name}.bias" not in self._files
        bias_name = f"{name}.decoder.bias" if has_other_name_only else f"{name}.bias"
        decoder = words if self._files.is_tied else self._tensor(DECODER, vocab_size, size)
        return MlmHead(
            transform=self._linear(f"{name}.transform.dense", size, size),
            norm=self._norm(f"{name}.transform.LayerNorm"),
            decoder=Plain(decoder, self._tensor(bias_name, vocab_size)),
        )

    def _labels(self) -> LabelHead:
        size = self._shape.hidden_size
        num_labels = len(self._checkpoint.labels) or next(iter(self._files.shape("classifier.weight")), 0)
        return LabelHead(
            pooler=self._linear("pooler.dense", size, size), classifier=self._linear("classifier", num_labels, size)
        )

    def _linear(self, name: str, num_out: int, num_in: int) -> Plain:
        return Plain(self._tensor(f"{name}.weight", num_out, num_in), self._tensor(f"{name}.bias", num_out))

    def _norm(self, name: str) -> Norm:
        size = self._shape.hidden_size
        eps = self._shape.norm_eps
        return Norm(self._tensor(f"{name}.weight", size), self._tensor(f"{name}.bias", size), eps)

    def _tensor(self, name: str, *sizes: int) -> Tensor:
        tensor = self._empty(*sizes)
        self._read(name, tensor)
        return tensor

    def _read(self, name: str, slot: Tensor) -> None:
        self._files.expect(name, tuple(slot.shape))
        self._fill(name, slot)

    def _empty(self, *sizes: int) -> Tensor:
        return torch.empty(sizes, device=self._device, dtype=self._dtype)
