"""`python -m service evaluate`: from labelled data to a report and its files, with a fake server."""

from __future__ import annotations

import csv
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.commands.connection import own_head, settings_in_process
from service.commands.evaluate import add_arguments, evaluate, fit_to_labels, run, summary
from service.tools.data.converters import Example
from service.tools.evaluation import EvaluationError

Handler = Callable[[dict[str, Any]], dict[str, Any]]
ZERO_SHOT = {"name": "mini", "source": "mini", "kind": "masked-lm", "labels": []}
REGRESSION = {"kind": "sequence-classification", "num_classes": 1, "problem_type": "regression"}


def server(label_of: Callable[[str], str], *served: dict[str, Any], keys: list[str] | None = None) -> Any:
    """A model that answers each text with `label_of`, certain by 0.9, and lists the `served` models."""

    def handle(request: httpx.Request) -> httpx.Response:
        if keys is not None:
            keys.append(request.headers["authorization"])
        if request.method == "GET":
            return httpx.Response(200, json={"models": list(served) or [ZERO_SHOT], "replicas": []})
        body = json.loads(request.content)
        labels = body.get("labels") or (served[0]["labels"] if served else [])
        results = []
        for text in body["inputs"]:
            first = label_of(text)
            rest = [label for label in labels if label != first]
            ranked = [(first, 0.9), *((label, 0.1 / len(rest)) for label in rest)]
            scores = [{"label": label, "score": score} for label, score in ranked]
            results.append({"label": first, "score": 0.9, "scores": scores, "truncated": False})
        more = {"method": "choice", "models": ["kind"], "usage": {"tokens": 10}}
        return httpx.Response(200, json={"model": "kind", "results": results, **more})

    return httpx.MockTransport(handle)


