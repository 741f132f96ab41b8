"""The weight cache: weights in the form that the device needs, converted once, saved to a file and mapped afterwards.

Mapped weights take no private memory of a process on a CPU, so the replicas of a machine share them. A cache that
cannot be written does not stop the service: the weights are then converted at every start.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from service.checkpoints.checked_file import CheckedFile, DamagedFile, Part, write_checked
from service.checkpoints.checkpoint import Checkpoint, source_files
from service.checkpoints.converted import CacheEntry, is_worthwhile, lock
from service.checkpoints.files import require_checksums
from service.domain import Encoding
from service.engine.input_ranges import measure_ranges, random_rows
from service.engine.linear import Linear, Plain
from service.engine.tensor_files import Progress, TensorFiles
from service.engine.torch_private import map_packed, packed_layout, packed_values
from service.engine.weights import WeightFormat, Weights, build_weights, cached_prefix, read_dense, read_weights
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

SampleRows = Callable[[], Sequence[Encoding]]
"""Makes rows of known texts."""

_LAYOUT = ".layout"
"""Appended to the name of a packed weight: the tensor that describes its shape and layout."""

_SHAPE_BYTES = 16
"""Of this tensor: two numbers of 64 bits; the layout follows."""

CHECKED_FIRST_BYTES = 1 << 27
"""Files up to this size are checked completely before they are mapped, which takes 0.1 s: read from the page cache and
summed up, 1.2 GB/s on one core. The content of larger ones is checked while they are used."""


class WeightLoader:
    """Loads the weights of one checkpoint, and checks what it has mapped.

    `folder` is the cache; without one, the checkpoint itself is read. `form` names the format (see `form_of`).
    `sample_rows` makes the rows on which the ranges of inputs are measured, where maps have fixed scales.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weight_format: WeightFormat,
        progress: Progress,
        folder: Path | None,
        form: str,
        sample_rows: SampleRows | None = None,
    ) -> None:
        self.has_found_damage = False
        """Whether any cached weights were damaged; those that were loaded last are sound."""
        self._checkpoint = checkpoint
        self._format = weight_format
        self._progress = progress
        self._folder = folder
        self._form = form
        self._sample_rows = sample_rows or (lambda: random_rows(checkpoint.shape))
        self._mapped: CheckedFile | None = None
        self._is_checked = False

    def load(self, *, in_full: bool = False) -> Weights:
        """Maps the cached weights, after converting them where there are none yet, or none that are sound.

        The content of a large file is checked before it is mapped only where `in_full` is true; `require_sound` does it
        afterwards. Dense layers are small and not cached. Raises CheckpointError as `read_weights` does.
        """
        dense = read_dense(self._checkpoint, self._format.device)  # first: what is wrong with them is found soon
        return replace(self._load_encoder(in_full), dense=dense)

    def _load_encoder(self, in_full: bool) -> Weights:
        self._mapped, self._is_checked = None, False
        sources = source_files(self._checkpoint)
        has_fixed_scales = self._format.linear_class.has_fixed_scales  # it takes a forward to measure them
        if self._folder is not None and (has_fixed_scales or is_worthwhile(sources, self._format.device.type)):
            try:
                entry = CacheEntry.of(self._folder, self._checkpoint.origin, sources, self._form)
                return self._load_cached(entry, sources, in_full)
            except OSError as error:
                reason = error.strerror or str(error)
                logger.warning("weights are not cached", extra={"folder": str(self._folder), "reason": reason})
        return self._read()[0]

    def _read(self) -> tuple[Weights, dict[str, Tensor]]:
        """Reads the checkpoint: twice for maps with fixed scales, first to measure the ranges of their inputs."""
        wanted = self._format
        if wanted.linear_class.has_fixed_scales:
            exact, _ = read_weights(self._checkpoint, replace(wanted, linear_class=Plain), self._progress)
            ranges = measure_ranges(exact, self._checkpoint.shape, self._sample_rows())
            wanted = replace(wanted, ranges=ranges)
            del exact  # there are never two copies of all weights
        return read_weights(self._checkpoint, wanted, self._progress)

    def require_sound(self, share: float = 1.0) -> None:
        """Checks the file that the weights are mapped from; raises DamagedFile, after removing the file.

        `share` is that of the time in which it works. Any thread may call it. What has been copied to a GPU after its
        file was checked does not change with the file, so it is not checked again.
        """
        if self._mapped is None or (self._is_checked and self._format.device.type != "cpu"):
            return
        try:
            self._mapped.check(share)
        except DamagedFile as error:
            self.has_found_damage = True
            if self._mapped.is_in_place():
                with suppress(OSError):  # where it cannot be removed, the next start finds the damage again
                    _remove(self._mapped.path)
            extra = {"model": self._checkpoint.name, "file": str(self._mapped.path), "reason": str(error)}
            logger.error("cached weights in use are damaged", extra=extra)
            raise
        self._is_checked = True

    # the cache; every method raises OSError when the disk fails

    def _load_cached(self, entry: CacheEntry, sources: Sequence[Path], in_full: bool) -> Weights:
        damage = None
        try:
            return self._map(entry.file, in_full)
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            damage = error
        try:
            with lock(entry.file.parent):  # another process may have converted them while this one waited
                return self._map_or_convert(entry, sources, in_full)
        except OSError as error:
            if damage is None:
                raise
            reason = f"{entry.file} is damaged ({damage}), and is not replaced: {error.strerror or error}"
            raise OSError(error.errno, reason) from error

    def _map_or_convert(self, entry: CacheEntry, sources: Sequence[Path], in_full: bool) -> Weights:
        try:
            return self._map(entry.file, in_full)
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            _remove(entry.file)
            logger.warning("cached weights are damaged", extra={"file": str(entry.file), "reason": str(error)})
        self._convert(entry, sources)
        try:
            return self._map(entry.file, in_full)
        except DamagedFile as error:
            raise OSError(errno.EIO, f"the converted weights cannot be read ({error})") from error

    def _map(self, file: Path, in_full: bool) -> Weights:
        """Raises FileNotFoundError where there is no file, or none of this model; DamagedFile for a damaged one."""
        try:
            opened = CheckedFile.open(file)
            if in_full or opened.size <= CHECKED_FIRST_BYTES:
                opened.check()
        except DamagedFile:
            self.has_found_damage = True
            raise
        try:
            with TensorFiles.open((file,)) as files:
                weights = build_weights(self._checkpoint, files, _CacheReader(files, self._format))
        except CheckpointError as error:
            logger.warning("cached weights do not fit", extra={"file": str(file), "reason": error.detail})
            raise FileNotFoundError(errno.ENOENT, "the cached weights are of another model") from error
        if not opened.is_in_place():
            raise FileNotFoundError(errno.ENOENT, "the cached weights were replaced while they were mapped")
        self._mapped, self._is_checked = opened, in_full or opened.size <= CHECKED_FIRST_BYTES
        logger.info("weights mapped", extra={"model": self._checkpoint.name, "file": str(file)})
        return weights

    def _convert(self, entry: CacheEntry, sources: Sequence[Path]) -> None:
        started, file = time.monotonic(), entry.file
        source_bytes = sum(source.stat().st_size for source in sources)
        logger.info("converting weights", extra={"file": str(file), "source_bytes": source_bytes})
        estimated_bytes = self._checkpoint.shape.num_parameters * self._format.dtype.itemsize
        with entry.write_entry(estimated_bytes) as temporary, ThreadPoolExecutor(1) as pool:
            checking = pool.submit(require_checksums, sources)
            _, tensors = self._read()
            num_bytes = save_tensors(temporary, _to_plain_tensors(tensors))
            self._progress(num_bytes, num_bytes)
            _require_written(temporary)
            checking.result()  # damaged sources must not get into the cache
        extra = {"file": str(file), "source_bytes": source_bytes, "cache_bytes": file.stat().st_size}
        logger.info("weights converted", extra={**extra, "seconds": round(time.monotonic() - started, 1)})


