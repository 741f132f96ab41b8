"""What the parts of the GPU benchmark are measured on, and how: runs on the host's clock, the device let go of."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_model import rows
from service.checkpoints.checkpoint import Shape
from service.domain import Encoding

ROW_TOKENS = 128

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, and how long."""

    device: torch.device
    shape: Shape
    small: Shape
    batch_tokens: int
    times: int

    @property
    def full_batch(self) -> list[Encoding]:
        return rows(self.shape, [ROW_TOKENS] * (self.batch_tokens // ROW_TOKENS))

    @property
    def flop_per_token(self) -> int:
        """Of the matrix products and, for rows of 128 tokens, of the attention."""
        hidden, ffn = self.shape.hidden_size, self.shape.ffn_size
        return 2 * self.shape.num_layers * (4 * hidden**2 + 2 * hidden * ffn + 2 * ROW_TOKENS * hidden)


def seconds(run: Callable[[], object], times: int) -> list[float]:
    """Of so many runs, shortest first; two before them do not count."""
    taken = []
    for _ in range(times + 2):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return sorted(taken[2:])


def repeated(setting: Setting, run: Callable[[], object], times: int = 10) -> float:
    """Seconds of one run among some that are launched together."""

    def several() -> None:
        for _ in range(times):
            run()
        synchronize(setting.device)

    return median(seconds(several, setting.times)) / times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
