"""The rows of a corpus as requests: lines for `/v1/bulk`, each with the path of a task and the body of some rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.tools.corpora.source import Row
from service.tools.data.files import RecordError
from service.tools.data.rows import text_of, texts_of

TASKS = ("classify", "similarity", "nli", "mrc", "fill-mask", "embed")
PAIRS = ("similarity", "nli")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a corpus that a request is made of. Those of None are not used."""

    text: str = "text"
    text_pair: str | None = None
    question: str | None = None
    choices: str | None = None
    separator: str = "|"
    """Between the choices in a cell that is no list."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of every row: a task, the columns that it reads, and what every body has."""

    task: str
    columns: Columns
    body: Mapping[str, Any]

    def request(self, row: Row) -> tuple[Any, dict[str, Any]]:
        """The input that a row is, and the other fields of its body. Raises RecordError: the row lacks a text."""
        if row.problem:
            raise RecordError(row.problem)
        text = text_of(row.values, self.columns.text)
        given = self._given(row.values)
        if self.task == "mrc":
            return {"passage": text, **given}, {**self.body}
        pair = None if self.columns.text_pair is None else text_of(row.values, self.columns.text_pair)
        if self.task in PAIRS:
            return [text, pair], {**self.body}
        if self.task != "classify":
            return text, {**self.body}
        fields = {"labels" if name == "choices" else name: value for name, value in given.items()}
        return text if pair is None else {"text": text, "text_pair": pair}, {**self.body, **fields}

    def _given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The question and the choices of a row that has them."""
        columns = self.columns
        given: dict[str, Any] = {}
        if columns.question is not None:
            given["question"] = text_of(values, columns.question)
        if columns.choices is not None:
            given["choices"] = list(dict.fromkeys(texts_of(values, columns.choices, columns.separator)))
        return given

    def line(self, inputs: Sequence[Any], fields: Mapping[str, Any]) -> bytes:
        """The inputs of rows whose other fields are the same."""
        return orjson.dumps({"url": f"/v1/{self.task}", "body": {**fields, "inputs": inputs}})
