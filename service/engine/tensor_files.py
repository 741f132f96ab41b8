"""Weights files as a mapping from canonical tensor name to tensor, whatever the format and the number of files.

The files are mapped into memory, so a tensor that is looked at costs no memory of our own. Names lose their `bert.`
prefix, and norms their old names gamma and beta. Nothing in a file is ever executed.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.engine.safetensors_writer import Entry
from service.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""

WORDS = "embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
"""Tied to the words in most checkpoints: one tensor that goes by two names."""

_CHUNK = 1 << 24  # elements compared at a time


@dataclass(frozen=True, slots=True)
class _Source:
    file: Path
    name: str  # as it stands in the file
    shape: tuple[int, ...]
    kind: str  # its number format, as the file calls it
    is_floating: bool
    read: Callable[[], Tensor]

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name}"


class TensorFiles:
    """Open with `open`, use as a context, and copy out what is needed before it ends."""

    def __init__(self, paths: Sequence[Path], stack: ExitStack) -> None:
        self.paths = tuple(paths)
        self._stack = stack
        self._sources: dict[str, _Source] = {}

    @classmethod
    def open(cls, paths: Sequence[Path]) -> TensorFiles:
        """Maps the weights files of one model; CheckpointError when one cannot be read, or should not be."""
        with ExitStack() as stack:
            files = cls(paths, stack)
            for path in paths:
                files._add(path)
            files._stack = stack.pop_all()
        return files

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sources.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def names(self) -> Iterable[str]:
        return self._sources.keys()

    def where(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._sources[name].file

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source(name).shape

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """CheckpointError when the tensor is not there, has another shape, or holds whole numbers."""
        source = self._source(name)
        if source.shape != shape:
            raise CheckpointError(f"{source} has shape {list(source.shape)}; wanted {list(shape)}")
        if not source.is_floating:
            raise CheckpointError(f"{source} has type {source.kind}; wanted floating point numbers")

    def copy_into(self, name: str, slot: Tensor) -> None:
        """Casts the tensor into `slot`, which must have its shape."""
        slot.copy_(self._source(name).read())

    def entries(self) -> list[Entry]:
        """All that a model may take its weights from, to be written to another file; what is tied is there once."""
        return [
            Entry(source.name, source.shape, source.read)
            for name, source in self._sources.items()
            if source.is_floating and not (self.is_tied and name == DECODER)
        ]

    @cached_property
    def is_tied(self) -> bool:
        """Whether the decoder is the words, be it left out or there a second time."""
        return DECODER not in self or (WORDS in self and self._are_equal(DECODER, WORDS))

    def _are_equal(self, name: str, other: str) -> bool:
        """Compared in pieces, so that no copy of a whole tensor is made."""
        ours, theirs = self._source(name), self._source(other)
        if ours.shape != theirs.shape:
            return False
        one, two = ours.read(), theirs.read()
        if one.is_set_to(two):
            return True
        pairs = zip(_pieces(one), _pieces(two), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def _source(self, name: str) -> _Source:
        if name not in self._sources:
            raise CheckpointError(f"{self.paths[0].parent}: tensor {name} is missing from the weights")
        return self._sources[name]

    def _add(self, file: Path) -> None:
        sources = _open_safetensors(file, self._stack) if file.suffix == ".safetensors" else _open_bin(file)
        for source in sources:
            name = _canonical(source.name)
            if name in self._sources:
                raise CheckpointError(f"{source} is there twice")
            self._sources[name] = source


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    return torch.split(tensor.flatten(), _CHUNK)


def _canonical(name: str) -> str:
    name = name.removeprefix("bert.")
    if name.endswith(".gamma"):
        return name.removesuffix("gamma") + "weight"
    return name.removesuffix("beta") + "bias" if name.endswith(".beta") else name


def _open_safetensors(file: Path, stack: ExitStack) -> list[_Source]:
    try:
        opened = stack.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file ({error})") from error

    def source(name: str) -> _Source:
        part = opened.get_slice(name)
        kind = part.get_dtype()
        return _Source(file, name, tuple(part.get_shape()), kind, "F" in kind, lambda: opened.get_tensor(name))

    return [source(name) for name in opened.offset_keys()]


def _open_bin(file: Path) -> list[_Source]:
    # A file from before torch 1.6 is no zip archive and cannot be mapped: it is read whole, in its own precision.
    can_map = zipfile.is_zipfile(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=can_map)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: refused: it is corrupt, or holds more than tensors, and running a pickle is not safe"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{file}: not a weights file of torch ({type(error).__name__})") from error
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise CheckpointError(f"{file}: wanted a state dict, that is tensor names and tensors only")

    def source(name: str, tensor: Tensor) -> _Source:
        kind, is_floating = str(tensor.dtype), tensor.is_floating_point()
        return _Source(file, name, tuple(tensor.shape), kind, is_floating, tensor.detach)

    return [source(str(name), tensor) for name, tensor in tensors.items()]
