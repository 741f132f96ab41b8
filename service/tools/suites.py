"""Suites of tasks: their table, the summary of their runs, and the comparison with what the model cards publish."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.errors import SettingError
from service.tools.data.registry import base_name

Metric = Literal["accuracy", "macro_f1", "spearman"]
SUITE_FILE = "suite.json"
"""In the output of `finetune --suite`: its runs."""


class SuiteTask(BaseModel):
    """A task of a suite; suites.toml describes the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    card: dict[str, float] = {}
    metric: Metric = "accuracy"
    file: str
    key: str = "label"
    answer: Literal["index", "number", "name", "score"] | tuple[str, ...] = "index"
    layout: Literal["lines", "object"] = "lines"


class Suite(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    is_trained: bool
    split: str
    source: str
    archive: str | None = None
    tasks: dict[str, SuiteTask] = {}
    like: str | None = None
    card: dict[str, float] = {}

    def choose(self, wanted: Sequence[str] | None) -> dict[str, SuiteTask]:
        """The wanted tasks, with or without their collection; all by default.

        Raises:
            SettingError: one is not of this suite.
        """
        if wanted is None:
            return self.tasks
        names = {base_name(name): name for name in self.tasks}
        for one in wanted:
            if one not in self.tasks and base_name(one) not in names:
                raise SettingError(f"{one}: is no task of this suite; its tasks are {', '.join(self.tasks)}")
        chosen = {one if one in self.tasks else names[base_name(one)] for one in wanted}
        return {name: task for name, task in self.tasks.items() if name in chosen}


@cache
def suites() -> dict[str, Suite]:
    table = tomllib.loads(Path(__file__).with_name("suites.toml").read_text(encoding="utf-8"))
    found = {name: Suite.model_validate(content) for name, content in table.items()}
    for name, suite in found.items():
        if suite.like is not None:
            like = found[suite.like].tasks
            tasks = {
                task: like[task].model_copy(update={"card": {"zero-shot": number}})
                for task, number in suite.card.items()
            }
            found[name] = suite.model_copy(update={"tasks": tasks})
    return found


@dataclass(frozen=True, slots=True)
class Score:
    """The measure of one run, in percent; `form` is head, choice or zero-shot, `warnings` those of its report."""

    task: str
    value: float
    examples: int
    form: str
    fold: str | None = None
    seed: int | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in ("task", "value", "examples", "form", "fold", "seed")}
        return found | ({"warnings": list(self.warnings)} if self.warnings else {})


def summarize(suite: Suite, scores: Iterable[Score], *, against_card: bool) -> list[dict[str, Any]]:
    """A row for each task with its mean and, of several runs, the standard deviation; the last row is their mean.

    With `against_card` rows have the published number and the difference, where there is one for the form.
    """
    by_task: dict[str, list[Score]] = {}
    for score in scores:
        by_task.setdefault(score.task, []).append(score)
    rows = [_row(suite, task, runs, against_card) for task, runs in by_task.items()]
    if len(rows) > 1:
        rows.append(_mean_row(rows))
    return rows


def _row(suite: Suite, task: str, runs: Sequence[Score], against_card: bool) -> dict[str, Any]:
    values = [run.value for run in runs]
    row: dict[str, Any] = {
        "task": task,
        "metric": suite.tasks[task].metric,
        "form": "/".join(dict.fromkeys(run.form for run in runs)),
        "runs": len(runs),
        "examples": sum(run.examples for run in runs) // len(runs),
        "mean": round(mean(values), 2),
        "sd": round(stdev(values), 2) if len(values) > 1 else None,
    }
    if against_card:
        found = published(suite.tasks[task], runs[0].form)
        row["published"] = found
        row["difference"] = None if found is None else round(row["mean"] - found, 2)
    return row


def _mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"task": "mean", "mean": round(mean(one["mean"] for one in rows), 2)}
    numbers = [one["published"] for one in rows if one.get("published") is not None]
    if len(numbers) == len(rows):
        row["published"] = round(mean(numbers), 2)
        row["difference"] = round(row["mean"] - row["published"], 2)
    return row


def published(task: SuiteTask, form: str) -> float | None:
    """The card's number for a form; the few-shot numbers are of choice models, the only ones there are."""
    return task.card.get(form, task.card.get("few-shot") if form != "zero-shot" else None)


def table_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The summary as tab-separated text."""
    names = ("task", "metric", "form", "runs", "examples", "mean", "sd", "published", "difference")
    shown = [name for name in names if any(name in row for row in rows)]
    return ["\t".join(shown)] + ["\t".join(_cell(row.get(name)) for name in shown) for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
