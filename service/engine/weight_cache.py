"""The weight cache: weights in the form that the device needs, converted once, saved to a file and mapped afterwards.

Mapped weights take no private memory of a process on a CPU, so the replicas of a machine share them. A cache that
cannot be written does not stop the service: the weights are then converted at every start.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.converted import CacheEntry, is_worthwhile, lock
from service.checkpoints.files import require_checksums, weight_files
from service.engine.linear import Linear
from service.engine.tensor_files import Progress, TensorFiles
from service.engine.torch_private import map_packed, packed_layout, packed_values
from service.engine.weights import WeightFormat, Weights, build_weights, cached_prefix, read_weights
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

_LAYOUT = ".layout"
"""Appended to the name of a packed weight: the tensor that describes its layout."""


def load_weights(
    checkpoint: Checkpoint, weight_format: WeightFormat, progress: Progress, folder: Path | None, form: str
) -> Weights:
    """Maps the cached weights, after converting them where there are none yet.

    `folder` is the cache; without one, the checkpoint itself is read. `form` names the format (see `form_of`).
    Raises CheckpointError as `read_weights` does.
    """
    sources = weight_files(checkpoint.path)
    if folder is not None and is_worthwhile(sources, weight_format.device.type):
        try:
            entry = CacheEntry.of(folder, checkpoint.origin, sources, form)
            return _WeightCache(checkpoint, weight_format, entry).load(sources, progress)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("weights are not cached", extra={"folder": str(folder), "reason": reason})
    return read_weights(checkpoint, weight_format, progress)[0]


class _WeightCache:
    """One entry of the cache. Every method raises OSError when the disk fails."""

    def __init__(self, checkpoint: Checkpoint, weight_format: WeightFormat, entry: CacheEntry) -> None:
        self._checkpoint = checkpoint
        self._format = weight_format
        self._entry = entry

    def load(self, sources: Sequence[Path], progress: Progress) -> Weights:
        if weights := self._map():
            return weights
        with lock(self._entry.file.parent):
            weights = self._map()  # another process may have converted them while this one waited
            if weights is None:
                self._convert(sources, progress)
                weights = self._map()
        if weights is None:
            raise OSError(errno.EIO, "the converted weights cannot be read")
        return weights

    def _map(self) -> Weights | None:
        """None without a usable file. Length and header are checked; the content was when the file was written."""
        file = self._entry.file
        if not file.is_file():
            return None
        try:
            with TensorFiles.open((file,)) as files:
                weights = build_weights(self._checkpoint, files, _CacheReader(files, self._format))
        except CheckpointError as error:
            logger.warning("cached weights are broken", extra={"file": str(file), "reason": error.detail})
            return None
        logger.info("weights mapped", extra={"model": self._checkpoint.name, "file": str(file)})
        return weights

    def _convert(self, sources: Sequence[Path], progress: Progress) -> None:
        started, file = time.monotonic(), self._entry.file
        source_bytes = sum(source.stat().st_size for source in sources)
        logger.info("converting weights", extra={"file": str(file), "source_bytes": source_bytes})
        estimated_bytes = self._checkpoint.shape.num_parameters * self._format.dtype.itemsize
        with self._entry.write_entry(estimated_bytes) as temporary, ThreadPoolExecutor(1) as pool:
            checking = pool.submit(require_checksums, sources)
            _, tensors = read_weights(self._checkpoint, self._format, progress)
            num_bytes = save_tensors(temporary, _to_plain_tensors(tensors))
            progress(num_bytes, num_bytes)
            if not is_sound(temporary):
                raise OSError(errno.EIO, "the disk does not hold what was written")
            checking.result()  # damaged sources must not get into the cache
        extra = {"file": str(file), "source_bytes": source_bytes, "cache_bytes": file.stat().st_size}
        logger.info("weights converted", extra={**extra, "seconds": round(time.monotonic() - started, 1)})


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
        return linear_class.from_tensors(
            {field: self._map_field(f"{prefix}.{field}", num_out, num_in) for field in linear_class.field_names()}
        )

    def _map_field(self, name: str, num_out: int, num_in: int) -> Tensor:
        if name + _LAYOUT not in self._files:
            return self._map(name)
        return map_packed(self._files.map(name), self._files.map(name + _LAYOUT), (num_out, num_in))

    def _map(self, name: str) -> Tensor:
        return self._files.map(name).to(self._format.device)


def _to_plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Packed weights become two tensors each: their content and their layout."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_mkldnn:
            plain |= {name: packed_values(tensor), name + _LAYOUT: packed_layout(tensor)}
        else:
            plain[name] = tensor.contiguous()
    return plain


_CHECKSUM = "crc32"
_CHUNK_BYTES = 1 << 20
_ALIGNMENT = 64
"""A cache line: with the 8 bytes of the format, packed weights are multiplied 25 to 40 % slower (64 to 256 tokens)."""


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> int:
    """Writes a safetensors file with a checksum in its metadata, and waits for the disk. Returns the bytes of the file.

    Every tensor starts at a multiple of 64 bytes; for this, tensors with names in `.padding` fill the gaps.
    Raises OSError, as when the disk is full.
    """
    padded = dict(tensors)
    for name, tensor in tensors.items():
        if missing := -tensor.nbytes % _ALIGNMENT:
            padded[f"{name}.padding"] = torch.zeros(missing // tensor.itemsize, dtype=tensor.dtype)
    checksum = _checksum(padded.items())
    checksum += " " * (-_header_bytes(padded, checksum) % _ALIGNMENT)
    try:
        save_file(padded, file, metadata={_CHECKSUM: checksum})
    except SafetensorError as error:
        raise _os_error(error) from error
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    file.chmod(0o644)  # save_file leaves it to its owner alone; replicas of another user map it, too
    return file.stat().st_size


def is_sound(file: Path) -> bool:
    """Whether the disk holds the tensors that were saved, by their checksum. OSError when it cannot be read.

    The pages that the system caches of the file are dropped first.
    """
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while stream.read(_CHUNK_BYTES):  # a disk error is an OSError here; of a mapped page it ends the process
            pass
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = ((name, opened.get_tensor(name)) for name in opened.offset_keys())
            saved: str = (opened.metadata() or {}).get(_CHECKSUM, "")
            return saved.rstrip(" ") == _checksum(tensors)
    except SafetensorError:
        return False


def _header_bytes(tensors: Mapping[str, Tensor], checksum: str) -> int:
    """The bytes before the first tensor. The order of the tensors, by type and name, is that of a tiny file."""
    tiny = save({name: torch.zeros(1, dtype=tensor.dtype) for name, tensor in tensors.items()})
    entries = json.loads(tiny[8 : 8 + int.from_bytes(tiny[:8], "little")])
    offset, header = 0, {"__metadata__": {_CHECKSUM: checksum}}
    for name, entry in entries.items():
        end = offset + tensors[name].nbytes
        header[name] = entry | {"shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    return 8 + len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())


def _checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The CRC-32 of names, types, shapes and contents; the order of the tensors does not matter."""
    lines = sorted(
        f"{name} {tensor.dtype} {list(tensor.shape)} {zlib.crc32(_bytes_of(tensor)):08x}" for name, tensor in tensors
    )
    text = "\n".join(lines)
    return f"{zlib.crc32(text.encode()):08x}"


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().reshape(-1).view(torch.uint8).numpy().data


def _os_error(error: SafetensorError) -> OSError:
    """safetensors reports the number of a system error in its text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error))
