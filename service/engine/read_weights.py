"""The weights of a checkpoint, read one by one into the precision and onto the device where they will be used.

The files are looked through before anything is allocated. Then each tensor, which stays mapped and never becomes memory
of our own, is cast while it is copied to where it belongs. Query, key and value go straight into one fused tensor, and
each map of the encoder is turned at once into what computes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import weight_files
from service.engine.linear import PLAIN, Kind, Linear, Plain
from service.engine.tensor_files import Progress, TensorFiles
from service.engine.weights import Weights, assemble
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

# What a checkpoint may hold beside what its kind needs. Anything else that is unknown is an error: a model that is
# silently not the one in the file answers nonsense.
_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids", "cls.", "pooler.", "classifier.")

_Fill = Callable[[str, Tensor], None]  # puts the tensor of this canonical name there


def read_weights(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, kind: Kind, progress: Progress
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

    def __init__(self, files: TensorFiles, device: torch.device, dtype: torch.dtype, kind: Kind, fill: _Fill) -> None:
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
