"""Running out of memory: what is told as that, what is not, and that the forward's tensors are let go."""

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
from service.engine.device import device_memory, or_out_of_memory
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
def test_what_is_told_as_out_of_memory(error: Exception) -> None:
    with pytest.raises(OutOfMemory):
        or_out_of_memory(lambda: fail_with(error), CPU)


def test_what_a_process_does_not_get_over() -> None:
    with pytest.raises(DeviceFailure, match="could not create a primitive"):
        or_out_of_memory(lambda: fail_with(RuntimeError("could not create a primitive")), CPU)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")])
def test_what_is_not(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        or_out_of_memory(lambda: fail_with(error), CPU)


def test_what_the_forward_held_is_let_go_before_it_is_told() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def forward() -> None:
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        raise MemoryError

    gc.disable()  # it is not the collector that lets go
    try:
        with pytest.raises(OutOfMemory) as told:
            or_out_of_memory(forward, CPU)
        assert held[0]() is None
        assert told.value.__context__ is None
    finally:
        gc.enable()


def test_of_a_cpu_the_process_knows_better() -> None:
    assert device_memory(CPU) is None


@contextmanager
def room_for(more: int) -> Iterator[None]:
    """No more than so many bytes can be had."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_batch_that_finds_no_memory_is_told_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "m"), precision="float32")
    # 64 MiB a tensor: whatever the heap holds, malloc asks the kernel for so much. Smaller ones could come from the
    # heap, and oneDNN be the first to find no room, which no process gets over.
    rows = mean_rows([512] * 512)
    with room_for(2**20), pytest.raises(OutOfMemory):
        engine.run(rows)
    few = engine.run(rows[:2])
    assert all(np.isfinite(output.scores).all() for output in few)
