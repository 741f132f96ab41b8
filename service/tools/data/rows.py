"""A row of a user's table, and the values of its cells as texts, labels and numbers.

Raises RecordError for a cell that cannot be used. Its message never contains the cell: it may be a user's text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.tools.data.encodings import is_text
from service.tools.data.files import RecordError

MAX_TEXT = 100_000
"""Characters; a longer text is a damaged file, or a book."""


@dataclass(frozen=True, slots=True)
class Row:
    """`line` is its place in the file, from 1: the line of a text, the row of a sheet, the number of a record of a JSON
    document. `problem` says why it cannot be used; `values` are empty then, or lack a label only."""

    line: int
    values: Mapping[str, Any]
    problem: str = ""


def text_of(values: Mapping[str, Any], column: str) -> str:
    """The cell as a text that is not empty; numbers as they are written."""
    text = _string(values.get(column), column)
    if not text.strip():
        raise RecordError(f"{column} is empty")
    if len(text) > MAX_TEXT:
        raise RecordError(f"{column} has more than {MAX_TEXT} characters")
    return text


def texts_of(values: Mapping[str, Any], column: str, separator: str | None) -> tuple[str, ...]:
    """The texts of a cell that is a list, the spelling of one, or texts between separators; empty ones are left out."""
    value = values.get(column)
    if isinstance(value, dict):  # Label Studio's JSON-MIN
        value = value.get("choices")
    if isinstance(value, str):
        value = _listed(value) if separator is None else value.split(separator)
    if not isinstance(value, list | tuple):
        value = [value]
    texts = (_string(one, column).strip() for one in value)
    return tuple(text for text in texts if text)


def number_of(values: Mapping[str, Any], column: str) -> float:
    value = values.get(column)
    try:
        if isinstance(value, bool) or value is None:
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise RecordError(f"{column} is {'empty' if value in (None, '') else 'not a number'}") from None
    if not abs(number) < float("inf"):
        raise RecordError(f"{column} is not a finite number")
    return number


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, str) and isinstance(_listed(value), list))


def _listed(text: str) -> Any:
    """The list that a cell spells as JSON or as Python does, else the text."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return text


def _string(value: Any, column: str) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float() if value != value:  # NaN is how parquet files spell an empty cell
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case str() if is_text(value):
            return value
        case str():
            raise RecordError(f"{column} has a NUL, or bytes of another encoding")
        case _:
            raise RecordError(f"{column} is not a text")
