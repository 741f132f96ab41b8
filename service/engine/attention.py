"""The attention backends, and the choice between them.

A backend is a function in `attention_backends` and an entry in BACKENDS, where the parity tests find it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from service.domain import Check
from service.engine.attention_backends import (
    FLEX,
    VARLEN,
    Attend,
    Prepare,
    Recordable,
    disable_cudnn,
    prepare_flex,
    prepare_plain,
    prepare_sdpa,
    prepare_varlen,
    varlen_runs_on,
)
from service.engine.device import Call
from service.engine.packing import Layout, bucket
from service.engine.self_test import check_attention
from service.engine.trials import as_served, launched, time_each
from service.errors import SettingError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """The device, number format and sizes of an attention."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class Backend:
    """`recorded` is what CUDA graphs repeat of it: empty where its kernels depend on the rows."""

    prepare: Prepare
    runs_on: Callable[[AttentionConfig], bool]
    recorded: tuple[Recordable, ...] = ()


def split_by_mask(plain: Prepare, masked: Prepare) -> Prepare:
    """Two backends in one batch: `plain` for rows without blocks, `masked` for rows with blocks."""

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


def _has_varlen(config: AttentionConfig) -> bool:
    return varlen_runs_on(config.device, config.dtype, config.head_size)


AUTO, PLAIN = "auto", "plain"

BACKENDS: dict[str, Backend] = {
    PLAIN: Backend(prepare_plain, runs_on=lambda config: True),
    "sdpa": Backend(prepare_sdpa, runs_on=lambda config: True),
    "flex": Backend(prepare_flex, runs_on=lambda config: True, recorded=(FLEX,)),
    "varlen": Backend(split_by_mask(prepare_varlen, prepare_sdpa), _has_varlen),
    "varlen+flex": Backend(split_by_mask(prepare_varlen, prepare_flex), _has_varlen, recorded=(VARLEN, FLEX)),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that serves, and what was found of every one that could have."""

    name: str
    backend: Backend
    checks: tuple[Check, ...]


def choose(name: str, config: AttentionConfig, num_layers: int = 1) -> Choice:
    """The backend of this name. `auto` is the fastest one on a GPU, by measurement, and sdpa on a CPU. On a GPU, those
    that graphs can repeat come before the others: most batches are computed by graphs.

    Each is first compared with the plain one. Those that differ or fail are left out, and the plain one serves where
    none is left. Raises SettingError when the backend that is named does not support the configuration or is left out,
    or when the plain one differs.
    """
    disable_cudnn()
    fitting = {each: backend for each, backend in BACKENDS.items() if backend.runs_on(config)}
    if name not in (AUTO, *fitting):
        wanted = ", ".join(fitting)
        raise SettingError(f"attention backend {name!r} does not run on {config.device}; wanted auto, {wanted}")
    candidates = _candidates(config, fitting) if name == AUTO else [name]
    checks = [_check(each, config) for each in candidates]
    sound = {check.name: fitting[check.name] for check in checks if check.is_sound}
    if name == AUTO and not sound:
        checks.append(_check(PLAIN, config))
        sound = {PLAIN: fitting[PLAIN]} if checks[-1].is_sound else {}
    if not sound:
        last = checks[-1]
        raise SettingError(f"{config.device} computes attention wrongly, also in {last.name}: {last.reason}")
    sound = {each: backend for each, backend in sound.items() if backend.recorded} or sound
    if len(sound) > 1:
        seconds = _measure(config, sound, num_layers)
        checks = [_with_time(check, seconds) if check.name in sound else check for check in checks]
        name = min(seconds, key=seconds.__getitem__)
    else:
        [name] = sound
    return Choice(name, sound[name], tuple(checks))


def _candidates(config: AttentionConfig, fitting: Mapping[str, Backend]) -> list[str]:
    return [each for each in fitting if each != PLAIN] if config.device.type == "cuda" else ["sdpa"]


def _check(name: str, config: AttentionConfig) -> Check:
    return check_attention(
        name, BACKENDS[name].prepare, config.device, config.dtype, (config.num_heads, config.head_size)
    )


def _with_time(check: Check, seconds: Mapping[str, float]) -> Check:
    if check.name in seconds:
        return replace(check, seconds=seconds[check.name])
    return replace(check, reason="failed on the typical batch")


_PLAIN, _CHOICES = range(16, 144, 4), range(24, 120, 12)
TYPICAL = Layout(
    rows=(*((length, ()) for length in _PLAIN), *((length, ((1, 4), (4, 8))) for length in _CHOICES)),
    num_tokens=bucket(sum(_PLAIN) + sum(_CHOICES)),
)
"""The batch on which backends are compared: short and medium rows, some of them choices, all of different lengths.
Repeated lengths would favour the backend that computes them together, and in traffic few lengths repeat."""


def _measure(config: AttentionConfig, fitting: Mapping[str, Backend], num_layers: int) -> dict[str, float]:
    sizes = (TYPICAL.num_tokens, 3, config.num_heads, config.head_size)
    qkv = torch.randn(sizes, device=config.device, dtype=config.dtype)
    return measure({name: make_trial(backend, qkv, num_layers) for name, backend in fitting.items()})


def make_trial(backend: Backend, qkv: Tensor, num_layers: int) -> Callable[[], None]:
    """The attention of the typical batch in all layers: as it is served where a graph can repeat it, else with what is
    prepared once for a batch."""

    def make() -> Call:
        return partial(attend_in_layers, backend.prepare(TYPICAL, qkv.device, qkv.dtype), qkv, num_layers)

    return (as_served if backend.recorded else launched)(make, qkv.device)


def attend_in_layers(attend: Attend, qkv: Tensor, num_layers: int) -> Tensor:
    """The attention of the same numbers in each layer."""
    for _ in range(num_layers):
        out = attend(qkv)
    return out


def measure(runs: Mapping[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """The seconds of each backend, without those that fail; SettingError when all of them fail."""

    def warn(name: str, reason: str) -> None:
        logger.warning("attention backend failed", extra={"attention": name, "reason": reason})

    seconds = time_each(runs, warn, clock)
    if not seconds:
        raise SettingError("every attention backend failed on this device; see the warnings in the log")
    logger.info("attention measured", extra={name: round(1000 * each, 3) for name, each in seconds.items()})
    return seconds
