"""The pinned requirements hold everything that is imported, and everything that those packages need in turn."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
OURS = {"service", "tests", "benchmarks", "docker"}
# What torch brings differs from build to build (CPU, CUDA versions), and setuptools is the environment's own.
PEERS = ROOT / "benchmarks" / "peers" / "servers"
"""They run in environments of their own, with requirements of their own."""
UNPINNED = re.compile(r"nvidia-|cuda-|triton|setuptools")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = (line.strip() for line in (ROOT / file).read_text().splitlines())
    return {canonical(name): pin for name, _, pin in (line.partition("==") for line in lines if line[:1] not in "#-")}


def imported(folder: str) -> dict[str, Path]:
    """Top-level modules of others, each with a file that imports it."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        if path.is_relative_to(PEERS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {name.partition(".")[0]: path for name in names}
    return {name: path for name, path in found.items() if name not in OURS and name not in sys.stdlib_module_names}


def needed(name: str) -> Iterator[str]:
    """The packages that an installed one requires here, without extras."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonical(requirement.name)


RUNTIME = pins("requirements.txt")
BENCH = pins("requirements-bench.txt")
TRACING = pins("requirements-tracing.txt")
DEV = pins("requirements-dev.txt") | BENCH | TRACING


@pytest.mark.parametrize(
    ("folder", "pinned"),
    [
        ("service", RUNTIME | BENCH | TRACING),
        ("benchmarks", RUNTIME | DEV),
        ("docker", RUNTIME | DEV),
        ("tests", RUNTIME | DEV),
    ],
)
def test_everything_imported_is_pinned(folder: str, pinned: dict[str, str]) -> None:
    providers = packages_distributions()
    missing = {
        f"{module} ({path.relative_to(ROOT)})"
        for module, path in imported(folder).items()
        if not {canonical(name) for name in providers.get(module, [])} & set(pinned)
    }
    assert not missing


@pytest.mark.parametrize("pinned", [RUNTIME, RUNTIME | TRACING, RUNTIME | DEV], ids=["runtime", "tracing", "dev"])
def test_what_the_pinned_packages_need_is_pinned_too(pinned: dict[str, str]) -> None:
    missing = {need for name in pinned for need in needed(name) if need not in pinned and not UNPINNED.match(need)}
    assert not missing


def test_nothing_is_pinned_that_nobody_needs() -> None:
    # transformers' Trainer asks for accelerate, and uvicorn is told to use httptools: neither is imported here.
    wanted = {"accelerate", "httptools"}
    modules = packages_distributions()
    for module in imported("service") | imported("benchmarks"):
        wanted |= {canonical(name) for name in modules[module]}
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        more = set(needed(name)) - wanted if name in RUNTIME else set()
        wanted |= more
        waiting += more
    assert set(RUNTIME) <= wanted


def test_every_pin_is_exact_and_is_what_is_installed() -> None:
    for name, pin in (RUNTIME | DEV).items():
        assert re.fullmatch(r"[\w.!]+", pin), f"{name} is not pinned exactly"
        assert distribution(name).version.partition("+")[0] == pin, f"{name}: run make lint to install what is pinned"


def test_torch_comes_first_and_no_package_is_pinned_twice() -> None:
    assert next(iter(RUNTIME)) == "torch"
    assert not set(RUNTIME) & set(DEV)
