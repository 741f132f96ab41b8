"""The requirements pin every imported package and its dependencies, each in the file that needs it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
OURS = {"service", "tests", "benchmarks", "monitoring", "scripts"}
PEERS = ROOT / "benchmarks" / "peers" / "servers"
"""The compared servers run in their own environments with their own requirements."""
CLIENTS = ROOT / "tests" / "clients" / "scripts"
"""They run in the environments of requirements/clients."""
SITE = ROOT / "scripts" / "site_hooks.py"
"""It runs in the environment of requirements/docs.txt."""
TRAINING = [
    ROOT / "service" / "tools" / "training",
    ROOT / "service" / "tools" / "data" / "workbooks.py",
    ROOT / "service" / "tools" / "labelled_files.py",
    ROOT / "service" / "tools" / "corpora" / "source.py",
    ROOT / "service" / "tools" / "corpora" / "writers.py",
    ROOT / "service" / "commands" / "finetune.py",
]
UNPINNED = re.compile(r"nvidia-|cuda-|triton")
"""The dependencies of torch differ between builds (CPU, CUDA versions)."""
LOCKS = ROOT / "requirements" / "lock"
LISTS = {path.stem: path for path in (ROOT / "requirements").glob("*.txt")} | {"serve": ROOT / "requirements.txt"}
"""The lists of pins, by the names of their lock files."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = (line.strip() for line in (ROOT / file).read_text().splitlines())
    return {canonical(name): pin for name, _, pin in (line.partition("==") for line in lines if line[:1] not in "#-")}


def locked(name: str) -> dict[str, list[tuple[str, set[str]]]]:
    """(version, hashes) of each package of a lock file; several where the version depends on Python's."""
    found: dict[str, list[tuple[str, set[str]]]] = {}
    text = (LOCKS / f"{name}.txt").read_text().replace("\\\n", " ")
    for line in filter(re.compile(r"[^#\s]").match, text.splitlines()):
        requirement, *hashes = line.split(" --hash=")
        package, _, version = requirement.partition(";")[0].partition("==")
        found.setdefault(canonical(package), []).append((version.strip(), {one.strip() for one in hashes}))
    return found


def imported(*paths: Path) -> dict[str, Path]:
    """Imported top-level modules of other packages, each with a file that imports it."""
    found = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {name.partition(".")[0]: path for name in names}
    return {name: path for name, path in found.items() if name not in OURS and name not in sys.stdlib_module_names}


def sources(*folders: str) -> list[Path]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [path for path in paths if not any(path.is_relative_to(part) for part in (PEERS, CLIENTS, SITE))]


def is_training(path: Path) -> bool:
    return any(path.is_relative_to(part) for part in TRAINING)


