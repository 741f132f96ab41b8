"""Modules named in strings exist. No linter follows `python -m` or `importlib`."""

from __future__ import annotations

import ast
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest

from service.cli import COMMANDS

ROOT = Path(__file__).parents[3]


def modules_in_strings() -> set[str]:
    """Module names that follow the string "-m" in a list or tuple of the service."""
    found = set()
    for source in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple):
                words = [each.value if isinstance(each, ast.Constant) else None for each in node.elts]
                found |= {name for flag, name in pairwise(words) if flag == "-m" and name}
    return {str(name) for name in found}


def test_modules_started_by_the_service_exist() -> None:
    started = modules_in_strings()
    assert {"service.replicas.child", "service.tools.roofline"} <= started
    for name in started:
        spec = importlib.util.find_spec(name)
        assert spec, name
        assert spec.origin, name
        assert "__main__" in Path(spec.origin).read_text(encoding="utf-8"), f"{name} has no __main__ block"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module(name: str) -> None:
    assert importlib.util.find_spec(f"service.commands.{name}")


def test_modules_started_by_makefile_and_images_exist() -> None:
    files = [
        ROOT / "Makefile",
        ROOT / "Dockerfile",
        *(ROOT / "k8s").rglob("*.yaml"),
        *(ROOT / "docker").rglob("*.yaml"),
    ]
    named = {name for file in files for name in re.findall(r"-m ([\w.]+)", file.read_text(encoding="utf-8"))}
    ours = {name for name in named if name.split(".")[0] in ("service", "benchmarks", "docker", "monitoring")}
    assert "service" in ours
    assert [name for name in ours if importlib.util.find_spec(name) is None] == []
