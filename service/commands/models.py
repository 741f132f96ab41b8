"""The models to serve: parses their settings and fetches their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.folders import SHIPPED, is_folder
from service.checkpoints.folders import locate_shipped as shipped_folder
from service.checkpoints.spec import ModelSpec, parse_spec
from service.errors import SettingError
from service.settings import Models


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
