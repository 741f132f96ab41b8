"""How fast a model is on a device: from the page of metrics of a server that serves it, or from a file of results.

Knows no HTTP and computes nothing: the numbers are those of the service's own latency model (docs/batching.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.batching.latency_model import Cost
from service.metric_labels import COSTS

_SAMPLE = re.compile(r"erlangshen_(\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Speed:
    """A full batch has `budget` tokens."""

    model: str
    device: str
    precision: str
    cost: Cost
    budget: int

    def tokens_per_s(self, row_tokens: float) -> float:
        """Of one replica that computes nothing but full batches of such rows."""
        return self.budget / self.cost.of(self.budget, max(1, round(self.budget / row_tokens)))

    def as_json(self) -> dict[str, Any]:
        costs = {f"{of}_s": getattr(self.cost, of) for of in COSTS}
        return {"model": self.model, "device": self.device, "precision": self.precision, **costs, "budget": self.budget}


def from_metrics(page: str) -> list[Speed]:
    """Of every model that the server has measured, in the order of the page."""
    samples = [(match[1], dict(_LABEL.findall(match[2])), float(match[3])) for match in _SAMPLE.finditer(page)]
    held = {labels["model"]: labels for name, labels, _ in samples if name == "replica_model_info"}
    return [
        Speed(
            model,
            held.get(model, {}).get("device", ""),
            held.get(model, {}).get("precision", ""),
            Cost(**{of: _value(samples, "predicted_cost_seconds", model=model, of=of) for of in COSTS}),
            round(budget),
        )
        for model, budget in (
            (labels["model"], value) for name, labels, value in samples if name == "batch_budget_tokens"
        )
        if budget
    ]


def _value(samples: Iterable[tuple[str, Mapping[str, str], float]], name: str, **labels: str) -> float:
    return next((value for found, its, value in samples if found == name and its == labels), 0.0)


def from_file(path: Path) -> list[Speed]:
    """The `speeds` of a file of results. Raises OSError, and ValueError where it has none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "speeds" not in found:
        raise ValueError("it has no `speeds`; python -m benchmarks.speed makes such a file")
    return [
        Speed(one["model"], one["device"], one["precision"], Cost(*(one[f"{of}_s"] for of in COSTS)), one["budget"])
        for one in found["speeds"]
    ]


def chosen(speeds: Iterable[Speed], model: str | None) -> Speed:
    """The one of this model, or the first. ValueError where it is not there."""
    known = list(speeds)
    for speed in known:
        if model in (None, speed.model):
            return speed
    names = ", ".join(speed.model for speed in known) or "none that was measured"
    raise ValueError(f"{model or 'no model'}: not there; there is {names}")