def needed(name: str) -> Iterator[str]:
    """The packages that an installed one requires here, without extras."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonical(requirement.name)


def with_dependencies(names: set[str], pinned: dict[str, str]) -> set[str]:
    found, waiting = set(names), list(names)
    while waiting:
        more = {need for need in needed(waiting.pop()) if need in pinned} - found
        found |= more
        waiting += more
    return found


SERVING = pins("requirements.txt")
EXTRAS = {name: pins(f"requirements/{name}.txt") for name in ("train", "tracing", "bench")}
MONITORING = pins("requirements/monitoring.txt")
ALL = SERVING | EXTRAS["train"] | EXTRAS["tracing"] | EXTRAS["bench"] | MONITORING | pins("requirements/dev.txt")
WITHOUT_TRAINING = [path for path in sources("service") if not is_training(path)]


@pytest.mark.parametrize(
    ("paths", "pinned"),
    [
        (WITHOUT_TRAINING, SERVING | EXTRAS["tracing"] | EXTRAS["bench"]),
        (sources("service"), SERVING | EXTRAS["train"] | EXTRAS["tracing"] | EXTRAS["bench"]),
        (sources("monitoring"), SERVING | MONITORING),
        (sources("benchmarks", "scripts", "tests"), ALL),
    ],
    ids=["service without training", "service", "monitoring", "everything else"],
)
def test_every_imported_package_is_pinned(paths: list[Path], pinned: dict[str, str]) -> None:
    providers = packages_distributions()
    missing = {
        f"{module} ({path.relative_to(ROOT)})"
        for module, path in imported(*paths).items()
        if not {canonical(name) for name in providers.get(module, [])} & set(pinned)
    }
    assert not missing


@pytest.mark.parametrize(
    "pinned",
    [SERVING, *(SERVING | extra for extra in EXTRAS.values()), ALL],
    ids=["serving", *EXTRAS, "all"],
)
def test_dependencies_of_pinned_packages_are_pinned(pinned: dict[str, str]) -> None:
    missing = {need for name in pinned for need in needed(name) if need not in pinned and not UNPINNED.match(need)}
    assert not missing


def test_serving_requires_only_packages_that_it_imports() -> None:
    # No file here imports them: uvicorn parses HTTP with the first, httpx goes through SOCKS proxies with the second.
    wanted = {"httptools", "socksio"}
    modules = packages_distributions()
    for module in imported(*WITHOUT_TRAINING):
        wanted |= {canonical(name) for name in modules[module]}
    assert set(SERVING) <= with_dependencies(wanted, SERVING)


def test_training_requires_only_packages_that_it_imports() -> None:
    wanted = {"accelerate"}  # transformers' Trainer imports it
    modules = packages_distributions()
    for module in imported(*filter(is_training, sources("service"))):
        wanted |= {canonical(name) for name in modules[module]}
    assert set(EXTRAS["train"]) <= with_dependencies(wanted, SERVING | EXTRAS["train"])


def test_every_pin_is_exact_and_installed() -> None:
    for name, pin in ALL.items():
        assert re.fullmatch(r"[\w.!]+", pin), f"{name} is not pinned exactly"
        assert distribution(name).version.partition("+")[0] == pin, (
            f"{name}: run make lint to install the pinned version"
        )


def test_every_list_has_its_lock_file() -> None:
    assert {path.stem for path in LOCKS.iterdir()} == {*LISTS, "torch"}


@pytest.mark.parametrize("name", sorted({*LISTS, "torch"}))
def test_every_locked_package_is_exact_and_has_a_hash(name: str) -> None:
    releases = [release for found in locked(name).values() for release in found]
    assert releases
    for version, hashes in releases:
        assert re.fullmatch(r"[\w.!]+", version)
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes)


@pytest.mark.parametrize("name", sorted(LISTS))
def test_lock_files_and_lists_agree(name: str) -> None:
    pinned = pins(str(LISTS[name].relative_to(ROOT)))
    pinned.pop("torch", None)
    found = {package: {version for version, _ in releases} for package, releases in locked(name).items()}
    if name == "deploy":  # it lists its four tools, the lock file what they bring, too
        found = {package: found[package] for package in pinned}
    assert found == {package: {version} for package, version in pinned.items()}, "run make lock"


def test_the_lock_file_of_torch_agrees_with_serving() -> None:
    found = locked("torch")
    assert [version for version, _ in found["torch"]] == [SERVING["torch"]]
    more = found.keys() - SERVING.keys()
    assert [name for name in more if not UNPINNED.match(name)] == []
    served = locked("serve")
    assert all(found[name] == served[name] for name in found.keys() & served.keys())


def test_every_client_is_pinned_exactly() -> None:
    lists = sorted((ROOT / "requirements" / "clients").glob("*.txt"))
    assert lists
    for path in lists:
        found = pins(str(path.relative_to(ROOT)))
        assert found
        assert all(re.fullmatch(r"[\w.!]+", pin) for pin in found.values()), path.name


def test_the_lock_files_name_no_index() -> None:
    for path in LOCKS.iterdir():
        assert not re.search(r"^\s*--(?!hash=)|://", path.read_text(), re.MULTILINE), path.name


def test_torch_comes_first_and_no_extra_repeats_what_serving_has() -> None:
    assert next(iter(SERVING)) == "torch"
    for extra in (*EXTRAS.values(), pins("requirements/dev.txt")):
        assert not set(SERVING) & set(extra)


def test_a_package_pinned_in_two_files_has_one_version() -> None:
    for extra in EXTRAS.values():
        assert {name: ALL[name] for name in extra} == extra


def test_extras_of_the_package_are_readable_by_setuptools() -> None:
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    named = {extra: source["file"] for extra, source in dynamic["optional-dependencies"].items()}
    assert named == {name: [f"requirements/{name}.txt"] for name in EXTRAS}
    for path in ("requirements.txt", *(f"requirements/{name}.txt" for name in EXTRAS)):
        assert not re.search(r"^-", (ROOT / path).read_text(), re.MULTILINE)
