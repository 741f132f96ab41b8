"""The models to serve: parses their settings, fetches their checkpoints, and shows the progress of loading."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.folders import SHIPPED, is_folder
from service.checkpoints.folders import locate_shipped as shipped_folder
from service.checkpoints.spec import ModelSpec, parse_spec
from service.errors import SettingError
from service.replicas.protocol import Loading
from service.settings import Models

logger = logging.getLogger(__name__)


def parse_specs(models: Models) -> list[ModelSpec]:
    """The models to serve, from the settings.

    Raises:
        SettingError: two models have the same name, or labels are set for a model that is not served.
    """
    specs = [parse_spec(text, models.hub) for text in _join_folders(models.specs) or SHIPPED]
    served = [spec.name for spec in specs]
    for name in served:
        if served.count(name) > 1:
            raise SettingError(f"models.specs: two models are called {name}; rename one with --model NAME=SOURCE")
    for name in models.labels:
        if name not in served:
            raise SettingError(f"models.labels: {name} is not served; the served models are {', '.join(served)}")
    return specs


def _join_folders(parts: Sequence[str]) -> list[str]:
    """Puts folders together again whose names contain a comma, at which the settings split models."""
    joined: list[str] = []
    rest = list(parts)
    while rest:
        spec = rest.pop(0)
        for num_parts in range(0 if _is_folder(spec, spec) else len(rest), 0, -1):
            whole = [separator.join((spec, *rest[:num_parts])) for separator in (",", ", ")]
            if found := next((text for text in whole if _is_folder(text, spec)), None):
                spec, rest = found, rest[num_parts:]
                break
        joined.append(spec)
    return joined


def _is_folder(text: str, first: str) -> bool:
    """Whether `text`, which starts with the part `first`, is a folder, or NAME= with the name in `first` and one."""
    return is_folder(text) or ("=" in first and is_folder(text.partition("=")[2].strip()))


def fetch_checkpoint(spec: ModelSpec, models: Models) -> Checkpoint:
    """The checkpoint in a local folder, downloaded if necessary and allowed. `source` is as in the settings."""
    labels = models.labels.get(spec.name, ())
    checkpoint = resolve(
        locate_shipped(spec),
        labels=labels,
        cache_dir=models.cache_dir,
        offline=models.offline,
        token_to_mirror=models.token_to_mirror,
    )
    return replace(checkpoint, source=spec.source)


def locate_shipped(spec: ModelSpec) -> ModelSpec:
    """Replaces the source of a model that ships, such as `mini`, by its folder in the package."""
    return replace(spec, source=shipped_folder(spec.source))


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
