"""The row of a corpus as a request: a line for `/v1/bulk`, which names the path of a task and has its body."""

from __future__ import annotations

from collections.abc import Mapping
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

    def line(self, row: Row) -> bytes:
        """Raises RecordError: the row lacks a text."""
        if row.problem:
            raise RecordError(row.problem)
        body = {**self.body, **self._fields(row.values)}
        return orjson.dumps({"url": f"/v1/{self.task}", "body": body})

    def _fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        columns, text = self.columns, text_of(values, self.columns.text)
        choices = None
        if columns.choices is not None:
            choices = list(dict.fromkeys(texts_of(values, columns.choices, columns.separator)))
        question = None if columns.question is None else text_of(values, columns.question)
        if self.task == "mrc":
            given = {"passage": text, "question": question, "choices": choices}
            return {"inputs": [{name: value for name, value in given.items() if value is not None}]}
        pair = None if columns.text_pair is None else text_of(values, columns.text_pair)
        if self.task in PAIRS:
            return {"inputs": [[text, pair]]}
        if self.task != "classify":
            return {"inputs": [text]}
        fields: dict[str, Any] = {"inputs": [text if pair is None else {"text": text, "text_pair": pair}]}
        fields |= {} if choices is None else {"labels": choices}
        return fields | ({} if question is None else {"question": question})
