"""Real texts out of any folder of JSON, JSON-lines, tab and CSV files, and request bodies made of them.

Knows no data set by name: of each record the longest string is the text, and a record that holds `question` and
`choice` is reading comprehension, as C3 lays it out.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

SUFFIXES = {".json", ".jsonl", ".txt", ".tsv", ".csv"}
MIN_CHARACTERS = 6
NEWS = ["财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐"]
REVIEWS = ["这是一条差评", "这是一条好评"]


@dataclass(frozen=True, slots=True)
class Reading:
    passage: str
    question: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
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
        return cls(list(texts), readings)


@dataclass(frozen=True, slots=True)
class Request:
    task: str
    path: str
    body: bytes
    num_inputs: int


def make_requests(
    corpus: Corpus, task: str, num: int, num_inputs: int, model: str | None, rng: random.Random
) -> list[Request]:
    """`num` requests of one task, to be sent round and round."""
    path, body_of = BODIES[task]
    common = {} if model is None else {"model": model}
    bodies = (body_of(corpus, num_inputs, rng) | common for _ in range(num))
    return [Request(task, path, json.dumps(body, ensure_ascii=False).encode(), num_inputs) for body in bodies]


def _zero_shot(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    labels, question = rng.choice([(NEWS, "下面新闻属于哪一个类别？"), (REVIEWS, None)])
    body: dict[str, Any] = {"inputs": rng.choices(corpus.texts, k=num_inputs), "labels": labels}
    return body if question is None else body | {"question": question}


def _head(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    return {"inputs": rng.choices(corpus.texts, k=num_inputs)}


def _similarity(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    return {"inputs": [rng.choices(corpus.texts, k=2) for _ in range(num_inputs)]}


def _mrc(corpus: Corpus, num_inputs: int, rng: random.Random) -> dict[str, Any]:
    chosen = rng.choices(corpus.readings, k=num_inputs)
    return {"inputs": [{"passage": r.passage, "question": r.question, "choices": r.choices} for r in chosen]}


Body = Callable[[Corpus, int, random.Random], dict[str, Any]]
BODIES: Mapping[str, tuple[str, Body]] = {
    "zero-shot": ("/v1/classify", _zero_shot),
    "classify": ("/v1/classify", _head),
    "similarity": ("/v1/similarity", _similarity),
    "mrc": ("/v1/mrc", _mrc),
}


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
