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

from service.checkpoints.files import described_bytes, require_stored
from service.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""

WORDS = "embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
"""Tied to the words in most checkpoints: one tensor that goes by two names."""

_CHUNK = 1 << 24  # elements compared at a time
_FLOATING = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}


@dataclass(frozen=True, slots=True)
class _Source:
    file: Path
    name: str  # as it stands in the file
    shape: tuple[int, ...]
    kind: str  # its number format, as the file calls it
    read: Callable[[], Tensor]

    @property
    def is_floating(self) -> bool:
        """Numbers of 8 bits and less are floating, too, but do not mean anything without their scales."""
        return self.kind in _FLOATING

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name}"


class TensorFiles:
    """Open with `open`, use as a context."""

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
        """CheckpointError when the tensor is not there, has another shape, or is not of floating point numbers."""
        if name not in self:
            raise self._missing(name, f"; wanted shape {list(shape)}")
        source = self._sources[name]
        if source.shape != shape:
            raise CheckpointError(f"{source} has shape {list(source.shape)}; wanted {list(shape)}")
        if not source.is_floating:
            raise CheckpointError(f"{source} has type {source.kind}; wanted floating point numbers of 16 bits or more")

    def copy_into(self, name: str, slot: Tensor) -> None:
        """Casts the tensor into `slot`, which must have its shape; CheckpointError for numbers not finite there."""
        slot.copy_(self._source(name).read())
        # A sum is not finite when a term is not, and costs next to nothing; of sound numbers it may overflow, too.
        if not slot.sum().isfinite() and not slot.isfinite().all():
            raise CheckpointError(f"{self._sources[name]} holds NaN or infinity as {slot.dtype}; wanted finite numbers")

    def mapped(self, name: str) -> Tensor:
        """As it stands in the file, to be read only; it outlives this."""
        return self._source(name).read()

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
            raise self._missing(name)
        return self._sources[name]

    def _missing(self, name: str, wanted: str = "") -> CheckpointError:
        files = ", ".join(path.name for path in self.paths)
        return CheckpointError(f"{self.paths[0].parent}: tensor {name} is missing from {files}{wanted}")

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
        raise CheckpointError(f"{file}: not a safetensors file ({_length_wrong(file) or error})") from error

    def source(name: str) -> _Source:
        part = opened.get_slice(name)
        return _Source(file, name, tuple(part.get_shape()), part.get_dtype(), lambda: opened.get_tensor(name))

    return [source(name) for name in opened.offset_keys()]


def _length_wrong(file: Path) -> str | None:
    """A file that was cut off, in plainer words than the library's."""
    try:
        size, wanted = file.stat().st_size, described_bytes(file)
    except Exception:  # noqa: BLE001 - its header is wrong, and the library has said how
        return None
    return f"it has {size} bytes; wanted {wanted}, by its header" if size != wanted else None


def _open_bin(file: Path) -> list[_Source]:
    tensors = _loaded(file)
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise CheckpointError(f"{file}: wanted a state dict, that is tensor names and tensors only")
    return [_of_bin(file, str(name), tensor) for name, tensor in tensors.items()]


def _loaded(file: Path) -> object:
    # A file from before torch 1.6 is no zip archive and cannot be mapped: it is read whole, in its own precision.
    can_map = zipfile.is_zipfile(file)
    try:
        if can_map:
            require_stored(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=can_map)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: refused: it is corrupt, or holds more than tensors, and running a pickle is not safe"
        ) from error
    except Exception as error:  # bytes of a stranger may make a parser raise whatever there is
        raise CheckpointError(
            f"{file}: not a whole weights file of torch ({type(error).__name__}); wanted what torch.save writes"
        ) from error


def _of_bin(file: Path, name: str, tensor: Tensor) -> _Source:
    kind = str(tensor.dtype)
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
        raise CheckpointError(f"{file}: tensor {name} is sparse, nested or without numbers; wanted a plain one")
    return _Source(file, name, tuple(tensor.shape), kind, tensor.detach)
