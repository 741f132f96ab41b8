"""What is in a user's data: classes, lengths, duplicates, and the rows that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from service.tools.data.converters import Example

NUM_NAMED = 5
"""Rows that cannot be used are counted, and so many of them named."""
MAX_SHOWN_CLASSES = 30
IMBALANCE = 3.0
"""From this ratio of the largest to the smallest class on, accuracy alone says little."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """In characters, of all texts of an example together."""

    min: int
    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Lengths:
        lengths = sorted(sum(map(len, example.texts)) for example in examples)
        last = len(lengths) - 1
        return cls(lengths[0], lengths[last // 2], lengths[round(0.95 * last)], lengths[last])


@dataclass(frozen=True, slots=True)
class DataReport:
    """`refused` counts rows by reason, `first_refused` holds (line, reason) of the first ones.

    `duplicates` are examples whose texts occur before, `contradictions` those of them with another answer.
    """

    records: int
    used: int
    refused: dict[str, int]
    first_refused: tuple[tuple[int, str], ...]
    class_counts: dict[str, int]
    lengths: Lengths
    duplicates: int
    contradictions: int

    @property
    def imbalance(self) -> float:
        """The largest class as a multiple of the smallest that occurs; 1.0 without classes."""
        counts = [count for count in self.class_counts.values() if count]
        return max(counts) / min(counts) if counts else 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "used": self.used,
            "refused": self.refused,
            "first_refused": [{"line": line, "reason": reason} for line, reason in self.first_refused],
            "class_counts": self.class_counts,
            "characters": {name: getattr(self.lengths, name) for name in ("min", "median", "p95", "max")},
            "duplicates": self.duplicates,
            "contradictions": self.contradictions,
        }

    def lines(self) -> list[str]:
        """Sentences for a person; they contain no text of the data but the names of classes."""
        lengths = self.lengths
        lines = [
            f"{self.used} of {self.records} rows can be used; characters: median {lengths.median}, 95 % up to "
            f"{lengths.p95}, longest {lengths.max}"
        ]
        if self.class_counts:
            largest = sorted(self.class_counts.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {count}" for name, count in largest[:MAX_SHOWN_CLASSES])
            more = f", ... ({len(largest)} classes)" if len(largest) > MAX_SHOWN_CLASSES else ""
            lines.append(f"classes: {shown}{more}")
        if self.imbalance > IMBALANCE:
            lines.append(f"the largest class is {self.imbalance:.1f} times the smallest: read macro-F1, not accuracy")
        if self.duplicates:
            lines.append(f"{self.duplicates} texts occur before, {self.contradictions} of them with another answer")
        lines += [f"not used: {count} rows: {reason}" for reason, count in self.refused.items()]
        lines += [f"  line {line}: {reason}" for line, reason in self.first_refused]
        return lines


def make_report(
    examples: Sequence[Example], refused: Sequence[tuple[int, str]], labels: Sequence[str], records: int
) -> DataReport:
    """`examples` must not be empty. `labels` are the classes that all examples share, or none."""
    counts = Counter(index for one in examples for index in (one.answers if one.answers is not None else (one.answer,)))
    first: dict[tuple[str, ...], object] = {}
    duplicates = contradictions = 0
    for one in examples:
        key, answer = (*key_of(one), *(() if labels else one.options)), answer_of(one)
        duplicates += key in first
        contradictions += first.setdefault(key, answer) != answer
    return DataReport(
        records=records,
        used=len(examples),
        refused=dict(Counter(reason for _, reason in refused)),
        first_refused=tuple(refused[:NUM_NAMED]),
        class_counts={label: counts[index] for index, label in enumerate(labels)},
        lengths=Lengths.of(examples),
        duplicates=duplicates,
        contradictions=contradictions,
    )


def key_of(example: Example) -> tuple[str, ...]:
    """What makes two examples the same input; the options count where each example has its own."""
    options = example.options if example.task == "mrc" else ()
    return (*(text.strip() for text in example.texts), example.question or "", *options)


def answer_of(example: Example) -> object:
    """What the answer is, whatever kind the example is of; equal answers are equal, and it can be hashed."""
    if example.grade is not None:
        return example.grade
    if example.answers is not None:
        return example.answers
    return example.options[example.answer]