POSITIVE = server(lambda text: "这是一条好评")
"""Answers every review with 'positive'."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "fewclue" / "eprstmt"
    folder.mkdir(parents=True)
    rows = [{"sentence": f"评论{index}", "label": "Positive" if index % 2 else "Negative"} for index in range(20)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "dev_few_all.json").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """40 reviews: 文0 is 差评, 文1 is 好评, ..."""
    file = tmp_path / "reviews.csv"
    lines = [f"文{index},{'好评' if index % 2 else '差评'}" for index in range(40)]
    file.write_text("\n".join(["评论,标签", *lines]), encoding="utf-8")
    return file


def by_number(text: str) -> str:
    """Right except for the first four."""
    number = int(text[1:])
    return "好评" if number % 2 or number < 4 else "差评"


def parse(*words: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(words))


def arguments(data: Path, *more: str) -> Namespace:
    return parse("--task", "eprstmt", "--data", str(data), *more)


async def test_a_task_gives_a_report_and_a_summary(data: Path) -> None:
    report = await evaluate(arguments(data), POSITIVE)
    assert (report["source"], report["model"]) == ("eprstmt/dev", "kind")
    assert (report["examples"], report["correct"], report["accuracy"]) == (20, 10, 0.5)
    assert report["confusion"]["这是一条差评"] == {"这是一条差评": 0, "这是一条好评": 10}
    assert "accuracy 50.0% of 20" in summary(report)
    assert "warning: one class takes all: '这是一条好评'" in summary(report)
    assert json.loads(json.dumps(report)) == report


async def test_a_file_gives_a_report_with_its_data(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = await evaluate(parse(str(reviews)), server(by_number))
    assert (report["source"], report["kind"], report["accuracy"]) == (str(reviews), "classify", 0.95)
    assert report["data"]["class_counts"] == {"差评": 20, "好评": 20}
    assert report["calibration"]["ece"] == pytest.approx(0.05, abs=0.001)
    assert report["examples_per_s"] > 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "guessed text: column '评论', label: column '标签'" in said.err


async def test_labels_that_are_numbers_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\n好,1\n坏,0\n", encoding="utf-8")
    await evaluate(parse(str(file)), server(lambda text: "1"))
    assert "name them with --label-names 0=差评,1=好评" in capsys.readouterr().err
    await evaluate(parse(str(file), "--label-names", "0=差评,1=好评"), server(lambda text: "好评"))
    assert "warning" not in capsys.readouterr().err


async def test_the_key_of_the_key_file_is_sent(data: Path, tmp_path: Path) -> None:
    keys: list[str] = []
    file = tmp_path / "key"
    file.write_text("erl_one\n")
    arguments_ = arguments(data, "--limit", "1", "--key-file", str(file))
    await evaluate(arguments_, server(lambda text: "这是一条好评", keys=keys))
    assert set(keys) == {"Bearer erl_one"}
    with pytest.raises(SystemExit):
        arguments(data, "--key-file", str(tmp_path / "nowhere"))


HEAD = {"name": "head", "source": "runs/head", "kind": "sequence-classification", "labels": ["负面", "正面"]}


def with_own_labels(text: str) -> str:
    return "正面" if int(text[2:]) % 2 else "负面"


async def test_head_maps_the_labels_of_a_fine_tuned_model(data: Path) -> None:
    transport = server(with_own_labels, HEAD)
    assert (await evaluate(arguments(data, "--head", "负面,正面"), transport))["accuracy"] == 1
    with pytest.raises(EvaluationError, match="the model calls its classes 正面, 负面"):
        await evaluate(arguments(data, "--head"), transport)
    with pytest.raises(EvaluationError, match="--head names 1 labels"):
        await evaluate(arguments(data, "--head", "负面"), transport)


async def test_the_only_model_that_has_labels_answers_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\n评论0,负面\n评论1,正面\n评论3,正面\n评论5,中性\n", encoding="utf-8")
    report = await evaluate(parse(str(file)), server(with_own_labels, HEAD))
    assert (report["examples"], report["accuracy"]) == (3, 1.0)
    assert list(report["classes"]) == ["负面", "正面"]
    said = capsys.readouterr().err
    assert "head answers with its own labels: 负面, 正面" in said
    assert "not used: 1 examples of classes that the model lacks" in said


async def test_a_model_with_other_labels_than_the_file_is_refused(reviews: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"负面, 正面, the data set 差评, 好评; name them alike with --label-names"
    ):
        await evaluate(parse(str(reviews)), server(by_number, HEAD))


def label_sets(label_of: Callable[[str], str], asked: list[dict[str, Any]]) -> httpx.MockTransport:
    """A server with the label set 点评, whose least score no text reaches."""
    answer = server(label_of).handler

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/label-sets/点评":
            labels = [{"name": "好评", "description": "满意"}, "差评"]
            return httpx.Response(200, json={"name": "点评", "labels": labels, "none_label": "其他", "min_score": 0.99})
        if request.url.path.startswith("/v1/label-sets/"):
            return httpx.Response(404, json={"detail": "no such label set"})
        asked.append(json.loads(request.content))
        reply: httpx.Response = answer(request)
        if asked[-1].get("min_score") == 0:
            return reply
        none = [result | {"label": "其他"} for result in reply.json()["results"]]
        return httpx.Response(200, json=reply.json() | {"results": none})

    return httpx.MockTransport(handle)


async def test_a_label_set_is_measured_by_its_best_label_whatever_its_least_score(reviews: Path) -> None:
    asked: list[dict[str, Any]] = []
    report = await evaluate(parse(str(reviews), "--label-set", "点评"), label_sets(by_number, asked))
    assert (report["examples"], report["accuracy"]) == (40, 0.95)
    assert list(report["classes"]) == ["好评", "差评"]
    assert {(body["label_set"], "labels" in body) for body in asked} == {("点评", False)}


async def test_texts_of_classes_that_a_label_set_lacks_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\n文4,差评\n文5,好评\n你好,其他\n", encoding="utf-8")
    report = await evaluate(parse(str(file), "--label-set", "点评"), label_sets(by_number, []))
    assert report["examples"] == 2
    assert "not used: 1 examples of classes that the label set 点评 lacks" in capsys.readouterr().err


async def test_a_label_set_that_does_not_fit_is_refused_by_name(reviews: Path, tmp_path: Path) -> None:
    transport = label_sets(by_number, [])
    with pytest.raises(EvaluationError, match=r"^label set other: no such label set$"):
        await evaluate(parse(str(reviews), "--label-set", "other"), transport)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,label\n甲,乙,1\n甲,丙,0\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="--label-set: the examples are of similarity, which takes no labels"):
        await evaluate(parse(str(pairs), "--label-set", "点评"), transport)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--head"], "--head brings labels of its own"),
        (["--calibrate", "c.json"], "write the temperature of the summary into the set"),
    ],
)
def test_flags_that_a_label_set_makes_useless_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["a.csv", "--label-set", "点评", *flags])
    assert message in capsys.readouterr().err


def test_of_several_models_the_wanted_one_answers_with_its_labels() -> None:
    assert own_head([ZERO_SHOT, HEAD], None) is None
    assert own_head([ZERO_SHOT, HEAD], "runs/head") == HEAD
    assert own_head([ZERO_SHOT, HEAD], "mini") is None
    assert own_head([HEAD], None) == HEAD
    assert own_head([], None) is None


def test_several_labels_are_fitted_to_those_of_the_model() -> None:
    examples = [
        Example("classify", ("甲",), ("a", "b"), 0, answers=(0, 1)),
        Example("classify", ("乙",), ("a", "b"), -1, answers=()),
    ]
    fitted = fit_to_labels(examples, ("b", "c", "a"))
    assert [example.answers for example in fitted] == [(0, 2), ()]


async def test_limit_evaluates_that_number_of_examples(data: Path) -> None:
    assert (await evaluate(arguments(data, "--limit", "7"), POSITIVE))["examples"] == 7


async def test_predictions_have_a_line_for_each_example_and_no_text(reviews: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    await evaluate(parse(str(reviews), "--predictions", str(file)), server(by_number))
    first, *rest = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rest) == 39
    assert first == {
        "line": 2,
        "label": "好评",
        "score": 0.9,
        "expected": "差评",
        "is_correct": False,
        "scores": [{"label": "好评", "score": 0.9}, {"label": "差评", "score": 0.1}],
    }


async def test_bad_cases_are_the_wrong_answers_with_their_texts(reviews: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    report = await evaluate(parse(str(reviews), "--bad-cases", str(file)), server(by_number))
    rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
    assert report["bad_cases"] == 2
    assert [(row["line"], row["text"], row["expected"], row["answer"]) for row in rows] == [
        ("2", "文0", "差评", "好评"),
        ("4", "文2", "差评", "好评"),
    ]


async def test_the_confusion_is_drawn(reviews: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "c.png"
    await evaluate(parse(str(reviews), "--confusion", str(file)), server(by_number))
    assert file.read_bytes().startswith(b"\x89PNG")


async def test_calibrate_writes_the_temperature(reviews: Path, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    report = await evaluate(parse(str(reviews), "--calibrate", str(file)), server(by_number))
    [entry] = json.loads(file.read_text(encoding="utf-8"))["entries"]
    assert entry["temperature"] == report["calibrated"]["temperature"]
    assert entry["models"] == ["kind"]


async def test_a_file_that_cannot_be_written_does_not_lose_the_result(reviews: Path, tmp_path: Path) -> None:
    arguments_ = parse(str(reviews), "--limit", "8", "--calibrate", str(tmp_path / "c.json"))
    report = await evaluate(arguments_, server(by_number))
    assert report["examples"] == 8
    [reason] = report["not_written"]
    assert "a temperature needs at least" in reason
    assert f"not written: {reason}" in summary(report)


async def test_a_temperature_that_does_not_help_is_a_warning(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"ece_before": 0.1, "ece_after": 0.2}
    monkeypatch.setattr("service.commands.evaluate.calibrate", lambda *args, **more: entry)
    report = await evaluate(parse(str(reviews), "--calibrate", str(tmp_path / "c.json")), server(by_number))
    assert report["warnings"] == ["the temperature does not lower the calibration error of examples not fitted to"]


async def test_a_zero_shot_model_with_labels_of_its_own_gets_those_of_the_data(reviews: Path) -> None:
    both = HEAD | {"kind": "masked-lm", "zero_shot": True}
    assert (await evaluate(parse(str(reviews)), server(by_number, both)))["accuracy"] == 0.95


def test_missing_data_files_print_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--task", "bustm", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no such data file: ")


def test_the_result_is_one_json_document_on_standard_output(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.connection.open_client", lambda url, key, transport: _client(transport))
    assert run([str(reviews), "--json", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert "accuracy 95.0% of 40" in said.err


def test_a_terminal_shows_the_summary_and_no_json_unless_it_is_wanted(
    reviews: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.connection.open_client", lambda url, key, transport: _client(transport))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run([str(reviews)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("the whole result as JSON: --json FILE\n")
    assert run([str(reviews), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0.95


def _client(transport: object) -> httpx.AsyncClient:
    assert transport is None
    return httpx.AsyncClient(base_url="http://server", transport=server(by_number))


@pytest.mark.parametrize("flags", [["--limit", "0"], ["--limit", "many"], ["--url", "localhost:8000"], ["--fold", "9"]])
def test_invalid_flags_are_refused(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        arguments(tmp_path, *flags)
    assert end.value.code == 2


@pytest.mark.parametrize("words", [[], ["a.csv", "--task", "tnews"]])
def test_one_source_is_wanted(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(words)
    assert end.value.code == 2


def test_a_slow_machine_is_measured_instead_of_being_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERLANGSHEN_BATCHING__MAX_WAIT_MS", "1000")
    settings = settings_in_process(["mini"])
    assert settings.server.default_timeout_ms == settings.batching.max_wait_ms == 3_600_000


async def test_a_regression_grades_pairs_as_a_classifier_of_one_output(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("sentence1,sentence2,score\n甲,乙,1.5\n甲,丙,2.5\n甲,丁,4.5\n", encoding="utf-8")
    model = {"name": "sts", "source": "sts", "kind": REGRESSION["kind"], "labels": ["grade"], "head": REGRESSION}

    def grade(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"models": [model], "replicas": []})
        assert request.url.path == "/v1/classify"
        texts = [one["text_pair"] for one in json.loads(request.content)["inputs"]]
        results = [{"label": "grade", "score": "乙丙丁".index(text), "truncated": False} for text in texts]
        return httpx.Response(200, json={"model": "sts", "results": results})

    report = await evaluate(parse(str(file), "--score", "score"), httpx.MockTransport(grade))
    assert report["spearman"] == pytest.approx(1.0)
