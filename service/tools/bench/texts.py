"""Texts for requests: read from any folder of JSON, CSV and TSV files, or generated with a distribution of lengths.

The text of a record is its longest string; a record with `question` and `choice`, the layout of C3, is reading
comprehension.
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
    """Texts and readings for requests; `about` describes their origin."""

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
                    case {"question": str(text), "choice": [_, _, *_] as choices}:
                        # Some questions of C3 repeat a choice, which a request must not.
                        distinct = tuple(dict.fromkeys(choices))
                        if len(distinct) > 1:
                            yield Reading("\n".join(passages), text, distinct)
        case _:
            return


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


NUM_TEXTS = 32_768
NUM_READINGS = 4096
"""More than are in flight at a time, so that no two rows in flight are equal; generated in a second."""

MAX_CHARACTERS = 510
"""With the two special tokens of a row they fill the 512 positions of a model."""

COMMON = bytes(byte for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF) for byte in (row, cell)).decode("gb2312")
"""3,666 common characters: level 1 of GB 2312 without its last, incomplete row."""

Quantile = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution by its quantile function; `text` is its specification."""

    text: str
    quantile: Quantile

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """`lognormal:MEDIAN:P95`, `uniform:LOW:HIGH` or `fixed:N`; ValueError for anything else."""
        name, *numbers = text.split(":")
        make, num_values = _SHAPES.get(name, (None, -1))
        values = [float(number) for number in numbers if number.replace(".", "", 1).isdecimal()]
        if make is None or not len(values) == len(numbers) == num_values or min(values) < 1 or values != sorted(values):
            raise ValueError(f"{text!r}: wanted lognormal:MEDIAN:P95, uniform:LOW:HIGH or fixed:N")
        return cls(text, make(*values))

    def draw(self, count: int, rng: random.Random) -> list[int]:
        """One length from each of `count` equal parts of the distribution, shuffled: the mean hardly varies."""
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
    """`length` random common characters."""
    return "".join(rng.choices(COMMON, k=length))


def make_corpus(lengths: Lengths, seed: int) -> Corpus:
    """Generated texts and reading comprehension; the same seed gives the same corpus."""
    rng = random.Random(seed)
    texts = [make_text(length, rng) for length in lengths.draw(NUM_TEXTS, rng)]
    readings = [_reading(length, rng) for length in lengths.draw(NUM_READINGS, rng)]
    return Corpus(f"generated texts, {lengths.text} characters", texts, readings)


def _reading(length: int, rng: random.Random) -> Reading:
    choices = {make_text(rng.randint(2, 6), rng) for _ in range(4)}
    return Reading(make_text(length, rng), make_text(12, rng), tuple(sorted(choices)))
