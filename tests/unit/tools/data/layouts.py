"""Writers of small data files in their publishers' layouts: immediate, or as functions of the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Make = Callable[[Path], Path]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(path: Path, *records: Any) -> Path:
    return write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def json_document(path: Path, content: Any) -> Path:
    return write(path, json.dumps(content, ensure_ascii=False, indent=1))


def tab_separated(path: Path, *lines: Sequence[str]) -> Path:
    return write(path, "".join("\t".join(line) + "\n" for line in lines))


def lines(path: str, *records: object) -> Make:
    return lambda data: json_lines(data / path, *records)


def tabs(path: str, *records: Sequence[str]) -> Make:
    return lambda data: tab_separated(data / path, *records)


def text(path: str, content: str) -> Make:
    return lambda data: write(data / path, content)


def c3(kind: str, *records: tuple[list[str], Sequence[tuple[str, list[str], str]]]) -> Make:
    def make(data: Path) -> Path:
        content = [
            [passages, [{"question": q, "choice": c, "answer": a} for q, c, a in questions], f"{kind}-{number}"]
            for number, (passages, questions) in enumerate(records)
        ]
        return json_document(data / f"c3/c3-{kind}-dev.json", content)

    return make
