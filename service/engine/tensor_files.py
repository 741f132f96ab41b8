"""Weights files as a mapping from canonical tensor name to tensor, for any format and number of files.

The files are mapped into memory, so reading a tensor takes no private memory. Canonical names have no `bert.` or
`roberta.` prefix, none of a wrapper (module., model.), and no old norm names (gamma, beta). Nothing in a file is ever
executed.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.checkpoints.files import canonical_name, require_stored
from service.engine.blocks import expand_into, expanded_shape
from service.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the total bytes."""

WORDS = "embeddings.word_embeddings.weight"
DECODERS = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")
"""The decoder of a masked LM, in BERT and in RoBERTa. In most checkpoints it is tied to the words: one tensor with two
names."""

_COMPARED_ELEMENTS = 1 << 24
_BYTES = {"U8", "torch.uint8"}
_FLOATING = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}
"""8-bit floats are left out: without their scales they have no meaning."""


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of one file; its name and number format (`kind`) are those of the file.

    A packed one holds 4-bit blocks: `shape` is that of the weights in them.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], Tensor]
    is_packed: bool = False

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name}"

    def copy_into(self, out: Tensor) -> None:
        """Casts the tensor into `out`, which must have its shape; CheckpointError when a number is not finite there."""
        if self.is_packed:
            expand_into(self.read(), out)
        else:
            out.copy_(self.read())
        # The sum is not finite when a term is not, and is cheap; of large finite numbers it may overflow, too.
        if not out.sum().isfinite() and not out.isfinite().all():
            raise CheckpointError(f"{self} holds NaN or infinity as {out.dtype}; wanted finite numbers")

    def load(self) -> Tensor:
        """The tensor in float32."""
        out = torch.empty(self.shape, dtype=torch.float32)
        self.copy_into(out)
        return out


class TensorFiles:
    """The tensors of one model. Created by `open`, used as a context manager."""

    def __init__(self, paths: Sequence[Path], stack: ExitStack) -> None:
        self.paths = tuple(paths)
        self._stack = stack
        self._sources: dict[str, Source] = {}

    @classmethod
    def open(cls, paths: Sequence[Path], *, are_packed: bool = False) -> TensorFiles:
        """Maps the weights files of one model; CheckpointError when one is damaged or unsafe.

        With `are_packed`, tensors of 4-bit blocks are read as the weights in them.
        """
        with ExitStack() as stack:
            files = cls(paths, stack)
            for path in paths:
                files._add(path, are_packed)
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
        """In the order of the files."""
        return self._sources.keys()

    def where(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._sources[name].file

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source(name).shape

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """CheckpointError when the tensor is missing, has another shape, or is not of floating point numbers."""
        if name not in self:
            raise self._missing(name, f"; wanted shape {list(shape)}")
        source = self._sources[name]
        if source.shape != shape:
            raise CheckpointError(f"{source} has shape {list(source.shape)}; wanted {list(shape)}")
        if source.kind not in _FLOATING and not source.is_packed:
            raise CheckpointError(f"{source} has type {source.kind}; wanted floating point numbers of 16 bits or more")

    def copy_into(self, name: str, out: Tensor) -> None:
        """Casts the tensor into `out`, which must have its shape; CheckpointError when a number is not finite there."""
        self._source(name).copy_into(out)

    def find(self, name: str) -> Source:
        """The tensor, as it is now."""
        return self._source(name)

    def find_stored(self, name: str) -> Source:
        """The tensor that has this name in its file."""
        return next(source for source in self._sources.values() if source.name == name)

    def replace(self, name: str, source: Source) -> None:
        """Puts another tensor in the place of one, or adds it."""
        self._sources[name] = source

    def map(self, name: str) -> Tensor:
        """The tensor in the file's own format, read-only; it may be used after this object is closed."""
        return self._source(name).read()

    @cached_property
    def is_tied(self) -> bool:
        """Whether the decoder is the word embedding: left out of the file, or in it as an equal tensor."""
        return all(name not in self or (WORDS in self and self._are_equal(name, WORDS)) for name in DECODERS)

    def _are_equal(self, name: str, other: str) -> bool:
        """Compares in pieces, so that no whole tensor is copied."""
        ours, theirs = self._source(name), self._source(other)
        if ours.shape != theirs.shape or ours.is_packed != theirs.is_packed:
            return False
        one, two = ours.read(), theirs.read()
        if one.is_set_to(two):
            return True
        pieces = (torch.split(tensor.flatten(), _COMPARED_ELEMENTS) for tensor in (one, two))
        return all(torch.equal(a, b) for a, b in zip(*pieces, strict=True))

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise self._missing(name)
        return self._sources[name]

    def _missing(self, name: str, wanted: str = "") -> CheckpointError:
        files = ", ".join(path.name for path in self.paths)
        instead = "" if WORDS in self else f"; {self._names_instead()}"
        return CheckpointError(f"{self.paths[0].parent}: tensor {name} is missing from {files}{wanted}{instead}")

    def _names_instead(self) -> str:
        """What the names are, where they are not those of BERT."""
        names = [source.name for source in self._sources.values()]
        if named := next((name for name in names if name.endswith(f".{WORDS}")), None):
            prefix = named.removesuffix(WORDS).removesuffix("bert.")  # without it, a head has the same prefix
            return f"the names begin with {prefix} here: save the tensors under name.removeprefix({prefix!r})"
        first = ", ".join(names[:3])
        return f"the names here are {first}, ... ({len(self._sources)} tensors)" if first else "it holds no tensors"

    def _add(self, file: Path, are_packed: bool) -> None:
        sources = _open_safetensors(file, self._stack) if file.suffix == ".safetensors" else _open_bin(file)
        for source in map(_as_packed, sources) if are_packed else sources:
            name = canonical_name(source.name)
            if name in self._sources:
                raise CheckpointError(f"{source} is there twice")
            self._sources[name] = source


def _as_packed(source: Source) -> Source:
    shape = expanded_shape(source.shape) if source.kind in _BYTES else None
    return replace(source, shape=shape, is_packed=True) if shape else source


def _open_safetensors(file: Path, stack: ExitStack) -> list[Source]:
    try:
        opened = stack.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a safetensors file ({_other_format(file) or _wrong_length(file) or error})"
        ) from error

    def source(name: str) -> Source:
        part = opened.get_slice(name)
        return Source(file, name, tuple(part.get_shape()), part.get_dtype(), lambda: opened.get_tensor(name))

    return [source(name) for name in opened.offset_keys()]


