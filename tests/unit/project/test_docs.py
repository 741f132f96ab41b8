"""Links, commands, flags and file names in the documents exist, and docs/structure.md matches the code."""

from __future__ import annotations

import os
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from service.cli import COMMANDS
from service.settings_sources import setting_rows
from tests.support.pages import PAGES, english_of, is_translation

ROOT = Path(__file__).parents[3]
FOLDERS = (".", "docs", "docs/zh", "benchmarks", "k8s", "service/models/*")
DOCUMENTS = sorted(chain.from_iterable(ROOT.glob(f"{folder}/*.md") for folder in FOLDERS))
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
TRANSLATED = [READMES, *((english_of(page), page) for page in PAGES if is_translation(page))]
STRUCTURE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(((?:[^)#\s:]+\.md)?)#([^)\s]+)\)")


def contract() -> dict[str, object]:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return next(one for one in tool["contracts"] if one["type"] == "layers")


def section(title: str) -> str:
    return STRUCTURE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_exist(document: Path) -> None:
    targets = [match[1] for match in LINK.finditer(document.read_text(encoding="utf-8"))]
    broken = [one for one in targets if "://" not in one and not (document.parent / one).exists()]
    assert broken == []


def test_structure_lists_every_package() -> None:
    named = set(re.findall(r"`(\w+)(?:\.py|/)`", section("Packages")))
    packages = {path.stem for path in (ROOT / "service").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert named == packages


def test_files_named_in_structure_exist() -> None:
    files = re.findall(r"`([\w/]+\.(?:py|md))`", section("Where a change goes"))
    assert files
    assert [file for file in files if not (ROOT / "service" / file).is_file()] == []


def test_layers_in_structure_equal_the_import_contract() -> None:
    picture = section("Layers").split("```")[1]
    drawn = [line.strip() for line in re.sub(r"^\d+", "", picture, flags=re.MULTILINE).strip().splitlines()]
    assert [set(layer.split(" | ")) for layer in drawn] == [set(str(one).split(" | ")) for one in contract()["layers"]]


def test_anchors_match_headings() -> None:
    slugs = {document: _slugs(document) for document in DOCUMENTS}
    broken = []
    for document in DOCUMENTS:
        for match in ANCHOR.finditer(document.read_text(encoding="utf-8")):
            target = (document.parent / match[1]).resolve() if match[1] else document
            if match[2] not in slugs.get(target, {match[2]}):
                broken.append((document.name, match[0]))
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_flags_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"-m service ([a-z]+)", text)) <= set(COMMANDS)
    assert _typed_flags(text) <= {row.flag for row in setting_rows()}


@pytest.mark.parametrize("languages", TRANSLATED, ids=lambda languages: languages[0].name)
def test_translations_show_the_same_commands(languages: tuple[Path, Path]) -> None:
    blocks = [re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL) for path in languages]
    without_comments = [[re.sub(r"(?:^|\s+)# .*", "", block) for block in language] for language in blocks]
    assert without_comments[0] == without_comments[1]


@pytest.mark.parametrize("languages", TRANSLATED, ids=lambda languages: languages[0].name)
def test_translations_link_to_each_other(languages: tuple[Path, Path]) -> None:
    for page, other in (languages, languages[::-1]):
        assert f"({os.path.relpath(other, page.parent)})" in page.read_text(encoding="utf-8")


def test_the_readme_shows_flags_in_both_languages() -> None:
    assert all(_typed_flags(readme.read_text(encoding="utf-8")) for readme in READMES)


def _slugs(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _typed_flags(text: str) -> set[str]:
    lines = re.findall(r'make serve ARGS="(.*?)"', text, re.DOTALL)
    return {flag for line in lines for flag in re.findall(r"--[\w-]+", line)}
