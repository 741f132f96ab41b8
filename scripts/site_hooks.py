"""Hooks of MkDocs for mkdocs.yml: files outside docs/, anchors as on GitHub, the theme in the language of each page.

It runs in the environment of requirements/docs.txt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts.site_links import FIRST_PAGES, Sources

SOURCES = Sources(Path(__file__).parents[1])
DOCS = SOURCES.root / "docs"
PATHS = {SOURCES.place(path): path for path in SOURCES.outside()}
"""The files outside docs/ by their places in the site."""
ENGLISH = {"zh/contributing.md": "repository/CONTRIBUTING.md", "zh/monitoring.md": "dashboards.md"}
"""The English pages of Chinese ones that have another name."""
CHINESE = {english: chinese for chinese, english in ENGLISH.items()}
SHIM = Path(__file__).with_name("site_iframe_worker.js")
SHIM_PLACE = "assets/iframe-worker.js"


def on_config(config: MkDocsConfig) -> None:
    config.mdx_configs.setdefault("toc", {})["slugify"] = _slug


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, path in PATHS.items():
        text = SOURCES.markdown(path)
        of_file = {"content": text} if text is not None else {"abs_src_path": str(SOURCES.root / path)}
        files.append(File.generated(config, place, **of_file))
    files.append(File.generated(config, SHIM_PLACE, abs_src_path=str(SHIM)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return SOURCES.rewrite(_path_of(page), markdown)


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: object) -> None:
    """Sets the language of the theme's own words, and the links of its language button."""
    chinese, english = _languages(page.file.src_uri)
    config.theme["language"] = "zh" if page.file.src_uri == chinese else "en"
    config.extra["alternate"] = [
        {"name": "中文", "lang": "zh", "link": chinese.replace(".md", ".html")},
        {"name": "English", "lang": "en", "link": english.replace(".md", ".html")},
    ]


def _path_of(page: Page) -> str:
    return PATHS.get(page.file.src_uri, f"docs/{page.file.src_uri}")


def _languages(source: str) -> tuple[str, str]:
    """The Chinese and the English page of this name; the first page of a language that has none."""
    chinese_home, english_home = FIRST_PAGES.values()
    if source in (chinese_home, english_home):
        return chinese_home, english_home
    if source in ENGLISH or source in CHINESE:
        return CHINESE.get(source, source), ENGLISH.get(source, source)
    name = source.removeprefix("zh/")
    chinese = f"zh/{name}" if (DOCS / "zh" / name).exists() else chinese_home
    return chinese, name if (DOCS / name).exists() or source == name else english_home


def _slug(heading: str, separator: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)