def is_cached(folder: Path | None, checkpoint: Checkpoint, form: str) -> bool:
    """Whether the folder has converted weights of the checkpoint in this form."""
    if folder is None:
        return False
    with suppress(OSError):  # loading the sources reports it
        return CacheEntry.of(folder, checkpoint.origin, source_files(checkpoint), form).file.is_file()
    return False


def _remove(file: Path) -> None:
    """Removes a damaged file, or what is in its place; of folders, empty ones only."""
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)


def _require_written(file: Path) -> None:
    """OSError when the disk does not hold what was written. What the system caches of the file is dropped first."""
    try:
        opened = CheckedFile.open(file)
        opened.forget_pages()
        opened.check()
    except DamagedFile as error:
        raise OSError(errno.EIO, f"the disk does not hold what was written ({error})") from error


class _CacheReader:
    """Maps tensors from a cached file; on a CPU without a copy."""

    def __init__(self, files: TensorFiles, weight_format: WeightFormat) -> None:
        self._files = files
        self._format = weight_format

    def tensor(self, name: str, *shape: int) -> Tensor:
        self._files.expect(name, shape)
        return self._map(name)

    def linear(self, name: str, parts: Sequence[str], num_out: int, num_in: int) -> Linear:
        linear_class = self._format.linear_class
        prefix = cached_prefix(name, linear_class)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(linear_class.field_names(), (num_out,))
        shapes |= {"weight": (num_out, num_in), **dict.fromkeys(linear_class.input_fields, (num_in,))}
        fields = {field: self._map_field(f"{prefix}.{field}", shape) for field, shape in shapes.items()}
        return linear_class.from_tensors(fields)

    def _map_field(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The shape is that of a packed weight, or some order of it, without dimensions of 1."""
        is_packed = name + _LAYOUT in self._files
        layout = self._files.map(name + _LAYOUT) if is_packed else torch.empty(0)
        found = layout[:_SHAPE_BYTES].view(torch.int64).tolist() if is_packed else self._files.shape(name)
        if _dimensions(found) != _dimensions(shape):
            raise CheckpointError(f"{self._files.where(name)}: {name} has shape {list(found)}; wanted {list(shape)}")
        return map_packed(self._files.map(name), layout[_SHAPE_BYTES:], shape) if is_packed else self._map(name)

    def _map(self, name: str) -> Tensor:
        return self._files.map(name).to(self._format.device)


def _dimensions(shape: Iterable[int]) -> list[int]:
    return sorted(size for size in shape if size != 1)


def _to_plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Packed weights become two tensors each: their content, and their shape and layout as bytes."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_mkldnn:
            shape = torch.tensor(tensor.shape, dtype=torch.int64).view(torch.uint8)
            plain |= {name: packed_values(tensor), name + _LAYOUT: torch.cat([shape, packed_layout(tensor)])}
        else:
            plain[name] = tensor.contiguous()
    return plain


_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> int:
    """Writes a safetensors file with checksums; layouts are in its head. Returns the bytes of the file.

    Raises OSError, as when the disk is full.
    """
    parts = [
        Part(name, _DTYPES[tensor.dtype], tensor.shape, tensor.nbytes, partial(_bytes_of, tensor))
        for name, tensor in tensors.items()
    ]
    head = [part for part in parts if part.name.endswith(_LAYOUT)]
    return write_checked(file, head, [part for part in parts if part not in head])


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().reshape(-1).view(torch.uint8).numpy().data
