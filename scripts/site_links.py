"""Places of the repository's files in the documentation site, and the links of a page rewritten for them.

The pages under docs/ are the site's sources. They link to files outside docs/, as results of benchmarks and code.
The site takes these in, so that it can be read without the repository: a Markdown file becomes a page, a folder a list
of its files, a text a page that shows it, anything else a copy. Their places are under `repository/`; the READMEs are
the first pages.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FIRST_PAGES = {"README.zh-CN.md": "index.md", "README.md": "en/index.md"}
OUTSIDE = "repository"
TEXTS = {"", ".json", ".py", ".service", ".toml", ".txt", ".yaml", ".yml"}
"""Suffixes of files that a page shows; browsers download some of them."""
FENCE = re.compile(r" *(`{3,}|~{3,})")
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


class Sources:
    """The files of a checkout. Paths are relative to its top, with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, path: str) -> str:
        """Where a file or folder lies in the site, as a source path of MkDocs."""
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        if path in FIRST_PAGES:
            return FIRST_PAGES[path]
        if (self.root / path).is_dir():
            return f"{OUTSIDE}/{path}/index.md"
        return f"{OUTSIDE}/{path}.md" if PurePosixPath(path).suffix in TEXTS else f"{OUTSIDE}/{path}"

    def markdown(self, path: str) -> str | None:
        """The page of a file or folder, with its links as in the repository; None for a file that is copied."""
        file = self.root / path
        if file.is_dir():
            members = sorted(one.name for one in file.iterdir() if one.is_file() and one.suffix in TEXTS | {".md"})
            return _head(path) + "\n".join(f"- [{name}]({name})" for name in members) + "\n"
        if file.suffix == ".md":
            return file.read_text(encoding="utf-8")
        if file.suffix in TEXTS:
            return f"{_head(path)}````text\n{file.read_text(encoding='utf-8')}````\n"
        return None

    def targets(self, path: str) -> set[str]:
        """The existing files and folders that the page of a file links to."""
        prose = (line for is_prose, line in _lines(self.markdown(path) or "") if is_prose)
        found = (self._target(path, match["target"]) for line in prose for match in LINK.finditer(line))
        return {one for one in found if one is not None}

    def outside(self) -> list[str]:
        """The READMEs, what the pages of docs/ link to outside of docs/, and what these files link to."""
        pages = [str(page.relative_to(self.root)) for page in sorted((self.root / "docs").rglob("*.md"))]
        waiting = [*FIRST_PAGES, *pages]
        seen = set(waiting)
        while waiting:
            more = self.targets(waiting.pop()) - seen
            seen |= more
            waiting += sorted(more)
        return sorted(path for path in seen if not path.startswith("docs/"))

    def rewrite(self, path: str, text: str) -> str:
        """The text of the page of a file with its links to existing files as they are in the site."""
        folder = posixpath.dirname(self.place(path)) or "."

        def replace(match: re.Match[str]) -> str:
            target = self._target(path, match["target"])
            if target is None:
                return match[0]
            return f"]({posixpath.relpath(self.place(target), folder)}{match['anchor'] or ''})"

        return "\n".join(LINK.sub(replace, line) if is_prose else line for is_prose, line in _lines(text))

    def _target(self, path: str, link: str) -> str | None:
        folder = path if (self.root / path).is_dir() else posixpath.dirname(path)
        target = posixpath.normpath(posixpath.join(folder, link))
        is_ours = "://" not in link and not target.startswith(("/", "..")) and (self.root / target).exists()
        return target if is_ours else None


def _head(path: str) -> str:
    """The head of a page that shows a file. The search finds what pages say, not what files contain."""
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"


def _lines(text: str) -> Iterator[tuple[bool, str]]:
    """The lines, each with whether it is outside of blocks of code."""
    fence = ""
    for line in text.split("\n"):
        found = FENCE.match(line)
        if found and not fence:
            fence = found[1]
            yield False, line
        elif found and line.strip() == fence:
            fence = ""
            yield False, line
        else:
            yield not fence, line
