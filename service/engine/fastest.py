"""The choice of a runtime and a quantization by measurement: one layer of the model's sizes, in each that there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from service.checkpoints.shape import Shape
from service.engine.arithmetic import Arithmetic
from service.engine.attention_backends import prepare_sdpa
from service.engine.device import DTYPES, Call, device_guard
from service.engine.linear import InputRange, Linear
from service.engine.packing import Layout
from service.engine.sample_layer import make_sample, sample_shape, sample_tokens
from service.engine.trials import as_served, time_each

logger = logging.getLogger(__name__)

NUM_TOKENS = 32
"""Of one row, a short text: what an arithmetic costs beside its products weighs most in a small batch."""

WORTHWHILE_GAIN = 1.2
"""How many times as fast as none a quantization must be: a smaller gain is not worth its rounding, and noise could
change the choice from one start to the next."""

WORTHWHILE_COPY = 1.05
"""How many times as fast as torch ONNX Runtime must be: its weights are copies of each process. One layer shows about
half of what single rows gain in a whole model, whose weights do not stay in the caches of the CPU."""

WORTHWHILE_CONVERSION = 1.25
"""How many times as fast as one whose weights are cached another one must be: noise should not have them converted, and
measured where they have fixed scales, at every other start."""


def fastest(
    candidates: Sequence[Arithmetic], shape: Shape, device: torch.device, cached: Collection[Arithmetic] = ()
) -> Arithmetic:
    """The fastest on a layer of this shape, of at least one. Logs the times and the choice of several.

    `cached` are those whose weights are in the weight cache.
    """
    if len(candidates) == 1:
        return candidates[0]
    with device_guard(device):
        return choose({each: as_served(partial(_bind, each, shape, device), device) for each in candidates}, cached)


def choose(
    runs: Mapping[Arithmetic, Callable[[], None]],
    cached: Collection[Arithmetic] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Arithmetic:
    """The fastest of these, unless it gains too little over one without quantization, over torch, or over a cached one.

    One that fails is not chosen; of those that all fail, the first is.
    """

    def warn(name: str, reason: str) -> None:
        logger.warning("arithmetic failed", extra={"arithmetic": name, "reason": reason})

    by_name = {each.short_name: each for each in runs}
    seconds = time_each({each.short_name: run for each, run in runs.items()}, warn, clock)

    def score(name: str) -> float:
        """Its seconds, times what the gain over one without its costs must be."""
        each = by_name[name]
        rounding = 1.0 if each.quantization == "none" else WORTHWHILE_GAIN
        copy = 1.0 if each.runtime == "torch" else WORTHWHILE_COPY
        conversion = WORTHWHILE_CONVERSION if cached and each not in cached else 1.0
        return seconds[name] * rounding * copy * conversion

    name = min(seconds, key=score, default=next(iter(by_name)))
    milliseconds = {f"{each.replace(' ', '_')}_ms": round(1000 * seconds[each], 3) for each in seconds}
    logger.info("arithmetic measured", extra={"chosen": name, **milliseconds})
    return replace(by_name[name], times=tuple(seconds.items()))


def _bind(each: Arithmetic, shape: Shape, device: torch.device) -> Call:
    """A layer. The time does not depend on the numbers, and these take least to make."""
    dtype = DTYPES[each.precision]

    def fill(*sizes: int) -> Tensor:
        return torch.full(sizes, 0.5, dtype=dtype, device=device)

    def make_map(name: str, weight: Tensor, bias: Tensor) -> Linear:
        one = torch.ones(weight.shape[1], device=device)
        return each.linear_class.of(weight, bias, InputRange(-one, one))

    sample, layout = sample_shape(shape), Layout(((NUM_TOKENS, ()),), NUM_TOKENS)
    compute, tokens = each.bind(make_sample(shape, fill, make_map), sample, prepare_sdpa), sample_tokens(sample, layout)
    return partial(compute, tokens.to(device), layout, None)
