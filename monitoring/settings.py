"""Reads `settings.toml`: what the generated files assume of an installation, and the objectives."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("settings.toml")


@dataclass(frozen=True, slots=True)
class Promise:
    """`target` is the share of good requests; an answer within `seconds` is good, for latency."""

    target: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """`objectives` are by name; `models` has those of single models, by model and name."""

    runbooks: str
    job: str
    probe_job: str
    container: str
    objectives: Mapping[str, Promise]
    models: Mapping[str, Mapping[str, Promise]]

    def exceptions(self, objective: str) -> dict[str, Promise]:
        """The models whose objective differs from that of all others."""
        return {model: promises[objective] for model, promises in self.models.items() if objective in promises}


def read(text: str) -> Settings:
    """Raises TypeError or KeyError for unknown or missing names."""
    content: dict[str, Any] = tomllib.loads(text)
    objectives = {name: Promise(**values) for name, values in content.pop("objectives").items()}
    models = {
        model: {name: _promise(objectives[name], values) for name, values in promises.items()}
        for model, promises in content.pop("models", {}).items()
    }
    return Settings(objectives=objectives, models=models, **content)


def _promise(usual: Promise, values: Mapping[str, float]) -> Promise:
    return replace(usual, **values)


SETTINGS = read(FILE.read_text(encoding="utf-8"))
