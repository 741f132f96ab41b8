"""The documents point at things that exist, and the picture of the structure is true."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from service.cli import COMMANDS
from service.settings_sources import setting_rows

ROOT = Path(__file__).parents[3]
FOLDERS = (".", "docs", "benchmarks", "k8s", "service/models/*")
DOCUMENTS = sorted(chain.from_iterable(ROOT.glob(f"{folder}/*.md") for folder in FOLDERS))
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
STRUCTURE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def contract() -> dict[str, object]:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return next(one for one in tool["contracts"] if one["type"] == "layers")


def section(title: str) -> str:
    return STRUCTURE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = [match[1] for match in LINK.finditer(document.read_text(encoding="utf-8"))]
    broken = [one for one in targets if "://" not in one and not (document.parent / one).exists()]
    assert broken == []


def test_every_package_is_named_in_the_structure() -> None:
    named = set(re.findall(r"`(\w+)(?:\.py|/)`", section("Packages")))
    packages = {path.stem for path in (ROOT / "service").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert named == packages


def test_the_files_that_the_structure_sends_one_to_exist() -> None:
    files = re.findall(r"`([\w/]+\.(?:py|md))`", section("Where a change goes"))
    assert files
    assert [file for file in files if not (ROOT / "service" / file).is_file()] == []


def test_the_layers_of_the_structure_are_those_of_the_linter() -> None:
    picture = section("Layers").split("```")[1]
    drawn = [line.strip() for line in re.sub(r"^\d+", "", picture, flags=re.MULTILINE).strip().splitlines()]
    assert [set(layer.split(" | ")) for layer in drawn] == [set(str(one).split(" | ")) for one in contract()["layers"]]


@pytest.mark.parametrize("document", READMES, ids=lambda path: path.name)
def test_the_readmes_name_real_commands_and_flags(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"-m service (\w+)", text)) <= set(COMMANDS)
    known = {row.flag for row in setting_rows()}
    typed = {
        flag
        for line in re.findall(r'make serve ARGS="(.*?)"', text, re.DOTALL)
        for flag in re.findall(r"--[\w-]+", line)
    }
    assert typed
    assert typed <= known


def test_both_readmes_show_the_same_commands() -> None:
    blocks = [re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL) for path in READMES]
    without_comments = [[re.sub(r"\s+# .*", "", block) for block in language] for language in blocks]
    assert without_comments[0] == without_comments[1]
