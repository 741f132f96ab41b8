"""What `serve` tells whoever starts it: the progress of loading, and a request to begin with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from service.api.openapi import EXAMPLES
from service.replicas.protocol import Loading
from service.tasks.text_model import TextModel

logger = logging.getLogger(__name__)


def first_request(models: Iterable[TextModel]) -> tuple[str, dict[str, Any]]:
    """A task and a request body that one of these models can answer, as an example to start with."""
    body = next(iter(EXAMPLES["classify"].requests.values()))
    for model in models:
        if model.can_choose:
            return "classify", body
        if model.kind == "sequence-classification":
            return "classify", {"inputs": body["inputs"]}
        if model.kind == "question-answering":
            return "mrc", EXAMPLES["mrc"].requests["span"]
    return "embed", {"inputs": body["inputs"]}


STEPS = 4
"""Number of log lines while a replica loads a model."""


class LoadingBars:
    """Shows a progress bar for each model on each replica."""

    def __init__(self) -> None:
        self._bars: dict[tuple[str, str], tqdm[None]] = {}

    def __call__(self, replica: str, loading: Loading) -> None:
        bar = self._bars.get((replica, loading.model))
        if bar is None:
            title = f"loading {loading.model} on {replica}"
            bar = tqdm(total=loading.total, desc=title, unit="B", unit_scale=True, leave=False)
            self._bars[replica, loading.model] = bar
        bar.update(loading.done - bar.n)
        if loading.done >= loading.total:
            bar.close()
            del self._bars[replica, loading.model]


class LoadingLines:
    """Logs a line per quarter of each model on each replica, again for a second pass (converting, then reading)."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], int] = {}

    def __call__(self, replica: str, loading: Loading) -> None:
        step = STEPS * loading.done // max(loading.total, 1)
        if step != self._steps.get((replica, loading.model)):
            self._steps[replica, loading.model] = step
            percent = 100 * loading.done // max(loading.total, 1)
            logger.info("loading model", extra={"model": loading.model, "replica": replica, "percent": percent})


def make_progress() -> LoadingBars | LoadingLines:
    return LoadingBars() if sys.stderr.isatty() else LoadingLines()
