"""The ways to compute attention over packed rows, and which of them is taken.

A way is one function in a file of its own and one entry in BACKENDS; the parity tests find it there. Knows no layers
and no weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from service.engine import attention_backends
from service.engine.packing import Layout, bucket
from service.errors import SettingError

logger = logging.getLogger(__name__)

# From fused queries, keys and values [tokens, 3, heads, head size] to [tokens, heads * head size]: one layer.
Attend = Callable[[Tensor], Tensor]

# What a batch needs once, whatever the number of layers.
Prepare = Callable[[Layout, torch.device, torch.dtype], Attend]


@dataclass(frozen=True, slots=True)
class Place:
    """Where attention is computed, and of what size."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class Backend:
    prepare: Prepare
    runs_on: Callable[[Place], bool]


def plain_beside_masked(plain: Prepare, masked: Prepare) -> Prepare:
    """One way for the rows that see all of themselves, another for the rows with blocks, in one batch."""

    def prepare(layout: Layout, device: torch.device, dtype: torch.dtype) -> Attend:
        first, second = layout.split()
        if not second.rows:
            return plain(first, device, dtype)
        if not first.rows:
            return masked(second, device, dtype)
        attend_plain, attend_masked = plain(first, device, dtype), masked(second, device, dtype)
        cut = first.num_tokens
        return lambda qkv: torch.cat([attend_plain(qkv[:cut]), attend_masked(qkv[cut:])])

    return prepare


def _has_varlen(place: Place) -> bool:
    return attention_backends.varlen_runs_on(place.device, place.dtype, place.head_size)


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(attention_backends.prepare_sdpa, runs_on=lambda place: True),
    "flex": Backend(attention_backends.prepare_flex, runs_on=lambda place: True),
    "varlen": Backend(
        plain_beside_masked(attention_backends.prepare_varlen, attention_backends.prepare_sdpa), _has_varlen
    ),
    "varlen+flex": Backend(
        plain_beside_masked(attention_backends.prepare_varlen, attention_backends.prepare_flex), _has_varlen
    ),
}


def choose(name: str, place: Place, num_layers: int = 1) -> tuple[str, Prepare]:
    """The backend of that name. `auto` is the quickest on a GPU; on a CPU it is sdpa, which alone is made for it.

    Raises SettingError when the backend does not run in that place.
    """
    attention_backends.leave_out_cudnn()
    fitting = {each: backend for each, backend in BACKENDS.items() if backend.runs_on(place)}
    if name == "auto":
        name = _quickest_on(place, fitting, num_layers) if place.device.type == "cuda" else "sdpa"
    if name not in fitting:
        wanted = ", ".join(fitting)
        raise SettingError(f"attention backend {name!r} does not run on {place.device}; wanted auto, {wanted}")
    return name, fitting[name].prepare


_PLAIN, _CHOICES = range(16, 144, 4), range(24, 120, 12)
TYPICAL = Layout(
    rows=(*((length, ()) for length in _PLAIN), *((length, ((1, 4), (4, 8))) for length in _CHOICES)),
    num_tokens=bucket(sum(_PLAIN) + sum(_CHOICES)),
)
"""What the backends are compared on: short and middling rows, some of them choices, and no two of one length. Lengths
that repeat would flatter the way that takes them together, and in traffic few do."""

TIMES = 5
"""So often each is tried; the shortest time counts."""


def _quickest_on(place: Place, fitting: Mapping[str, Backend], num_layers: int) -> str:
    sizes = (TYPICAL.num_tokens, 3, place.num_heads, place.head_size)
    qkv = torch.randn(sizes, device=place.device, dtype=place.dtype)
    runs = {name: partial(trial, backend.prepare, qkv, num_layers) for name, backend in fitting.items()}
    return quickest(runs)


@torch.inference_mode()
def trial(prepare: Prepare, qkv: Tensor, num_layers: int) -> None:
    """The attention of one typical batch, from what is made once to the last layer."""
    attend = prepare(TYPICAL, qkv.device, qkv.dtype)
    for _ in range(num_layers):
        attend(qkv)
    if qkv.is_cuda:
        torch.cuda.synchronize(qkv.device)


def quickest(runs: Mapping[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter) -> str:
    """The name of what took the least time; what fails is left out. SettingError when everything fails."""
    seconds: dict[str, float] = {}
    for name, run in runs.items():
        try:
            run()  # what is made once, code above all, does not count
            seconds[name] = min(_seconds(run, clock) for _ in range(TIMES))
        except Exception as error:  # noqa: BLE001 - a compiler or a kernel that is not there is no reason not to serve
            logger.warning("attention does not run here", extra={"attention": name, "reason": _first_line(error)})
    if not seconds:
        raise SettingError("no attention backend runs on this device")
    logger.info("attention measured", extra={name: round(1000 * each, 3) for name, each in seconds.items()})
    return min(seconds, key=seconds.__getitem__)


def _seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
