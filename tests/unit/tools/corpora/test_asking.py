"""A row as a request, for each task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.tools.corpora.asking import Ask, Columns
from service.tools.corpora.source import Row
from service.tools.data.files import RecordError

ROW = {"text": "好", "b": "坏", "q": "什么", "c": "一|二|一", "list": ["一", "二"]}


def line(task: str, columns: Columns, values: dict[str, Any] = ROW, **body: Any) -> Any:
    """That of one row."""
    ask = Ask(task, columns, body)
    one, fields = ask.request(Row(1, values))
    return json.loads(ask.line([one], fields))


@pytest.mark.parametrize(
    ("task", "columns", "body"),
    [
        ("classify", Columns(), {"inputs": ["好"]}),
        ("classify", Columns(text_pair="b"), {"inputs": [{"text": "好", "text_pair": "坏"}]}),
        (
            "classify",
            Columns(choices="c", question="q"),
            {"inputs": ["好"], "labels": ["一", "二"], "question": "什么"},
        ),
        ("similarity", Columns(text_pair="b"), {"inputs": [["好", "坏"]]}),
        ("nli", Columns(text_pair="b"), {"inputs": [["好", "坏"]]}),
        (
            "mrc",
            Columns(question="q", choices="list"),
            {"inputs": [{"passage": "好", "question": "什么", "choices": ["一", "二"]}]},
        ),
        ("mrc", Columns(question="q"), {"inputs": [{"passage": "好", "question": "什么"}]}),
        ("embed", Columns(), {"inputs": ["好"]}),
        ("fill-mask", Columns(text="b"), {"inputs": ["坏"]}),
    ],
)
def test_a_row_is_a_request_of_the_task(task: str, columns: Columns, body: dict[str, Any]) -> None:
    assert line(task, columns) == {"url": f"/v1/{task}", "body": body}


def test_the_fields_of_every_body_are_sent_too() -> None:
    assert line("classify", Columns(), labels=["a", "b"])["body"] == {"labels": ["a", "b"], "inputs": ["好"]}


@pytest.mark.parametrize("values", [{}, {"text": " "}, {"text": "\udc80"}, {"text": ["a"]}])
def test_a_row_without_a_text_is_bad(values: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="text"):
        line("embed", Columns(), values)
