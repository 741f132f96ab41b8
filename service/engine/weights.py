"""What the weights of a model are, and under which names they go; where they come from is not known here.

Names are the upstream ones, in their canonical form (see `tensor_files`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import weight_files
from service.engine.linear import PLAIN, Linear, LinearType, Plain
from service.engine.ops import Norm
from service.engine.tensor_files import DECODER, WORDS, Progress, TensorFiles
from service.errors import CheckpointError


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


logger = logging.getLogger(__name__)

# What a checkpoint may hold beside what its kind needs. Anything else that is unknown is an error: a model that is
# silently not the one in the file answers nonsense.
_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids", "cls.", "pooler.", "classifier.")

_Fill = Callable[[str, Tensor], None]  # puts the tensor of this canonical name there


def read_weights(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, kind: LinearType, progress: Progress
) -> tuple[Weights, dict[str, Tensor]]:
    """The weights, and the tensors that they are made of by name.

    CheckpointError names the file, the tensor and what was wanted of it.
    """
    with TensorFiles.open(weight_files(checkpoint.path)) as files:
        logger.info("reading weights", extra={"model": checkpoint.name, "files": ", ".join(map(str, files.paths))})
        total, done = num_weights(checkpoint, files) * dtype.itemsize, 0

        def fill(name: str, slot: Tensor) -> None:
            nonlocal done
            files.copy_into(name, slot)
            done += slot.nbytes
            progress(done, total)

        reading = _Reading(files, device, dtype, kind, fill)
        return assemble(checkpoint, files, reading), reading.taken


def num_weights(checkpoint: Checkpoint, files: TensorFiles) -> int:
    """How many numbers the model has; CheckpointError when the files do not hold just them."""
    sizes: dict[str, int] = {}

    def note(name: str, slot: Tensor) -> None:
        sizes[name] = slot.numel()

    assemble(checkpoint, files, _Reading(files, torch.device("meta"), torch.float32, PLAIN, note))
    unknown = sorted(name for name in files.names() if name not in sizes and not name.startswith(_IGNORED))
    if unknown:
        raise CheckpointError(
            f"{files.where(unknown[0])}: tensor {unknown[0]} has no place in the model that config.json describes "
            f"({len(unknown)} such tensors)"
        )
    return sum(sizes.values())


class _Reading:
    """Makes the tensors one after another, each once the file is known to hold it, and has them filled."""

    def __init__(
        self, files: TensorFiles, device: torch.device, dtype: torch.dtype, kind: LinearType, fill: _Fill
    ) -> None:
        self.taken: dict[str, Tensor] = {}
        self._files = files
        self._device = device
        self._dtype = dtype
        self._kind = kind
        self._fill = fill
        self._spare: dict[tuple[int, ...], Tensor] = {}

    def tensor(self, name: str, *sizes: int) -> Tensor:
        tensor = self._empty(*sizes)
        self._read(name, tensor)
        self.taken[name] = tensor
        return tensor

    def linear(self, name: str, parts: Sequence[str], num_out: int, num_in: int) -> Linear:
        plain = Plain(self._room(num_out, num_in), self._empty(num_out))
        pieces = zip(parts, plain.weight.chunk(len(parts)), plain.bias.chunk(len(parts)), strict=True)
        for part, weight, bias in pieces:
            self._read(f"{part}.weight", weight)
            self._read(f"{part}.bias", bias)
        made = self._made(plain)
        self.taken |= {f"{name}.{each}": getattr(made, each) for each in self._kind.tensors}
        return made

    def _made(self, plain: Plain) -> Linear:
        """What was loaded is room for the next one, unless it is still in use: there are never two copies, and memory
        that is new to the process is slow."""
        made = self._kind(plain)
        if made.weight is not plain.weight:
            self._spare[plain.weight.shape] = plain.weight
        return made

    def _room(self, *sizes: int) -> Tensor:
        return self._spare.pop(sizes) if sizes in self._spare else self._empty(*sizes)

    def _read(self, name: str, slot: Tensor) -> None:
        self._files.expect(name, tuple(slot.shape))
        self._fill(name, slot)

    def _empty(self, *sizes: int) -> Tensor:
        return torch.empty(sizes, device=self._device, dtype=self._dtype)
