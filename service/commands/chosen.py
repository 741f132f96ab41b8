"""Which models were asked for, where the one that ships lies, and what a newcomer should ask them first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import service
from service.api.examples import EXAMPLES
from service.checkpoints.checkpoint import Checkpoint, ModelSpec, parse_spec, resolve
from service.errors import SettingError
from service.settings import Models
from service.tasks.text_model import TextModel

SHIPPED = "mini"


def specs_of(models: Models) -> list[ModelSpec]:
    """What to serve; SettingError for two models of one name, or labels for a model that is not served."""
    specs = [parse_spec(text) for text in models.specs or (SHIPPED,)]
    served = [spec.name for spec in specs]
    for name in served:
        if served.count(name) > 1:
            raise SettingError(f"models.specs: two models are called {name}; name one with --model NAME=SOURCE")
    for name in models.labels:
        if name not in served:
            raise SettingError(f"models.labels: {name} is not served; there is {', '.join(served)}")
    return specs


def fetched(spec: ModelSpec, models: Models) -> Checkpoint:
    """The checkpoint in a local folder, after a download where that is needed and allowed; called as the user did."""
    labels = models.labels.get(spec.name, ())
    found = resolve(located(spec), labels=labels, cache_dir=models.cache_dir, offline=models.offline)
    return replace(found, source=spec.source)


def located(spec: ModelSpec) -> ModelSpec:
    """A model called `mini` and nothing else is the one that ships inside the package."""
    if spec.source != SHIPPED or Path(SHIPPED).is_dir():
        return spec
    return replace(spec, source=str(Path(service.__file__).parent / "models" / SHIPPED))


def first_request(models: Iterable[TextModel]) -> tuple[str, dict[str, Any]]:
    """A task and a body that one of these models answers: what a newcomer should try first."""
    body = next(iter(EXAMPLES["classify"].requests.values()))
    for model in models:
        if model.can_choose:
            return "classify", body
        if model.kind == "sequence-classification":
            return "classify", {"inputs": body["inputs"]}
    return "embed", {"inputs": body["inputs"]}
