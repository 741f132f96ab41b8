"""Memory, time and disk of a fine-tuning run, computed from the config of a model before anything is loaded.

Source of the activations: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
equation 2: a layer of a batch keeps s b h (34 + 5 a s / h) bytes in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.checkpoints.shape import Shape
from service.tools.training.recipe import Form

Method = Literal["full", "checkpointed", "lora"]
WEIGHT, GRADIENT, OPTIMIZER, HALF_COPY = 4, 4, 8, 2
"""Bytes a parameter: float32 weights, gradients and the two moments of Adam; autocast's copies in half precision."""
PER_TOKEN, PER_PAIR = 34, 5
RESERVED = 0.1
"""The share of the memory that stays free for fragments and libraries."""
HEADROOM_BYTES = 600 << 20
"""Python, torch and its libraries."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a step computes. `num_trained` are the parameters that are trained."""

    shape: Shape
    form: Form
    micro_batch: int
    length: int
    precision: str
    num_trained: int
    use_checkpointing: bool = False
    is_frozen: bool = False

    @property
    def num_parameters(self) -> int:
        return total_parameters(self.shape, self.form)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes."""

    weights: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations + HEADROOM_BYTES


def total_parameters(shape: Shape, form: Form) -> int:
    """The encoder with the pooler of a head, or with the transform of a masked LM; the decoder is tied."""
    return shape.num_parameters + shape.hidden_size * (shape.hidden_size + 1) + 2 * shape.hidden_size


def lora_parameters(shape: Shape, rank: int) -> int:
    """Two factors for each of the six linear layers of a layer."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    return shape.num_layers * rank * (4 * 2 * hidden + 2 * (hidden + ffn))


def memory(load: Load) -> MemoryNeed:
    """The highest need of one process during training."""
    parameters = load.num_parameters
    weights = WEIGHT * parameters
    if load.precision == "bfloat16":
        weights += HALF_COPY * (parameters - load.shape.vocab_size * load.shape.hidden_size)
    states = (GRADIENT + OPTIMIZER) * load.num_trained
    return MemoryNeed(weights, states, 0 if load.is_frozen else activations(load))


def activations(load: Load) -> int:
    """What the backward pass needs; checkpointed are the inputs of the layers and all of one layer."""
    shape, wide = load.shape, 1 if load.precision == "bfloat16" else 2
    tokens = load.micro_batch * load.length
    per_value = PER_TOKEN + PER_PAIR * shape.num_heads * load.length / shape.hidden_size
    layer = wide * tokens * shape.hidden_size * per_value
    if load.use_checkpointing:
        return round(2 * wide * tokens * shape.hidden_size * shape.num_layers + layer)
    return round(shape.num_layers * layer)


def flops(load: Load, rows: int) -> float:
    """Of forward and backward of `rows` rows: 2 and 4 operations a parameter of the layers and token, 2 more where the
    forward is computed again; a frozen encoder has no backward, LoRA's leaves out the gradients of the weights."""
    shape = load.shape
    layers = shape.num_layers * shape.num_layer_weights
    pairs = shape.num_layers * 2 * load.length * shape.hidden_size
    factor = 2 if load.is_frozen else 6
    if load.use_checkpointing:
        factor += 2
    if load.num_trained < 0.1 * load.num_parameters and not load.is_frozen:
        factor -= 2
    return float(factor * (layers + pairs) * load.length * rows)


def choose_micro_batch(load: Load, batch_size: int, num_processes: int, available: int) -> int | None:
    """The most rows of a forward that fit into `available` bytes and divide the step; None if not even one does."""
    per_process = batch_size // num_processes
    for rows in range(per_process, 0, -1):
        if per_process % rows == 0 and fits(memory(_with(load, rows)), available):
            return rows
    return None


def _with(load: Load, rows: int) -> Load:
    return Load(
        load.shape,
        load.form,
        rows,
        load.length,
        load.precision,
        load.num_trained,
        load.use_checkpointing,
        load.is_frozen,
    )


def fits(need: MemoryNeed, available: int) -> bool:
    return need.total <= (1 - RESERVED) * available


def checkpoint_bytes(num_trained: int) -> int:
    """Weights and both moments of what is trained, in float32."""
    return (WEIGHT + OPTIMIZER) * num_trained


def disk_bytes(num_parameters: int, num_trained: int, *, saves_adapter: bool = False) -> int:
    """Two whole checkpoints, one that is being written, the weights of the best one, and the model in half precision,
    or the adapter alone, old and new."""
    written = WEIGHT * num_trained if saves_adapter else HALF_COPY * num_parameters
    return 3 * checkpoint_bytes(num_trained) + WEIGHT * num_trained + 2 * written


def describe_bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def describe_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
