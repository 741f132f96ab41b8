"""What this machine gives a training run: memory of a device, speed of its matrix products, free disk."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from service.errors import SettingError
from service.host import num_cuda_devices, number_of, process_memory, read_text
from service.tools.training.estimate import describe_bytes

MATRIX, LARGE_MATRIX = 768, 4096
SAMPLE_S = 0.2
EFFICIENCY = 0.5
"""The share of a matrix product's speed that a training step reaches, as measured with mini and e5-small."""


def device() -> str:
    return "cuda" if num_cuda_devices() else "cpu"


def memory_of_process(num_processes: int) -> int:
    """Bytes that each of the processes may use: the memory of a GPU, or a share of the machine's."""
    if device() == "cuda":
        import torch

        return min(torch.cuda.get_device_properties(index).total_memory for index in range(num_cuda_devices()))
    free = (number_of(read_text(Path("/proc/meminfo")), "MemAvailable:") or 0) * 1024
    found = process_memory()
    return (min(found.total, free) if free else found.total) // num_processes


def flops_per_s(precision: str) -> float:
    """Of a matrix product on this device, measured for a moment."""
    import torch

    size, where = (LARGE_MATRIX, "cuda") if device() == "cuda" else (MATRIX, "cpu")
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(size, size, device=where, dtype=kind) for _ in range(2))
    _ = (left @ right).sum().item()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SAMPLE_S:
        _ = (left @ right).sum().item()
        count += 1
    return count * 2.0 * size**3 / (time.perf_counter() - started)


def require_disk(folder: Path, needed: int) -> None:
    """
    Raises:
        SettingError: the file system of the folder has less free space than that.
    """
    free = free_disk(folder)
    if free < needed:
        raise SettingError(
            f"--output {folder}: the run needs {describe_bytes(needed)} of disk, {describe_bytes(free)} are free"
        )


def free_disk(folder: Path) -> int:
    """Of the nearest folder that exists."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free
