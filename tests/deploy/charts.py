"""Renders the Helm chart with the Helm library itself, as `helm template` does."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import ROOT, Document

helm_python = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: see requirements/dev.txt")

CHART = ROOT / "charts/erlangshen-service"


def values_of(file: str) -> Document:
    values: Document = yaml.safe_load((CHART / file).read_text())
    return values


def render(values: Document, name: str = "erlangshen", namespace: str = "erlangshen") -> list[Document]:
    """All objects; raises HelmError where the values do not match their schema or a template fails."""
    made = _chart().render(values=values, name=name, namespace=namespace)
    texts = [text for file, text in sorted(made.items()) if file.endswith(".yaml")]
    return [one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one]


@cache
def _chart() -> Any:
    return helm_python.Chart.load(str(CHART))


def lint(folder: Path = CHART) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = helm_python.lint(str(folder))["messages"]
    return messages
