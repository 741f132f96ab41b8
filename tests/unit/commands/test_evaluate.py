"""`python -m service evaluate`: from a data folder to a report, with a fake server."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import httpx
import pytest

from service.commands.evaluate import add_arguments, draw, evaluate, run, summary
from service.tools.data.converters import Example
from service.tools.evaluation import EvaluationError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "fewclue" / "eprstmt"
    folder.mkdir(parents=True)
    rows = [{"sentence": f"评论{index}", "label": "Positive" if index % 2 else "Negative"} for index in range(20)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "dev_few_all.json").write_text(lines, encoding="utf-8")
    return tmp_path


def answer_positive(request: httpx.Request) -> httpx.Response:
    """A model that answers every review with 'positive'."""
    results = [{"label": "这是一条好评", "truncated": False} for _ in json.loads(request.content)["inputs"]]
    return httpx.Response(200, json={"model": "kind", "results": results})


def arguments(data: Path, *more: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--task", "eprstmt", "--data", str(data), *more])


async def test_evaluate_returns_and_summarises_a_report(data: Path) -> None:
    report = await evaluate(arguments(data), httpx.MockTransport(answer_positive))
    assert (report["task"], report["split"], report["model"]) == ("eprstmt", "dev", "kind")
    assert (report["examples"], report["correct"], report["accuracy"]) == (20, 10, 0.5)
    assert report["confusion"]["这是一条差评"] == {"这是一条差评": 0, "这是一条好评": 10}
    assert "50.0% of 20" in summary(report)
    assert json.loads(json.dumps(report)) == report


async def test_evaluate_sends_the_key_of_the_key_file(data: Path, tmp_path: Path) -> None:
    keys = []

    def guarded(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["authorization"])
        return answer_positive(request)

    file = tmp_path / "key"
    file.write_text("erl_one\n")
    await evaluate(arguments(data, "--limit", "1", "--key-file", str(file)), httpx.MockTransport(guarded))
    assert keys == ["Bearer erl_one"]
    with pytest.raises(SystemExit):
        arguments(data, "--key-file", str(tmp_path / "nowhere"))


async def test_head_maps_the_labels_of_a_fine_tuned_model(data: Path) -> None:
    def head(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert "labels" not in body
        results = [{"label": "正面" if int(text[2:]) % 2 else "负面", "truncated": False} for text in body["inputs"]]
        return httpx.Response(200, json={"model": "head", "results": results})

    transport = httpx.MockTransport(head)
    assert (await evaluate(arguments(data, "--head", "负面,正面"), transport))["accuracy"] == 1
    with pytest.raises(EvaluationError, match="the model calls its classes 正面, 负面"):
        await evaluate(arguments(data, "--head"), transport)
    with pytest.raises(EvaluationError, match="--head names 1 labels"):
        await evaluate(arguments(data, "--head", "负面"), transport)


async def test_limit_evaluates_that_number_of_examples(data: Path) -> None:
    report = await evaluate(arguments(data, "--limit", "7"), httpx.MockTransport(answer_positive))
    assert report["examples"] == 7


def test_a_draw_is_repeatable_ordered_and_not_the_first_examples() -> None:
    examples = [Example("classify", (str(index),), ("a", "b"), 0) for index in range(1000)]
    drawn = draw(examples, 50, seed=1)
    assert drawn == draw(examples, 50, seed=1) != draw(examples, 50, seed=2)
    assert drawn == sorted(drawn, key=examples.index)
    assert drawn != examples[:50]
    assert draw(examples, None, 1) == draw(examples, 1000, 1) == examples


def test_missing_data_files_print_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--task", "bustm", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no such data file: ")


@pytest.mark.parametrize("flags", [["--limit", "0"], ["--limit", "many"], ["--url", "localhost:8000"], ["--task", "x"]])
def test_invalid_flags_are_refused(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        arguments(tmp_path, *flags)
    assert end.value.code == 2
