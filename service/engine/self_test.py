"""The self-test: each kernel that may serve a model is compared with a plain reference when the model is loaded.

Kernels depend on the device, its driver and the versions of libraries, and a wrong one raises no error. The reference
is plain arithmetic in float32 on the CPU, on the same known numbers, rounded to the precision of the kernel. One that
differs or fails is left out, with a warning: another one takes its place.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from service.domain import Check, KernelKind
from service.engine.attention_backends import prepare_plain
from service.engine.device import device_guard
from service.engine.packing import Layout

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

ATTENTION_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""Largest distances. Rounding alone gives 1e-6 and 0.006; a wrong head, row or mask gives far more."""

LAYOUTS = (
    Layout(((1, ()), (7, ()), (7, ()), (40, ()), (20, ((1, 4), (4, 9))), (29, ((1, 8), (8, 20)))), 112),
    Layout(((130, ()), (150, ((1, 9), (9, 140)))), 288),
)
"""Rows of equal and of different lengths, plain and with blocks, and a padding. Compiled kernels distinguish up to 128
tokens from more; a CPU has none, and is checked with the first."""


def compare(kind: KernelKind, name: str, pairs: Callable[[], Iterable[tuple[Tensor, Tensor]]], limit: float) -> Check:
    """Compares what a kernel computes with what is known, for each of `pairs`; logs a warning where it is left out."""
    started = time.perf_counter()
    found: float | None = None
    try:
        with torch.inference_mode():
            found = max(distance(computed, known) for computed, known in pairs())
        reason = "" if found <= limit else f"differs by {found:.3g} from the reference; at most {limit:g} is rounding"
    except Exception as error:  # noqa: BLE001 - a kernel that fails must not stop the service
        reason = f"{type(error).__name__}: {first_line(error)}"
    check = Check(kind, name, found, time.perf_counter() - started, reason)
    if not check.is_sound:
        logger.warning("kernel left out", extra={"kind": kind, "kernel": name, "reason": reason})
    return check


def distance(computed: Tensor, known: Tensor) -> float:
    """The largest relative distance of any row and any column, of two matrices; infinity where numbers are missing.

    One wrong row or column among many hardly changes the distance of the whole.
    """
    computed, known = computed.float().cpu(), known.float().cpu()
    if computed.shape != known.shape or not computed.isfinite().all():
        return math.inf
    squares, wanted = (computed - known).square(), float(known.square().mean())
    worst = max(float(squares.mean(dim).max()) for dim in (0, 1))
    return math.sqrt(worst / wanted) if wanted else float(worst > 0)


def numbers(*sizes: int) -> Tensor:
    """Normally distributed numbers, the same for the same sizes, on the CPU in float32."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def check_attention(
    name: str,
    prepare: Callable[[Layout, torch.device, torch.dtype], Callable[[Tensor], Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int],
) -> Check:
    """Compares a backend with the plain one; `heads` are their number and their size."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for layout in LAYOUTS[:1] if device.type == "cpu" else LAYOUTS:
            qkv = numbers(layout.num_tokens, 3, *heads).to(dtype)
            with device_guard(device):
                out = prepare(layout, device, dtype)(qkv.to(device))
            end = layout.offsets[-1]
            yield out[:end], prepare_plain(layout, CPU, torch.float32)(qkv.float())[:end]
            yield out[end:].isfinite(), torch.ones(layout.num_tokens - end, out.shape[1])  # the padding must be numbers

    return compare("attention", name, pairs, ATTENTION_LIMITS[dtype])


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
