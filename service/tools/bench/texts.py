"""Real texts out of any folder of JSON, JSON-lines, tab and CSV files.

Knows no data set by name: of each record the longest string is the text, and a record that holds `question` and
`choice` is reading comprehension, as C3 lays it out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import NormalDist
from typing import Any

from service.errors import DatasetError
from service.tasks.mrc import Reading
from service.tools.data.files import read_any

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
        """The texts of a file, or of every file below a folder.

        Raises:
            DatasetError: a file cannot be read, or no Chinese text is found.
        """
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        texts: dict[str, None] = {}
        readings: list[Reading] = []
        for file in files:
            for record in read_any(file):
                readings.extend(_readings(record))
                text = max(_strings(record), key=len, default="")
                if len(text) >= MIN_CHARACTERS and _is_chinese(text):
                    texts[text] = None
        if not texts:
            raise DatasetError(f"{path}: no Chinese text found")
        return cls(f"real texts of {path.name}", list(texts), readings)


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


NUM_TEXTS = 32_768
NUM_READINGS = 4096
"""More than are in flight at a time, so that no two rows in flight are equal; made in a second."""

MAX_CHARACTERS = 510
"""With the two special tokens of a row, what a model of 512 positions reads."""

COMMON = bytes(byte for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF) for byte in (row, cell)).decode("gb2312")
"""3,666 characters of everyday text: the first level of GB 2312 but for its last, broken row."""

Quantile = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution by its quantile function; `text` is how it was asked for."""

    text: str
    quantile: Quantile

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """`lognormal:MEDIAN:P95`, `uniform:LOW:HIGH` or `fixed:N`; ValueError for anything else."""
        name, *numbers = text.split(":")
        make, count = _SHAPES.get(name, (None, -1))
        values = [float(number) for number in numbers if number.replace(".", "", 1).isdecimal()]
        if make is None or not len(values) == len(numbers) == count or min(values) < 1 or values != sorted(values):
            raise ValueError(f"{text!r}: wanted lognormal:MEDIAN:P95, uniform:LOW:HIGH or fixed:N")
        return cls(text, make(*values))

    def draw(self, count: int, rng: random.Random) -> list[int]:
        """One length out of each `count`-th of the distribution, shuffled: a small draw is as long as a large one."""
        drawn = [self.quantile((index + rng.uniform(0.01, 0.99)) / count) for index in range(count)]
        rng.shuffle(drawn)
        return [max(1, min(MAX_CHARACTERS, round(length))) for length in drawn]


def _lognormal(median: float, p95: float) -> Quantile:
    normal = NormalDist()
    sigma = log(p95 / median) / normal.inv_cdf(0.95)
    return lambda share: float(median * exp(sigma * normal.inv_cdf(share)))


def _uniform(low: float, high: float) -> Quantile:
    return lambda share: low + (high - low) * share


def _fixed(length: float) -> Quantile:
    return lambda share: length


_SHAPES: Mapping[str, tuple[Callable[..., Quantile], int]] = {
    "lognormal": (_lognormal, 2),
    "uniform": (_uniform, 2),
    "fixed": (_fixed, 1),
}


def make_text(length: int, rng: random.Random) -> str:
    return "".join(rng.choices(COMMON, k=length))


def make_corpus(lengths: Lengths, seed: int) -> Corpus:
    """Texts and reading comprehension; the same seed makes the same corpus."""
    rng = random.Random(seed)
    texts = [make_text(length, rng) for length in lengths.draw(NUM_TEXTS, rng)]
    readings = [_reading(length, rng) for length in lengths.draw(NUM_READINGS, rng)]
    return Corpus(f"made-up texts, {lengths.text} characters", texts, readings)


def _reading(length: int, rng: random.Random) -> Reading:
    choices = {make_text(rng.randint(2, 6), rng) for _ in range(4)}
    return Reading(make_text(length, rng), make_text(12, rng), tuple(sorted(choices)))
