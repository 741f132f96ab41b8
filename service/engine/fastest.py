"""The choice of a quantization by measurement: the linear maps of one layer, in each that the device has."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Shape
from service.domain import Quantization
from service.engine import linear
from service.engine.device import DTYPES, device_guard
from service.engine.linear import InputRange, Linear
from service.engine.trials import time_each
from service.errors import SettingError

logger = logging.getLogger(__name__)

NUM_TOKENS = 64
"""Of a small batch: what a quantization costs beside its products weighs most there."""

WORTHWHILE_GAIN = 1.2
"""How many times as fast as none a quantization must be: a smaller gain is not worth its rounding, and noise could
change the choice from one start to the next."""

Maps = list[tuple[Linear, Tensor]]


def fastest_quantization(shape: Shape, device: torch.device, precision: str) -> Quantization:
    """The fastest of those that the device has, on a layer of this shape. Logs the times and the choice."""
    runs: dict[Quantization, Callable[[], None]] = {}
    for quantization in get_args(Quantization):
        try:
            with device_guard(device):
                runs[quantization] = partial(_run, _make_layer(shape, device, precision, quantization), device)
        except SettingError:
            continue  # the device has no such arithmetic
    with device_guard(device):
        return choose(runs)


def choose(
    runs: Mapping[Quantization, Callable[[], None]], clock: Callable[[], float] = time.perf_counter
) -> Quantization:
    """The fastest of these, unless it gains too little over `none`. One that fails is not chosen."""

    def warn(name: str, reason: str) -> None:
        logger.warning("quantization failed", extra={"quantization": name, "reason": reason})

    seconds = time_each(runs, warn, clock)
    fastest: Quantization = min(seconds, key=seconds.__getitem__, default="none")
    is_worthwhile = "none" not in seconds or seconds[fastest] * WORTHWHILE_GAIN <= seconds["none"]
    chosen: Quantization = fastest if is_worthwhile else "none"
    milliseconds = {f"{name}_ms": round(1000 * each, 3) for name, each in seconds.items()}
    logger.info("quantization measured", extra={"chosen": chosen, **milliseconds})
    return chosen


def _make_layer(shape: Shape, device: torch.device, precision: str, quantization: Quantization) -> Maps:
    """The maps of a layer with an input for each; the time does not depend on the numbers."""
    dtype, hidden, ffn = DTYPES[precision], shape.hidden_size, shape.ffn_size
    linear_class = linear.choose(device, dtype, quantization)
    maps: Maps = []
    for num_out, num_in in ((3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn)):
        weight = torch.full((num_out, num_in), 0.5, dtype=dtype, device=device)
        bias = torch.zeros(num_out, dtype=dtype, device=device)
        inputs = torch.ones(NUM_TOKENS, num_in, dtype=dtype, device=device)
        maps.append((linear_class.of(weight, bias, InputRange.of(inputs)), inputs))
    return maps


@torch.inference_mode()
def _run(maps: Maps, device: torch.device) -> None:
    for made, inputs in maps:
        made(inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
