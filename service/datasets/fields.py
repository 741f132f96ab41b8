"""Takes fields out of a record, strictly: what is missing or unknown is said in words. Knows no files and no tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LONGEST_SHOWN = 40


class RecordError(ValueError):
    """A record lacks a field or holds a value that it may not; whoever reads the file says which record."""


def value_of(record: Any, key: str | int) -> Any:
    """A field of an object by its name, or a column of a line by its number (from 0)."""
    try:
        return record[key]
    except (KeyError, IndexError, TypeError):
        raise RecordError(f"has no {_name(key)}") from None


def text_of(record: Any, key: str | int) -> str:
    value = value_of(record, key)
    if not isinstance(value, str):
        raise RecordError(f"{_name(key)} is not text")
    return value


def list_of(record: Any, key: str | int) -> list[Any]:
    value = value_of(record, key)
    if not isinstance(value, list):
        raise RecordError(f"{_name(key)} is not a list")
    return value


def texts_of(record: Any, key: str | int) -> tuple[str, ...]:
    values = list_of(record, key)
    if not all(isinstance(each, str) for each in values):
        raise RecordError(f"{_name(key)} is not a list of texts")
    return tuple(values)


def index_of(record: Any, key: str | int, names: Sequence[str]) -> int:
    """Which of `names` the field holds; a number or a truth value is read as JSON writes it, "1" or "true"."""
    value = value_of(record, key)
    name = value if isinstance(value, str) else str(value).lower()
    if name not in names:
        shown = ", ".join(names) if len(names) <= LONGEST_SHOWN else f"{names[0]}, ... {names[-1]}"
        raise RecordError(f"{_name(key)} is {name[:LONGEST_SHOWN]!r}, which is none of {shown}")
    return names.index(name)


def number_of(record: Any, key: str | int) -> float:
    value = value_of(record, key)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RecordError(f"{_name(key)} is not a number") from None


def _name(key: str | int) -> str:
    return f"field {key!r}" if isinstance(key, str) else f"column {key + 1}"
