"""The hyper-parameters of a fine-tuning run: the defaults by task, form and size of the model, and what flags set."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SettingError
from service.tools.training.recipe import Form

Metric = Literal["accuracy", "macro-f1", "spearman", "loss"]
LossName = Literal["auto", "ce", "balanced", "focal", "smooth"]
MAX_EPOCHS = 100
ALL_LAYERS = -1


class Hyperparameters(BaseModel):
    """What a run computes with. `max_length` 0 is chosen from the data; `evaluate_every` 0 is a tenth of the run.

    `freeze` is the number of first layers that are not trained, ALL_LAYERS the whole encoder; None trains all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(2e-5, gt=0, le=1)
    weight_decay: float = Field(0.1, ge=0, le=1)
    epochs: float = Field(7, gt=0, le=10_000)
    max_steps: int = Field(0, ge=0)
    batch_size: int = Field(32, ge=1, le=65_536)
    max_length: int = Field(0, ge=0, le=8192)
    warmup: float = Field(0.1, ge=0, lt=1)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    loss: LossName = "auto"
    smoothing: float = Field(0.1, ge=0, lt=1)
    gamma: float = Field(2.0, gt=0)
    metric: Metric | None = None
    patience: int = Field(5, ge=0)
    evaluate_every: int = Field(0, ge=0)
    freeze: int | None = None
    lora: int = Field(0, ge=0, le=1024)
    seed: int = Field(0, ge=0)


class _Default(BaseModel):
    model_config = ConfigDict(extra="forbid")

    learning_rate: float
    weight_decay: float
    epochs: float
    min_steps: int


class Table(BaseModel):
    """The contents of defaults.toml."""

    model_config = ConfigDict(extra="forbid")

    sizes: dict[Literal["tiny", "base"], int]
    head: dict[str, _Default]
    choice: dict[str, _Default]
    frozen: dict[str, _Default]
    tasks: dict[str, dict[str, float | int]]


@cache
def table() -> Table:
    return Table.model_validate(tomllib.loads(Path(__file__).with_name("defaults.toml").read_text(encoding="utf-8")))


def size_of(num_parameters: int) -> Literal["tiny", "base", "large"]:
    """The size class of an encoder."""
    sizes = table().sizes
    if num_parameters < sizes["tiny"]:
        return "tiny"
    return "base" if num_parameters < sizes["base"] else "large"


def choose(
    *,
    form: Form,
    task: str,
    num_parameters: int,
    num_examples: int,
    flags: dict[str, Any],
) -> Hyperparameters:
    """The defaults, with what the flags set in their place.

    Small data is trained for more epochs, so that a run has at least `min_steps` steps.

    Raises:
        SettingError: names the flag whose value is out of range.
    """
    size = size_of(num_parameters)
    is_frozen = flags.get("freeze") == ALL_LAYERS
    default = getattr(table(), "frozen" if is_frozen else form)[size]
    values: dict[str, Any] = default.model_dump(exclude={"min_steps"})
    if size == "large" and not is_frozen:
        values |= table().tasks.get(task.rpartition("/")[2], {})
    values |= {name: value for name, value in flags.items() if value is not None}
    if "epochs" not in flags or flags["epochs"] is None:
        per_epoch = max(1.0, num_examples / max(1, int(values.get("batch_size", 32))))
        values["epochs"] = min(MAX_EPOCHS, max(values["epochs"], -(-default.min_steps // per_epoch)))
    try:
        return Hyperparameters.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise SettingError(f"--{name} {first['input']}: {first['msg'].lower()}") from None
