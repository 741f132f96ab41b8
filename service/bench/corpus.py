"""Real texts out of any folder of JSON, JSON-lines, tab and CSV files.

Knows no data set by name: of each record the longest string is the text, and a record that holds `question` and
`choice` is reading comprehension, as C3 lays it out.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from service.tasks.mrc import Reading

SUFFIXES = {".json", ".jsonl", ".txt", ".tsv", ".csv"}
MIN_CHARACTERS = 6


@dataclass(frozen=True, slots=True)
class Corpus:
    """What requests are made of; `about` says where it came from."""

    about: str
    texts: list[str]
    readings: list[Reading]

    @classmethod
    def read(cls, path: Path) -> Corpus:
        """All that a file, or the files below a folder, hold. Raises OSError, ValueError."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        texts: dict[str, None] = {}
        readings: list[Reading] = []
        for file in files:
            for record in _records(file):
                readings.extend(_readings(record))
                text = max(_strings(record), key=len, default="")
                if len(text) >= MIN_CHARACTERS and _is_chinese(text):
                    texts[text] = None
        if not texts:
            raise ValueError(f"{path}: no Chinese text found")
        return cls(f"real texts of {path.name}", list(texts), readings)


def _records(file: Path) -> Iterator[Any]:
    content = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix.lower() == ".csv":
        yield from csv.reader(StringIO(content))
    elif file.suffix.lower() in {".json", ".jsonl"}:
        yield from _json_records(file, content)
    else:
        yield from (line.split("\t") for line in content.split("\n"))


def _json_records(file: Path, content: str) -> Iterator[Any]:
    """One document, or one a line. Lines end with \\n alone: str.splitlines would also cut inside of texts."""
    try:
        whole = json.loads(content)
    except json.JSONDecodeError:
        try:
            yield from (json.loads(line) for line in content.split("\n") if line.strip())
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: neither JSON nor JSON lines: {error}") from None
    else:
        yield from whole if isinstance(whole, list) else [whole]


def _strings(record: Any) -> Iterator[str]:
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict):
        for value in record.values():
            yield from _strings(value)
    elif isinstance(record, list):
        for value in record:
            yield from _strings(value)


def _readings(record: Any) -> Iterator[Reading]:
    match record:
        case [[*passages], [*questions], *_]:
            for question in questions:
                match question:
                    case {"question": str(asked), "choice": [_, _, *_] as choices}:
                        # C3 repeats a choice now and then; a request must not.
                        distinct = tuple(dict.fromkeys(choices))
                        if len(distinct) > 1:
                            yield Reading("\n".join(passages), asked, distinct)
        case _:
            return


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
