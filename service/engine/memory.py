"""Running out of memory, told as one error whichever library found none; and how much of it a GPU has.

Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from service.domain import Memory
from service.errors import Died, OutOfMemory

T = TypeVar("T")

_SIGNS = (
    "can't allocate memory",  # torch, of a CPU
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # torch, where its memory may grow
    "Triton Error [CUDA]: out of memory",  # for the code of a kernel, which is loaded when it is first launched
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""In a RuntimeError, which is all that it is to these libraries."""


_LASTING_SIGN = "could not create a primitive"
"""oneDNN: it says no more where there is no room for the code that it makes, and it does not get over it: from then on
it may refuse every size of batch that is new to it, room or not, or end the process."""


def or_out_of_memory(call: Callable[[], T], device: torch.device) -> T:
    """What the call returns; OutOfMemory, with all that it held let go, when there is none for it; Died where that is
    the end of this process."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if _LASTING_SIGN in str(error):
            raise Died(str(error)) from error
        if not is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    # Out here the error is gone, and with its traceback the tensors of the forward.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise OutOfMemory(reason)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _SIGNS)


def device_memory(device: torch.device) -> Memory | None:
    """All that is taken of a GPU, by whomever; None for a CPU, whose memory is the process's."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return Memory(total - free, total)
