"""Callbacks of fine-tuning: which checkpoints are kept, and what run.json and the user see of an evaluation."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.tools.training import resuming
from service.tools.training.run_file import RunFile


class KeepCheckpoints(TrainerCallback):
    """Marks a checkpoint when it is whole, then removes old ones."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            resuming.mark_complete(folder / f"checkpoint-{state.global_step}")
            best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
            resuming.prune(folder, best)


class Report(TrainerCallback):
    """Writes the measures of each evaluation to run.json and to stderr, and the loss and speed since the last one."""

    def __init__(self, run_file: RunFile | None, num_steps: int, label: str = "") -> None:
        self._file = run_file
        self._num_steps = num_steps
        self._label = label
        self._logged: dict[str, Any] = {}
        self._started = time.monotonic()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self._logged = {"loss": logs["loss"], "learning_rate": logs.get("learning_rate")}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not metrics:
            return
        found = {name.removeprefix("eval_"): value for name, value in metrics.items() if _is_measure(name)}
        entry = {"epoch": round(state.epoch or 0.0, 3), **self._logged, "dev": found}
        if self._file is not None:
            self._file.log(state.global_step, entry)
        print(self._line(state, found), file=sys.stderr, flush=True)

    def _line(self, state: TrainerState, measures: dict[str, float]) -> str:
        done = state.global_step - self._first_step
        each = (time.monotonic() - self._started) / max(1, done)
        left = each * (self._num_steps - state.global_step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
        loss = f"{self._logged['loss']:.4f}" if self._logged else "-"
        return f"{self._label}step {state.global_step}/{self._num_steps}  loss {loss}  dev: {shown}  {left:.0f} s left"


_NO_MEASURES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def _is_measure(name: str) -> bool:
    return name.startswith("eval_") and name not in _NO_MEASURES
