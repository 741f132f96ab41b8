"""Speeds of GPUs by their data sheets, for devices that were not measured: arithmetic, no measurement.

A token costs two operations for each weight of the encoder; a batch reads all weights once. Attention's products of
tokens with tokens, which are few at the lengths of usual rows, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.latency_model import Cost
from service.tools.capacity import Speed

MODEL_USE = 0.6
"""Share of the rated arithmetic that a fully used device reaches at best."""
TARGET_S = 0.5
MAX_TOKENS = 16_384
"""Limits on a batch."""
WEIGHT_BYTES = 2
MIN_WEIGHTS = 50_000_000
"""Of smaller encoders the start of the kernels and the CPU take the time, of which a data sheet says nothing."""


@dataclass(frozen=True, slots=True)
class DataSheet:
    """Rated dense bfloat16 arithmetic in operations per second, and memory bandwidth in bytes per second."""

    flops: float
    bandwidth: float


DATA_SHEETS = {
    "L4": DataSheet(121e12, 300e9),
    "L20": DataSheet(119.5e12, 864e9),
    "L40S": DataSheet(362e12, 864e9),
    "A10": DataSheet(125e12, 600e9),
    "A100": DataSheet(312e12, 1555e9),
    "A800": DataSheet(312e12, 1555e9),
    "H20": DataSheet(148e12, 4000e9),
    "H100": DataSheet(989e12, 3350e9),
    "H200": DataSheet(989e12, 4800e9),
    "H800": DataSheet(989e12, 3350e9),
}
"""The variant with 40 GB of A100 and A800, SXM of H100 and H800."""

ENCODER_WEIGHTS = {"110M": 12 * 12 * 768**2, "330M": 24 * 12 * 1024**2, "1.3B": 24 * 12 * 2048**2}
"""Weights of the layers of usual shapes, by the names of benchmarks/results/speed_*.json."""


def count_weights(num_layers: int, hidden_size: int, ffn_size: int) -> int:
    """The matrices of an encoder's layers: four of attention, two of the feed-forward network."""
    return num_layers * (4 * hidden_size**2 + 2 * hidden_size * ffn_size)


def estimate_speed(model: str, num_weights: int, device: str) -> Speed:
    """The speed on `device`, a key of DATA_SHEETS. Raises ValueError for a model that is too small."""
    if num_weights < MIN_WEIGHTS:
        raise ValueError(
            f"{model}: {num_weights / 1e6:.1f} million weights are too small for an estimate; measure it with "
            "python -m benchmarks.engine speed"
        )
    sheet = DATA_SHEETS[device]
    token_s = 2 * num_weights / (MODEL_USE * sheet.flops)
    batch_s = WEIGHT_BYTES * num_weights / sheet.bandwidth
    budget = max(1, min(MAX_TOKENS, round((TARGET_S - batch_s) / token_s)))
    return Speed(model, f"{device} by its data sheet", "bfloat16", Cost(batch_s, token_s, 0.0), budget)
