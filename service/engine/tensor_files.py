"""Weights files as a mapping from canonical tensor name to tensor, whatever the format and the number of files.

The files are mapped into memory, so a tensor that is looked at costs no memory of our own. Names lose their `bert.`
prefix, and norms their old names gamma and beta. Nothing in a file is ever executed.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.errors import CheckpointError
from service.weight_files import weight_files

_CHUNK = 1 << 24  # elements compared at a time


@dataclass(frozen=True, slots=True)
class _Source:
    file: Path
    name: str  # as it stands in the file
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name}"


class TensorFiles:
    """Open with `open`, use as a context, and copy out what is needed before it ends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._sources: dict[str, _Source] = {}

    @classmethod
    def open(cls, folder: Path) -> TensorFiles:
        """Maps the weights files of `folder`; CheckpointError when one cannot be read, or should not be."""
        with ExitStack() as stack:
            files = cls(folder, stack)
            for file in weight_files(folder):
                files._add(file)
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
        """CheckpointError when the tensor is not there, or has another shape."""
        source = self._source(name)
        if source.shape != shape:
            raise CheckpointError(f"{source} has shape {list(source.shape)}; wanted {list(shape)}")

    def copy_into(self, name: str, slot: Tensor) -> None:
        """Casts the tensor into `slot`, which must have its shape."""
        source = self._source(name)
        tensor = source.read()
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source} has type {tensor.dtype}; wanted floating point numbers")
        slot.copy_(tensor)

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; compared in pieces, so that no copy of a whole one is made."""
        ours, theirs = self._source(name), self._source(other)
        if ours.shape != theirs.shape:
            return False
        pairs = zip(_pieces(ours.read()), _pieces(theirs.read()), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def _source(self, name: str) -> _Source:
        if name not in self._sources:
            raise CheckpointError(f"{self._folder}: tensor {name} is missing from the weights")
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
        return _Source(file, name, tuple(opened.get_slice(name).get_shape()), lambda: opened.get_tensor(name))

    return [source(name) for name in opened.keys()]  # noqa: SIM118 - it is not a dict


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
        return _Source(file, name, tuple(tensor.shape), lambda: tensor)

    return [source(str(name), tensor) for name, tensor in tensors.items()]
