"""Weights of an earlier step mixed into the trained ones. Knows no data and no recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class KeepWeights(TrainerCallback):
    """Writes the weights to a file when they have been trained for so many steps: a run that resumes finds them."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        self._step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._step and state.is_world_process_zero:
            weights = kwargs["model"].named_parameters()
            save_file({name: each.detach().clone() for name, each in weights}, self._file)


def blend(network: PreTrainedModel, before: Mapping[str, Tensor], share: float) -> None:
    """Draws the trained weights back towards earlier ones: what one data set taught is kept, and less of the rest is
    lost (Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022)."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            weights.copy_(torch.lerp(before[name].to(weights), weights, share))
