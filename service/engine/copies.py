"""Copies between memories that nobody waits for, and the moment at which one has to.

Pinned memory lets a copy to or from a GPU run beside its work. On a CPU nothing is copied, and nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Makes the device this thread's own: a thread starts with the first GPU, and would take memory there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_host(tensor: Tensor) -> Tensor:
    """Holds its numbers only when a `fence` made afterwards has been passed."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def wait_event(device: torch.device) -> Callable[[], None]:
    """Waits, when it is called, for all that the device had been given when it was made."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    wait: Callable[[], None] = event.synchronize
    return wait