def _other_format(file: Path) -> str | None:
    """What to do where a weights file of one format has the name of the other."""
    with suppress(OSError), file.open("rb") as stream:
        start = stream.read(9)
        if file.suffix == ".safetensors" and (zipfile.is_zipfile(file) or start.startswith(b"\x80")):
            return "it is a file of torch.save; rename it to pytorch_model.bin"
        if file.suffix != ".safetensors" and start[8:] == b"{":
            return "it is a safetensors file; rename it to model.safetensors"
    return None


def _wrong_length(file: Path) -> str | None:
    """Describes a file that was cut off, in plainer words than the library's; None where the header is unreadable."""
    try:
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if header_bytes > file.stat().st_size:
                return None
            header = json.loads(stream.read(header_bytes))
        ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        size, wanted = file.stat().st_size, 8 + header_bytes + max(ends, default=0)
    except Exception:  # noqa: BLE001 - the header of a damaged file may raise anything; the library's words remain
        return None
    return f"it has {size} bytes; wanted {wanted}, by its header" if size != wanted else None


def _open_bin(file: Path) -> list[Source]:
    tensors = _load_bin(file)
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise CheckpointError(
            f"{file}: wanted a state dict, that is tensor names and tensors only{_inner_state_dict(file, tensors)}"
        )
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
            raise CheckpointError(f"{file}: tensor {name} is sparse, nested or without numbers; wanted a plain one")
    return [
        Source(file, str(name), tuple(tensor.shape), str(tensor.dtype), tensor.detach)
        for name, tensor in tensors.items()
    ]


def _inner_state_dict(file: Path, content: object) -> str:
    """The line to do where the state dict is inside of a training checkpoint."""
    parts = content.items() if isinstance(content, dict) else ()
    inner = [key for key, part in parts if isinstance(part, dict) and any(isinstance(t, Tensor) for t in part.values())]
    if not inner:
        return ""
    key = next((key for key in inner if "optim" not in str(key)), inner[0])
    return f"; there is one under {key!r}: torch.save(torch.load(FILE)[{key!r}], FILE), with FILE = {str(file)!r}"


def _load_bin(file: Path) -> object:
    # The format before torch 1.6 is no zip archive and cannot be mapped: it is read as a whole, in its own precision.
    can_map = zipfile.is_zipfile(file)
    if not can_map and (other := _other_format(file)):
        raise CheckpointError(f"{file}: not a file of torch.save ({other})")
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
    except Exception as error:  # a damaged or hostile file may make a parser raise anything
        raise CheckpointError(
            f"{file}: not a whole weights file of torch ({type(error).__name__}); wanted what torch.save writes"
        ) from error
