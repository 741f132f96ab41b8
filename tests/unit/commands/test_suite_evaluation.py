"""`evaluate --suite`: every task of a suite against a fake server, the sets that are measured, and what is written."""

from __future__ import annotations

import json
import zipfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.commands.evaluate import add_arguments, run
from service.commands.suite_evaluation import Subject, choose_wording, evaluate_suite, measured_sets
from service.errors import SettingError
from service.tools.data.registry import load
from service.tools.data.report import key_of
from service.tools.evaluation import EvaluationError
from service.tools.suites import suites
from service.tools.training.wordings import Wording, wording_of
from tests.support.benchmark_files import write_benchmarks

ZERO_SHOT = {"name": "mini", "source": "mini", "kind": "masked-lm", "labels": []}
HEAD = {"name": "csl", "source": "csl", "kind": "sequence-classification", "labels": ["不能概括", "可以概括"]}
REGRESSION = {"kind": "sequence-classification", "num_classes": 1, "problem_type": "regression"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def server(seen: list[tuple[str, dict[str, Any]]], *served: dict[str, Any], choose: int = 0) -> httpx.MockTransport:
    """A model that answers with the option number `choose` from the end, certain by 0.9."""

    def scores(labels: list[str]) -> list[tuple[str, float]]:
        first = labels[-1 - choose]
        return [(label, 0.9 if label == first else 0.1 / (len(labels) - 1)) for label in labels]

    def result(path: str, body: dict[str, Any], one: Any) -> dict[str, Any]:
        if path.endswith("similarity"):
            return {"score": 0.9, "truncated": False}
        if path.endswith("mrc"):
            ranked = scores(one["choices"])
            answer = max(ranked, key=lambda each: each[1])[0]
            return {"answer": answer, "score": 0.9, "scores": [score for _, score in ranked], "truncated": False}
        labels = body.get("labels") or (served[0]["labels"] if served else [])
        labels = labels or ["contradiction", "neutral", "entailment"]
        ranked = sorted(scores(labels), key=lambda each: -each[1])
        found = [{"label": label, "score": score} for label, score in ranked]
        return {"label": ranked[0][0], "score": 0.9, "scores": found, "truncated": False}

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"models": list(served) or [ZERO_SHOT], "replicas": []})
        body = json.loads(request.content)
        seen.append((request.url.path, body))
        results = [result(request.url.path, body, one) for one in body["inputs"]]
        more = {"method": "choice", "models": ["mini"], "usage": {"tokens": 10 * len(results)}}
        return httpx.Response(200, json={"model": "mini", "results": results, **more})

    return httpx.MockTransport(handle)


