"""Attention over rows of varying length by torch's packed flash kernel: one call, no padding, head sizes up to 256.

It sees every token of a row from every other: rows with blocks are not for it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from service.engine.copies import to_device
from service.engine.layout import Layout

MAX_HEAD_SIZE = 256
LEAST_CAPABILITY = (8, 0)  # Ampere


def varlen_runs_on(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return (
        head_size <= MAX_HEAD_SIZE
        and head_size % 8 == 0
        and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    )


def prepare_varlen(layout: Layout, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    from torch.nn.attention.varlen import varlen_attn  # registers kernels: not on a CPU, where nobody asks for them

    ends = layout.ends  # the filling is a row like others: so it is written, and finite
    offsets = to_device(torch.tensor(ends, dtype=torch.int32), device)
    longest = max(end - start for start, end in pairwise(ends))

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unbind(1)
        out = varlen_attn(query, key, value, offsets, offsets, longest, longest)
        assert isinstance(out, Tensor)
        return out.flatten(1)

    return attend
