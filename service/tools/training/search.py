"""A search over learning rates: short runs of the same model and data, compared on the dev set."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from service.tools.training.finetuning import Run, is_first_process, make_trainer, prepare, step_count
from service.tools.training.run_file import Json

FIND_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the default rate, that `find` tries."""
FIND_SHARE = 0.3
"""The share of a run's steps that each of them gets."""
MAX_FIND_STEPS = 300
TRIAL_SPAN = 30.0
"""Trials are drawn between the default rate divided by this and multiplied by it, evenly by their logarithm."""


def find_rates(default: float) -> list[float]:
    return [_short(default * factor) for factor in FIND_FACTORS]


def trial_rates(default: float, count: int, seed: int) -> list[float]:
    """`count` rates: the default, and random ones around it."""
    draw = np.random.default_rng(seed)
    drawn = np.exp(draw.uniform(-math.log(TRIAL_SPAN), math.log(TRIAL_SPAN), count - 1))
    return [default, *(_short(default * factor) for factor in drawn)]


def _short(rate: float) -> float:
    return float(f"{min(rate, 1.0):.2g}")


def find_steps(run: Run) -> int:
    return min(MAX_FIND_STEPS, max(1, round(FIND_SHARE * step_count(run.values, len(run.train)))))


def search(run: Run, rates: Sequence[float], num_steps: int) -> tuple[float, list[Json]]:
    """The rate with the best measure on the dev set, and what each gave. Every process finds the same."""
    found: list[Json] = []
    name = ""
    with TemporaryDirectory() as folder:
        for rate in rates:
            values = run.values.model_copy(
                update={"learning_rate": rate, "max_steps": num_steps, "evaluate_every": num_steps, "patience": 0}
            )
            prepared = prepare(replace(run, values=values))
            trainer = make_trainer(prepared, Path(folder), None, is_search=True, label=f"learning rate {rate:g}: ")
            trainer.train()
            last = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
            measures = {key.removeprefix("eval_"): value for key, value in last.items() if key.startswith("eval_")}
            name = prepared.metric
            found.append({"learning_rate": rate, "loss": measures["loss"], name: measures[name]})
    best = max(found, key=lambda one: (-one["loss"] if name == "loss" else one[name], -one["loss"]))
    if is_first_process():
        print(f"learning rate: {best['learning_rate']:g}, the best of {len(found)} by {name}", file=sys.stderr)
    return float(best["learning_rate"]), found
