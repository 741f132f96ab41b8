"""The documentation site: its navigation has every page, and files outside docs/ are taken in with working links."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.site_links import FIRST_PAGES, Sources

ROOT = Path(__file__).parents[3]
DOCS_PYTHON = ROOT / ".docs" / "bin" / "python"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def entries(nav: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        yield nav
    for part in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from entries(part)


@pytest.fixture
def checkout(tmp_path: Path) -> Sources:
    files = {
        "README.md": "[tasks](docs/tasks.md#one) [more](docs/tasks.md)",
        "README.zh-CN.md": "",
        "docs/tasks.md": "[data](../results/one.json) [folder](../k8s) [gone](../gone.md) [web](https://example.com/a.md)",
        "results/one.json": '{"a": 1}\n',
        "k8s/README.md": "[back](../docs/tasks.md) [picture](a.png)",
        "k8s/a.png": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return Sources(tmp_path)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [entry for entry in entries(CONFIG["nav"]) if not entry.startswith("repository/")]
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*pages, *FIRST_PAGES.values()])


def test_every_entry_from_outside_the_docs_exists() -> None:
    outside = [entry.removeprefix("repository/") for entry in entries(CONFIG["nav"]) if entry.startswith("repository/")]
    assert outside
    assert [path for path in outside if not (ROOT / path).is_file()] == []


def test_chinese_pages_come_first() -> None:
    first, second = CONFIG["nav"]
    assert (list(first), list(second)) == (["中文"], ["English"])
    assert next(entries(first)) == FIRST_PAGES["README.zh-CN.md"]


def test_a_site_takes_in_what_its_pages_link_to_and_what_that_links_to(checkout: Sources) -> None:
    assert checkout.outside() == [
        "README.md",
        "README.zh-CN.md",
        "k8s",
        "k8s/README.md",
        "k8s/a.png",
        "results/one.json",
    ]


def test_links_lead_to_the_places_in_the_site(checkout: Sources) -> None:
    text = checkout.markdown("docs/tasks.md")
    assert text is not None
    data, folder, gone, web = checkout.rewrite("docs/tasks.md", text).split(" ")
    assert data == "[data](repository/results/one.json.md)"
    assert folder == "[folder](repository/k8s/index.md)"
    assert gone == "[gone](../gone.md)"
    assert web == "[web](https://example.com/a.md)"
    assert checkout.rewrite("README.md", "[tasks](docs/tasks.md#one)") == "[tasks](../tasks.md#one)"
    assert checkout.rewrite("k8s/README.md", "[back](../docs/tasks.md)") == "[back](../../tasks.md)"
    assert checkout.rewrite("k8s", "[README.md](README.md)") == "[README.md](README.md)"


def test_links_in_blocks_of_code_stay(checkout: Sources) -> None:
    text = "```python\nprint('[data](../results/one.json)')\n```\n[data](../results/one.json)"
    *code, prose = checkout.rewrite("docs/tasks.md", text).splitlines()
    assert code == text.splitlines()[:-1]
    assert prose == "[data](repository/results/one.json.md)"


def test_a_page_shows_a_data_file_and_leaves_it_out_of_the_search(checkout: Sources) -> None:
    page = checkout.markdown("results/one.json")
    assert page is not None
    assert '````text\n{"a": 1}\n````' in page
    assert "exclude: true" in page
    assert checkout.markdown("k8s/a.png") is None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link fails."""
    if not DOCS_PYTHON.exists():
        pytest.skip("no MkDocs: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [DOCS_PYTHON, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_built_page_loads_nothing_from_another_server(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages
    loads = r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    for page in pages:
        assert re.findall(loads, page.read_text(encoding="utf-8")) == [], page


@pytest.mark.slow
def test_the_search_index_has_chinese_words(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = {word for entry in index["docs"] for word in entry["text"].split("\u200b")}
    assert {"镜像", "微调", "标签", "离线"} <= words


@pytest.mark.slow
def test_a_page_is_in_the_language_of_its_text(site: Path) -> None:
    for page, language in (("index.html", "zh"), ("zh/models.html", "zh"), ("models.html", "en")):
        assert f'<html lang="{language}"' in (site / page).read_text(encoding="utf-8")
    others = {"models": "models", "monitoring": "dashboards", "contributing": "repository/CONTRIBUTING"}
    for page, english in others.items():
        assert f'href="../{english}.html" hreflang="en"' in (site / "zh" / f"{page}.html").read_text(encoding="utf-8")
