"""The weights of a model: their names and shapes, and how they are read from a checkpoint.

Names are the upstream ones in their canonical form (see `tensor_files`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import weight_files
from service.checkpoints.heads import class_count_error
from service.checkpoints.sentence_modules import Dense, DenseActivation
from service.checkpoints.shape import ROBERTA
from service.engine.adapters import merge_adapter
from service.engine.linear import InputRange, Linear, Plain
from service.engine.ops import Norm
from service.engine.tensor_files import WORDS, Progress, TensorFiles
from service.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layer:
    """One encoder layer; the norms come before their blocks in MegatronBert and after them in BERT."""

    attention_norm: Norm
    qkv: Linear
    attention_out: Linear
    ffn_norm: Norm
    ffn_in: Linear
    ffn_out: Linear


@dataclass(frozen=True, slots=True)
class MlmHead:
    """`decoder.weight` is the word embedding itself, unless the checkpoint has a decoder of its own."""

    transform: Plain
    norm: Norm
    decoder: Plain


@dataclass(frozen=True, slots=True)
class LabelHead:
    """`classifier` of the tanh of `pooler`, which RoBERTa calls `classifier.dense`."""

    pooler: Plain
    classifier: Plain


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A dense layer of an embedding model, in float32 in every precision: it is small, and runs once for a text.

    With a residual its input, or `shortcut` of it where the sizes differ, is added to its output.
    """

    weight: Tensor
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor]
    is_residual: bool = False
    shortcut: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """MegatronBert has a `final_norm`, the other families have an `embedding_norm`."""

    words: Tensor
    positions: Tensor
    segments: Tensor
    layers: tuple[Layer, ...]
    embedding_norm: Norm | None = None
    final_norm: Norm | None = None
    mlm: MlmHead | None = None
    labels: LabelHead | None = None
    dense: tuple[DenseLayer, ...] = ()
    spans: Plain | None = None
    """[2, hidden]: the logits of the start and of the end of an answer."""


@dataclass(frozen=True, slots=True)
class HeadNames:
    """The names of the heads' tensors, which differ between BERT (and MegatronBert) and RoBERTa.

    The bias of the decoder is one parameter with two names; a file holds either or both.
    """

    transform: str
    norm: str
    decoder: str
    decoder_biases: tuple[str, str]
    pooler: str
    classifier: str


