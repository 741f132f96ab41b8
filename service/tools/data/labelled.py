"""A user's own labelled texts: JSON lines of a text and its label, or of two texts and whether they mean the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from service.tools.data.converters import BINARY, PAIR_LABELS, Example, index_of, text_of
from service.tools.data.files import read_records, take_each


def read_labelled(path: Path) -> list[Example]:
    """The examples of a file of JSON lines, in file order: of pairs where its first record has a `text_pair`, else of
    classification by the distinct labels of the file, in order of appearance.

    Raises:
        DatasetError: the file cannot be read, or a record lacks a field or has a bad value.
    """
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DatasetError(f"{path}: wanted a file of JSON lines, named .jsonl or .json")
    records = list(read_records(path))
    if not records:
        raise DatasetError(f"{path}: is empty")
    if isinstance(records[0], dict) and "text_pair" in records[0]:
        return list(take_each(path, records, _pair))
    labels = tuple(dict.fromkeys(take_each(path, records, lambda record: [text_of(record, "label")])))
    if len(labels) < 2:
        raise DatasetError(f"{path}: every label is {labels[0]!r}; at least two are needed")

    def convert(record: Any) -> Iterator[Example]:
        yield Example("classify", (text_of(record, "text"),), labels, index_of(record, "label", labels))

    return list(take_each(path, records, convert))


def _pair(record: Any) -> Iterator[Example]:
    texts = (text_of(record, "text"), text_of(record, "text_pair"))
    yield Example("similarity", texts, PAIR_LABELS, index_of(record, "label", BINARY))