def parse(data: Path, *words: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--data", str(data), *words])


@pytest.mark.parametrize("suite", suites())
async def test_every_task_of_a_suite_is_measured(data: Path, suite: str) -> None:
    report = await evaluate_suite(parse(data, "--suite", suite, "--split", "dev"), server([]))
    assert not report["not_measured"]
    assert [row["task"] for row in report["table"]] == [*suites()[suite].tasks, "mean"]
    assert {row["form"] for row in report["table"][:-1]} == {"zero-shot"}


async def test_one_task_is_measured_alone(data: Path) -> None:
    report = await evaluate_suite(parse(data, "--suite", "fewclue", "bustm", "--against", "card"), server([]))
    [row] = report["table"]
    assert (row["task"], row["mean"], report["split"]) == ("fewclue/bustm", 50.0, "test")


async def test_a_task_without_files_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    write_benchmarks(tmp_path)
    (tmp_path / "fewclue/csl/test_public.json").unlink()
    report = await evaluate_suite(parse(tmp_path, "--suite", "fewclue"), server([]))
    assert list(report["not_measured"]) == ["fewclue/csl"]
    assert len(report["table"]) == 9


async def test_no_file_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such data file"):
        await evaluate_suite(parse(tmp_path, "--suite", "fewclue"), server([]))


async def test_the_authors_wording_is_asked_in_their_order_and_scored_in_the_data_sets(data: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    args = parse(data, "--suite", "clue", "wsc", "--wording", "upstream", "--submit", str(data / "out"))
    await evaluate_suite(args, server(seen))
    assert seen[0][1]["labels"] == ["他是学生", "他不是学生"]
    assert "_他_" in seen[0][1]["inputs"][0]
    lines = (data / "out/cluewsc11_predict.json").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["false"] * 4


async def test_a_classifier_of_csl_is_asked_with_keywords_and_abstract(data: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    args = parse(data, "--suite", "clue", "csl", "--submit", str(data / "heads"))
    await evaluate_suite(args, server(seen, HEAD))
    assert "labels" not in seen[0][1]
    assert seen[0][1]["inputs"][0]["text"] == "天气 学校"
    lines = (data / "heads/csl_predict.json").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["1"] * 4


async def test_clauses_are_sent_as_labels_with_the_text_around_them(data: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    await evaluate_suite(parse(data, "--suite", "fewclue", "chid", "--wording", "upstream"), server(seen))
    path, body = seen[0]
    assert (path, body["labels"][0]) == ("/v1/classify", "他一心一意，")
    assert "question" not in body


@pytest.mark.parametrize(("flags", "answers"), [((), [3, 3]), (("--assign-idioms",), [3, 0])])
async def test_idioms_are_assigned_only_where_it_is_asked_for(
    data: Path, tmp_path: Path, flags: tuple[str, ...], answers: list[int]
) -> None:
    args = parse(data, "--suite", "clue", "chid", "--submit", str(tmp_path), *flags)
    report = await evaluate_suite(args, server([]))
    found = list(json.loads((tmp_path / "chid11_predict.json").read_text()).values())
    assert found[:2] == answers
    assert report["decoding"]["assign_idioms"] == bool(flags)


async def test_all_files_of_a_leaderboard_are_written_and_zipped(data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(data)
    args = parse(data, "--suite", "fewclue", "--submit", str(tmp_path / "out"))
    report = await evaluate_suite(args, server([]))
    names = set(zipfile.ZipFile(tmp_path / "out/fewclue_predict.zip").namelist())
    assert list(report["not_measured"]) == ["fewclue/iflytek"]  # three invented classes have no numbers
    assert names == {f"{task.file.replace('{fold}', '')}.json" for task in suites()["fewclue"].tasks.values()} - {
        "iflytekf_predict.json"
    }


def test_held_out_examples_are_neither_in_train_nor_in_dev_of_the_fold(data: Path) -> None:
    args = parse(data, "--suite", "fewclue", "--fold", "each", "--held-out")
    task = "fewclue/eprstmt"
    sets = measured_sets(task, Subject((task,), "mini"), suites()["fewclue"], args)
    assert [fold for fold, _ in sets] == list("01234")
    for fold, examples in sets:
        own = {key_of(one) for split in ("train", "dev") for one in load(task, data, split, fold)}
        assert examples
        assert not own & {key_of(one) for one in examples}


async def test_each_fold_of_a_zero_shot_model_is_a_run_of_the_same_answers(data: Path) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    args = parse(data, "--suite", "fewclue", "eprstmt", "--fold", "each", "--held-out")
    report = await evaluate_suite(args, server(seen))
    [row] = report["table"]
    assert row["runs"] == 5
    texts = [text for _, body in seen for text in body["inputs"]]
    assert len(texts) == len(set(texts))


async def test_the_best_way_to_ask_for_many_labels_is_recorded_and_used(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.suite_evaluation.MANY_LABELS", 3)
    file = tmp_path / "policy.json"
    args = parse(data, "--suite", "fewclue", "csldcp", "--choose-policy", str(file))
    await evaluate_suite(args, server([]))
    recorded = json.loads(file.read_text())["fewclue/csldcp"]
    assert [one["method"] for one in recorded["measured"]] == ["choice", "choice", "embedding", "auto"]
    assert recorded["policy"] == {"wording": "mini", "method": "choice"}

    recorded["policy"] = {"wording": "upstream", "method": "embedding"}
    file.write_text(json.dumps({"fewclue/csldcp": recorded}))
    seen: list[tuple[str, dict[str, Any]]] = []
    await evaluate_suite(parse(data, "--suite", "fewclue", "csldcp", "--policy", str(file)), server(seen))
    assert (seen[0][1]["method"], seen[0][1]["question"]) == ("embedding", "这一句描述哪一个学科的内容？")


async def test_a_folder_without_runs_of_the_task_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text(json.dumps({"suite": "fewclue", "model": "mini", "runs": []}))
    args = parse(data, "--suite", "fewclue", "csl", "--model", str(tmp_path))
    with pytest.raises(SettingError, match=r"suite\.json: has no run of fewclue/csl$"):
        await evaluate_suite(args)


@pytest.mark.parametrize("flag", ["--held-out", "--assign-idioms", "--rank-keywords", "--against=card"])
def test_flags_of_suites_need_a_suite(data: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["fewclue/csl", "--data", str(data), flag])
    assert "wanted --suite" in capsys.readouterr().err


def test_a_file_without_answers_cannot_be_measured(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fewclue/csl", "--data", str(data), "--split", "board", "--url", "http://127.0.0.1:1"]) == 2
    assert "fewclue/csl/board: has no answers; evaluate --suite NAME --submit DIR" in capsys.readouterr().err


def trained_on(folder: Path, source: str, start: str, wording: dict[str, Any]) -> Subject:
    identity = {"data": {"source": source}, "model": {"source": start}, "wording": wording}
    (folder / "run.json").write_text(json.dumps({"identity": identity}))
    return Subject(("clue/tnews",), str(folder), folder=folder)


@pytest.mark.parametrize(
    ("source", "start", "expected"),
    [
        ("clue/tnews/train", "mini", Wording(question="哪一类？")),
        ("clue/csl/train", "mini", wording_of("clue/tnews", "mini")),
        ("clue/csl/train", "unimc", wording_of("clue/tnews", "upstream")),
    ],
)
def test_a_trained_model_is_asked_as_it_was_trained_on_this_task(
    data: Path, tmp_path: Path, source: str, start: str, expected: Wording
) -> None:
    subject = trained_on(tmp_path, source, start, {"question": "哪一类？"})
    args = parse(data, "--suite", "clue")
    assert choose_wording(subject, "clue/tnews", {}, args) == expected


@pytest.mark.parametrize("labels", [[], ["grade"]], ids=["nameless", "named by finetune"])
async def test_a_regression_of_pairs_is_asked_for_its_number(data: Path, labels: list[str]) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    model = {"name": "sts", "source": "sts", "kind": REGRESSION["kind"], "labels": labels, "head": REGRESSION}
    await evaluate_suite(parse(data, "--suite", "semantic-matching", "sts-b-graded"), server(seen, model))
    path, body = seen[0]
    assert (path, set(body["inputs"][0])) == ("/v1/classify", {"text", "text_pair"})