BERT_HEADS = HeadNames(
    transform="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    decoder="cls.predictions.decoder.weight",
    decoder_biases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    pooler="pooler.dense",
    classifier="classifier",
)
ROBERTA_HEADS = HeadNames(
    transform="lm_head.dense",
    norm="lm_head.layer_norm",
    decoder="lm_head.decoder.weight",
    decoder_biases=("lm_head.bias", "lm_head.decoder.bias"),
    pooler="classifier.dense",
    classifier="classifier.out_proj",
)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The form in which a device needs the weights."""

    device: torch.device
    dtype: torch.dtype
    linear_class: type[Linear]
    ranges: Mapping[str, InputRange] = field(default_factory=dict)
    """Of the inputs of the maps by their names, where `linear_class` has fixed scales."""


MAPS = {
    "qkv": "attention.self.qkv",
    "attention_out": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
"""The fields of a layer that are linear maps, and their names."""


def layer_name(index: int) -> str:
    return f"encoder.layer.{index}"


class WeightReader(Protocol):
    """Where `build_weights` gets the tensors. Both methods raise CheckpointError for what is missing or wrong."""

    def tensor(self, name: str, *shape: int) -> Tensor: ...

    def linear(self, name: str, parts: Sequence[str], num_out: int, num_in: int) -> Linear:
        """A map of the encoder; upstream it is the maps of the names `parts`, one on top of the other."""
        ...


def build_weights(checkpoint: Checkpoint, files: TensorFiles, reader: WeightReader) -> Weights:
    """Reads every tensor of the model once. Optional tensors that are not in `files` are left out."""
    return _Builder(checkpoint, files, reader).build()


class _Builder:
    def __init__(self, checkpoint: Checkpoint, files: TensorFiles, reader: WeightReader) -> None:
        self._checkpoint = checkpoint
        self._shape = checkpoint.shape
        self._files = files
        self._reader = reader
        self._heads = ROBERTA_HEADS if checkpoint.family in ROBERTA else BERT_HEADS

    def build(self) -> Weights:
        shape, kind, read = self._shape, self._checkpoint.kind, self._reader.tensor
        is_megatron = self._checkpoint.family == "megatron-bert"
        words = read(WORDS, shape.vocab_size, shape.hidden_size)
        num_positions = shape.first_position + shape.max_positions
        positions = read("embeddings.position_embeddings.weight", num_positions, shape.hidden_size)
        return Weights(
            words=words,
            positions=positions[shape.first_position :],
            segments=read("embeddings.token_type_embeddings.weight", shape.num_segments, shape.hidden_size),
            layers=self._layers(is_megatron),
            embedding_norm=None if is_megatron else self._norm("embeddings.LayerNorm"),
            final_norm=self._norm("encoder.ln") if is_megatron else None,
            mlm=self._mlm_head(words) if kind == "masked-lm" else None,
            labels=self._label_head() if kind == "sequence-classification" else None,
            spans=self._plain("qa_outputs", 2, shape.hidden_size) if kind == "question-answering" else None,
        )

    def _layers(self, is_megatron: bool) -> tuple[Layer, ...]:
        """Read in the order of the file, which may be 0, 1, 10, 11, ...: disks are fastest that way."""
        ranks = {name: rank for rank, name in enumerate(self._files.names())}
        names = [layer_name(index) for index in range(self._shape.num_layers)]
        in_file_order = sorted(names, key=lambda name: ranks.get(f"{name}.attention.self.query.weight", 0))
        layers = {name: self._layer(name, is_megatron) for name in in_file_order}
        return tuple(layers[name] for name in names)

    def _layer(self, name: str, is_megatron: bool) -> Layer:
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        return Layer(
            attention_norm=self._norm(f"{name}.attention.ln" if is_megatron else f"{name}.attention.output.LayerNorm"),
            qkv=self._map(name, "qkv", parts),
            attention_out=self._map(name, "attention_out"),
            ffn_norm=self._norm(f"{name}.ln" if is_megatron else f"{name}.output.LayerNorm"),
            ffn_in=self._map(name, "ffn_in"),
            ffn_out=self._map(name, "ffn_out"),
        )

    def _mlm_head(self, words: Tensor) -> MlmHead:
        size, vocab_size, names = self._shape.hidden_size, self._shape.vocab_size, self._heads
        bias, other_bias = names.decoder_biases
        bias = other_bias if other_bias in self._files and bias not in self._files else bias
        decoder = words if self._files.is_tied else self._reader.tensor(names.decoder, vocab_size, size)
        return MlmHead(
            transform=self._plain(names.transform, size, size),
            norm=self._norm(names.norm),
            decoder=Plain(decoder, self._reader.tensor(bias, vocab_size)),
        )

    def _label_head(self) -> LabelHead:
        size, names, model, head = self._shape.hidden_size, self._heads, self._checkpoint.name, self._checkpoint.head
        weight = f"{names.classifier}.weight"
        num_classes = next(iter(self._files.shape(weight)), 0)
        if head and num_classes != head.num_classes:
            instead = f"its labels or config.json say {head.num_classes}"
            raise CheckpointError(class_count_error(self._files.where(weight), num_classes, instead, model))
        return LabelHead(
            pooler=self._plain(names.pooler, size, size), classifier=self._plain(names.classifier, num_classes, size)
        )

    def _map(self, layer: str, field: str, parts: Sequence[str] = ()) -> Linear:
        """A map of a layer, which may be in several parts of the file."""
        name = f"{layer}.{MAPS[field]}"
        return self._reader.linear(name, parts or [name], *self._shape.maps[field])

    def _plain(self, name: str, num_out: int, num_in: int) -> Plain:
        read = self._reader.tensor
        return Plain(read(f"{name}.weight", num_out, num_in), read(f"{name}.bias", num_out))

    def _norm(self, name: str) -> Norm:
        read, size = self._reader.tensor, self._shape.hidden_size
        return Norm(read(f"{name}.weight", size), read(f"{name}.bias", size), self._shape.norm_eps)


_IGNORED_PREFIXES = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "cls.",
    "lm_head.",
    "pooler.",
    "classifier.",
    "qa_outputs.",
)
"""What a checkpoint may hold in addition to what its kind needs.

