"""The examples of the README and docs/tasks.md are accepted, and their answers have the documented shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.fakes import running
from tests.readme_examples import (
    ACCURACY_HEADS,
    CHINESE,
    ENGLISH,
    Example,
    answers,
    examples,
    fill_accuracy,
    fill_answers,
    measured,
    pretty,
    read,
)

EXAMPLES = examples(read(ENGLISH))
ANSWERS = answers(read(ENGLISH))


@pytest.mark.parametrize(("english", "chinese"), list(zip(ENGLISH, CHINESE, strict=True)), ids=lambda path: path.name)
def test_translations_show_the_same_examples_and_answers(english: Path, chinese: Path) -> None:
    shown = examples(read([english]))
    assert shown
    assert examples(read([chinese])) == shown
    assert answers(read([chinese])) == answers(read([english]))
    assert list(answers(read([english]))) == list(shown)


def test_example_names_are_unique() -> None:
    assert len(EXAMPLES) == sum(len(examples(read([page]))) for page in ENGLISH)


async def test_every_task_has_an_example() -> None:
    async with running() as service:
        paths = (await service.client.get("/openapi.json")).json()["paths"]
    tasks = {path for path, methods in paths.items() if any("tasks" in each["tags"] for each in methods.values())}
    assert tasks | {"/v1/models"} == {example.path for example in EXAMPLES.values()} | {"/v1/bulk"}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
async def test_an_example_is_accepted_and_its_answer_has_the_documented_shape(example: Example) -> None:
    async with running() as service:
        if example.body is None:
            reply = await service.client.get(example.path)
        else:
            reply = await service.client.post(example.path, content=example.body.encode())
    assert reply.status_code == (422 if example.name == "mistake" else 200), reply.text
    shown = ANSWERS[example.name]
    assert shown is not None, "no answer yet: python -m tests.readme_examples --url http://127.0.0.1:8000"
    if example.name != "models":
        assert shape(shown) == shape(reply.json())


def test_the_accuracy_tables_are_filled_and_equal() -> None:
    tables = [_table(page.read_text(encoding="utf-8")) for page in ACCURACY_HEADS]
    assert tables[0] == tables[1]
    assert tables[0], "no accuracy yet: python -m tests.readme_examples --accuracy"


@pytest.mark.parametrize("path", ACCURACY_HEADS, ids=lambda path: path.name)
def test_the_accuracy_table_matches_the_measured_result(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    filled = fill_accuracy(text, ACCURACY_HEADS[path], measured())
    assert filled == text, "python -m tests.readme_examples --accuracy fills it in"


def test_fill_answers_replaces_old_answers() -> None:
    text = "<!-- example:a -->\n```bash\ncurl -s http://h/v1/x -d '{}'\n```\n<!-- answer:a -->\n\nmore\n"
    once = fill_answers(text, {"a": {"old": 1}})
    assert answers(fill_answers(once, {"a": {"new": "二"}})) == {"a": {"new": "二"}}
    assert fill_answers(once, {"a": {"old": 1}}) == once
    assert once.endswith("```\n\nmore\n")


def test_fill_accuracy_is_idempotent() -> None:
    report = {"task": "a", "split": "dev", "examples": 9, "accuracy": 0.5, "interval_95": [0.2, 0.8], "chance": 0.1}
    text = "x\n<!-- accuracy:begin -->\n<!-- accuracy:end -->\ny\n"
    once = fill_accuracy(text, ("h",) * 5, [report])
    assert "| a (dev) | 9 | 50.0% | 20.0% – 80.0% | 10.0% |" in once
    assert fill_accuracy(once, ("h",) * 5, [report]) == once


def test_pretty_shortens_vectors_and_keeps_short_values_on_one_line() -> None:
    assert pretty([0.123456] * 3) == "[0.1235, 0.1235, 0.1235]"
    assert pretty({"embedding": [0.5] * 256}) == '{"embedding": [0.5, 0.5, 0.5, 0.5, "… 252 more"]}'


def shape(value: Any) -> Any:
    """The keys and types of a JSON value; a list has the shape of its first member."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _table(text: str) -> list[str]:
    inside = text.split("<!-- accuracy:begin -->")[1].split("<!-- accuracy:end -->")[0]
    return inside.strip().splitlines()[2:]
