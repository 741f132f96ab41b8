"""Out of memory: which errors count as OutOfMemory, and that the tensors of the forward are freed."""

from __future__ import annotations

import gc
import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.engine.device import device_memory, or_out_of_memory, why_no_cuda
from service.engine.engine import Engine
from service.errors import DeviceFailure, OutOfMemory
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import mean_rows

CPU = torch.device("cpu")


def fail_with(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_allocation_errors_become_out_of_memory(error: Exception) -> None:
    with pytest.raises(OutOfMemory):
        or_out_of_memory(lambda: fail_with(error), CPU)


def test_an_unrecoverable_onednn_error_becomes_device_failure() -> None:
    with pytest.raises(DeviceFailure, match="could not create a primitive"):
        or_out_of_memory(lambda: fail_with(RuntimeError("could not create a primitive")), CPU)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")])
def test_other_errors_are_raised_unchanged(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        or_out_of_memory(lambda: fail_with(error), CPU)


def test_tensors_of_the_forward_are_freed_before_out_of_memory_is_raised() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def forward() -> None:
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        raise MemoryError

    gc.disable()  # the tensor must be freed by its reference count, not by the collector
    try:
        with pytest.raises(OutOfMemory) as raised:
            or_out_of_memory(forward, CPU)
        assert held[0]() is None
        assert raised.value.__context__ is None
    finally:
        gc.enable()


def test_a_cpu_device_reports_no_memory() -> None:
    assert device_memory(CPU) is None


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Limits the process to `num_bytes` more than it uses."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_batch_without_memory_raises_out_of_memory_and_the_engine_recovers(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "m"), precision="float32")
    # 64 MiB per tensor: malloc requests that size from the kernel whatever the heap holds. Smaller tensors could come
    # from the heap; the first allocation to fail would then be oneDNN's, from which a process does not recover.
    rows = mean_rows([512] * 512)
    with memory_limit(2**20), pytest.raises(OutOfMemory):
        engine.run(rows)
    few = engine.run(rows[:2])
    assert all(np.isfinite(output.scores).all() for output in few)


@pytest.mark.parametrize(
    ("needed", "supported", "words"),
    [
        ("13.0", (12, 4), ("supports CUDA 12.4 at most", "CUDA 13.0", "driver 580.65.06", "TORCH_BUILD=cu126")),
        ("12.6", (11, 4), ("CUDA 11.4 at most", "driver 525.60.13")),
        (None, (12, 4), ("built without CUDA", "--devices cpu")),
    ],
)
def test_a_driver_that_is_too_old_is_named_with_what_is_needed(
    needed: str | None, supported: tuple[int, int], words: tuple[str, ...]
) -> None:
    reason = why_no_cuda("2.13.0", needed, supported)
    assert reason is not None
    assert [each for each in words if each not in reason] == []


@pytest.mark.parametrize(("needed", "supported"), [("12.8", (12, 2)), ("12.6", (13, 0)), ("13.0", None)])
def test_a_driver_of_the_same_major_version_or_a_newer_one_is_enough(
    needed: str, supported: tuple[int, int] | None
) -> None:
    assert why_no_cuda("2.13.0", needed, supported) is None