Any other unknown tensor is an error: a model that silently differs from the file computes wrong answers.
"""


def read_weights(
    checkpoint: Checkpoint, weight_format: WeightFormat, progress: Progress
) -> tuple[Weights, dict[str, Tensor]]:
    """Reads the weights of the checkpoint; returns them, and the tensors that they consist of by name.

    Raises CheckpointError, which names the file, the tensor and what was expected.
    """
    with open_tensors(checkpoint) as files:
        logger.info("reading weights", extra={"model": checkpoint.name, "files": ", ".join(map(str, files.paths))})
        total_bytes = count_numbers(checkpoint, files) * weight_format.dtype.itemsize
        reader = _CheckpointReader(files, weight_format, lambda done_bytes: progress(done_bytes, total_bytes))
        return build_weights(checkpoint, files, reader), reader.tensors


@contextmanager
def open_tensors(checkpoint: Checkpoint) -> Iterator[TensorFiles]:
    """The tensors of the checkpoint, with its adapter in them; raises CheckpointError as `read_weights` does."""
    adapter = checkpoint.adapter
    with ExitStack() as stack:
        files = TensorFiles.open(weight_files(checkpoint.path), are_packed=checkpoint.are_packed)
        stack.enter_context(files)
        if adapter is not None:
            merge_adapter(checkpoint, files, stack.enter_context(TensorFiles.open((adapter.file,))))
        yield files


_DENSE_ACTIVATIONS: dict[DenseActivation, Callable[[Tensor], Tensor]] = {
    "identity": lambda states: states,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


def read_dense(checkpoint: Checkpoint, device: torch.device) -> tuple[DenseLayer, ...]:
    """Reads the dense layers of an embedding model, each from the files of its own folder.

    Raises CheckpointError as `read_weights` does.
    """
    declared = checkpoint.embedding.dense if checkpoint.embedding else ()
    return tuple(_read_dense_layer(dense, device) for dense in declared)


def _read_dense_layer(dense: Dense, device: torch.device) -> DenseLayer:
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (dense.num_out, dense.num_in)}
    if dense.has_bias:
        shapes["linear.bias"] = (dense.num_out,)
    if dense.is_residual and dense.num_in != dense.num_out:
        shapes["residual.weight"] = (dense.num_out, dense.num_in)
    tensors: dict[str, Tensor] = {}
    with TensorFiles.open(weight_files(dense.folder)) as files:
        if unknown := sorted(set(files.names()) - set(shapes)):
            raise CheckpointError(
                f"{files.where(unknown[0])}: tensor {unknown[0]} has no place in the layer that "
                f"{dense.folder / 'config.json'} describes"
            )
        for name, shape in shapes.items():
            files.expect(name, shape)
            tensors[name] = torch.empty(shape, device=device, dtype=torch.float32)
            files.copy_into(name, tensors[name])
    return DenseLayer(
        weight=tensors["linear.weight"],
        bias=tensors.get("linear.bias"),
        activation=_DENSE_ACTIVATIONS[dense.activation],
        is_residual=dense.is_residual,
        shortcut=tensors.get("residual.weight"),
    )


def count_numbers(checkpoint: Checkpoint, files: TensorFiles) -> int:
    """The number of weights of the model; CheckpointError when the files hold too few or unknown tensors."""
    on_meta = WeightFormat(torch.device("meta"), torch.float32, Plain)
    reader = _CheckpointReader(files, on_meta, lambda done_bytes: None)
    build_weights(checkpoint, files, reader)
    unknown = sorted(
        name for name in files.names() if name not in reader.sizes and not name.startswith(_IGNORED_PREFIXES)
    )
    if unknown:
        raise CheckpointError(
            f"{files.where(unknown[0])}: tensor {unknown[0]} has no place in the model that config.json describes "
            f"({len(unknown)} such tensors)"
        )
    return sum(reader.sizes.values())


def cached_prefix(name: str, linear_class: type[Linear]) -> str:
    """How the names of a map's tensors in a cached file start: tensors of one class are never taken for another's."""
    return f"{name}.{linear_class.__name__}"


class _CheckpointReader:
    """Allocates each tensor once the file is known to hold it, fills it, and converts the linear maps.

    On the meta device, shapes are checked and nothing is allocated or read.
    """

    def __init__(self, files: TensorFiles, weight_format: WeightFormat, on_bytes: Callable[[int], None]) -> None:
        self.tensors: dict[str, Tensor] = {}
        """What the weights consist of, by the name in a cached file."""
        self.sizes: dict[str, int] = {}
        """The number of elements of each tensor of the checkpoint that was read."""
        self._files = files
        self._format = weight_format
        self._on_bytes = on_bytes
        self._done_bytes = 0
        self._free: dict[tuple[int, ...], Tensor] = {}

    def tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._empty(*shape)
        self._fill(name, tensor)
        self.tensors[name] = tensor
        return tensor

    def linear(self, name: str, parts: Sequence[str], num_out: int, num_in: int) -> Linear:
        # There are never two copies of all weights, and memory that is new to the process is slow to write: a weight
        # that the converted map does not keep is the buffer of the next one.
        shape = (num_out, num_in)
        weight = self._free.pop(shape) if shape in self._free else self._empty(*shape)
        bias = self._empty(num_out)
        for part, weight_rows, bias_rows in zip(parts, weight.chunk(len(parts)), bias.chunk(len(parts)), strict=True):
            self._fill(f"{part}.weight", weight_rows)
            self._fill(f"{part}.bias", bias_rows)
        linear = self._format.linear_class.of(weight, bias, self._format.ranges.get(name))
        if linear.weight is not weight:
            self._free[shape] = weight
        prefix = cached_prefix(name, self._format.linear_class)
        self.tensors |= {f"{prefix}.{field}": tensor for field, tensor in linear.tensors().items()}
        return linear

    def _fill(self, name: str, out: Tensor) -> None:
        self._files.expect(name, tuple(out.shape))
        self.sizes[name] = out.numel()
        if out.is_meta:
            return
        self._files.copy_into(name, out)
        self._done_bytes += out.nbytes
        self._on_bytes(self._done_bytes)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._format.device, dtype=self._format.dtype)
