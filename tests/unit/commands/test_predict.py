"""`python -m service predict`: from a file of texts to a file of labels, with a fake server."""

from __future__ import annotations

import csv
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.commands.predict import add_arguments, predict
from service.errors import DatasetError
from service.tools.evaluation import CHUNK, IN_FLIGHT, EvaluationError

ZERO_SHOT = {"name": "mini", "source": "mini", "kind": "masked-lm", "labels": []}
HEAD = {"name": "head", "source": "runs/head", "kind": "sequence-classification", "labels": ["差", "好"], "head": {}}


class Server:
    """Answers 好 to texts with 好 in them, else 差; refuses texts with 长. `bodies` are the requests."""

    def __init__(self, served: dict[str, Any] = ZERO_SHOT, fail_after: int | None = None) -> None:
        self.served = served
        self.fail_after = fail_after
        self.bodies: list[tuple[str, dict[str, Any]]] = []

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"models": [self.served], "replicas": []})
        if self.fail_after is not None and len(self.bodies) >= self.fail_after:
            raise httpx.ConnectError("gone")
        path, body = request.url.path, json.loads(request.content)
        self.bodies.append((path, body))
        if any("长" in str(one) for one in body["inputs"]):
            detail = "inputs[0].text: too long"
            return httpx.Response(422, json={"detail": detail, "errors": [{"field": "inputs[0].text"}]})
        results = [self._result(path, one) for one in body["inputs"]]
        return httpx.Response(200, json={"model": self.served["name"], "method": "choice", "results": results})

    @staticmethod
    def _result(path: str, one: Any) -> dict[str, Any]:
        if path == "/v1/similarity":
            return {"score": 0.2, "truncated": False}
        if path == "/v1/mrc":
            return {"answer": one["choices"][1], "score": 0.8, "scores": [0.2, 0.8], "truncated": False}
        labels = ["好", "差"] if "好" in str(one) else ["差", "好"]
        scores = [{"label": label, "score": score} for label, score in zip(labels, (0.9, 0.6), strict=True)]
        return {"label": labels[0], "score": 0.9, "scores": scores, "truncated": False}


def parse(source: Path, out: Path, *words: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(source), "--out", str(out), *words])


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path / "in.csv", "编号,评论", "1,很好", "2,太慢", "3,", "4,太长了", "5,还好")


LABELS = ("--labels", "差,好")


async def test_the_columns_are_kept_and_labels_added_in_order(texts: Path, tmp_path: Path) -> None:
    report = await predict(parse(texts, tmp_path / "out.csv", *LABELS), Server().transport)
    rows = read_csv(tmp_path / "out.csv")
    assert [list(row.values()) for row in rows] == [
        ["1", "很好", "好", "0.9", ""],
        ["2", "太慢", "差", "0.9", ""],
        ["3", "", "", "", "评论 is empty"],
        ["4", "太长了", "", "", "inputs[0].text: too long"],
        ["5", "还好", "好", "0.9", ""],
    ]
    assert list(rows[0]) == ["编号", "评论", "label", "score", "error"]
    assert (report["rows"], report["predicted"], report["failed"]) == (5, 3, 2)
    assert report["labels"] == {"好": 2, "差": 1}
    assert report["errors"] == {"评论 is empty": 1, "inputs[0].text: too long": 1}
    assert report["first_errors"][0] == {"line": 4, "reason": "评论 is empty"}


async def test_json_lines_have_lists_and_an_error_only_where_there_is_one(texts: Path, tmp_path: Path) -> None:
    await predict(parse(texts, tmp_path / "out.jsonl", *LABELS, "--top-k", "2"), Server().transport)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [{"label": "好", "score": 0.9}, {"label": "差", "score": 0.6}]
    assert rows[0] == {"编号": "1", "评论": "很好", "label": "好", "score": 0.9, "scores": scores}
    assert rows[2] == {"编号": "3", "评论": "", "label": None, "error": "评论 is empty"}


async def test_a_workbook_has_the_same_rows_and_no_formulas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    source = write(tmp_path / "in.csv", "评论", "很好", '"=1+1"', "坏\x07")
    await predict(parse(source, tmp_path / "out.xlsx", *LABELS), Server().transport)
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    rows = list(sheet.iter_rows(values_only=True))
    assert rows[1] == ("很好", "好", 0.9, None)
    assert (sheet["A3"].value, sheet["A3"].data_type) == ("=1+1", "s")
    assert rows[3][0] == "坏"


async def test_columns_of_the_input_are_not_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "text,label", "很好,差")
    await predict(parse(source, tmp_path / "out.csv", *LABELS, "--top-k", "2"), Server().transport)
    [row] = read_csv(tmp_path / "out.csv")
    assert (row["label"], row["predicted_label"], row["predicted_label_2"]) == ("差", "好", "差")
    assert list(row)[-1] == "predicted_error"


async def test_a_fine_tuned_model_answers_with_its_own_labels(texts: Path, tmp_path: Path) -> None:
    server = Server(HEAD)
    await predict(parse(texts, tmp_path / "out.csv"), server.transport)
    assert all("labels" not in body for _, body in server.bodies)


async def test_a_label_set_is_named_in_the_requests(texts: Path, tmp_path: Path) -> None:
    server = Server()
    await predict(
        parse(texts, tmp_path / "out.csv", "--label-set", "reviews", "--question", "怎样？"), server.transport
    )
    assert server.bodies[0][1]["label_set"] == "reviews"
    assert server.bodies[0][1]["question"] == "怎样？"


async def test_several_labels_are_joined_in_a_cell_and_a_list_in_json(texts: Path, tmp_path: Path) -> None:
    for name, expected in (("out.csv", "好|差"), ("out.jsonl", ["好", "差"])):
        server = Server()
        report = await predict(parse(texts, tmp_path / name, *LABELS, "--multi-label"), server.transport)
        assert server.bodies[0][1]["multi_label"] is True
        first = read_csv(tmp_path / name)[0] if name == "out.csv" else json.loads((tmp_path / name).open().readline())
        assert first["label"] == expected
        assert report["labels"] == {"好": 3, "差": 3}


async def test_pairs_without_labels_are_compared(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "sentence1,sentence2", "怎么还款,如何还钱")
    report = await predict(parse(source, tmp_path / "out.csv"), Server().transport)
    [row] = read_csv(tmp_path / "out.csv")
    assert (report["task"], row["label"], row["score"]) == ("similarity", "不相似", "0.2")


async def test_questions_with_choices_are_answered(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "passage,question,A,B", "他去了北京,去哪？,上海,北京")
    report = await predict(parse(source, tmp_path / "out.csv"), Server().transport)
    [row] = read_csv(tmp_path / "out.csv")
    assert (report["task"], row["label"], row["score"]) == ("mrc", "北京", "0.8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"the model has no labels of its own; name them with --labels A,B or --label-set NAME"),
        (("--task", "similarity"), "name the column of the second with --text-pair"),
        (("--task", "mrc"), "name their column with --choices"),
    ],
)
async def test_what_is_missing_is_named(texts: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        await predict(parse(texts, tmp_path / "out.csv", *words), Server().transport)
    assert not (tmp_path / "out.csv").exists()


NUM = CHUNK * IN_FLIGHT * 2


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write(tmp_path / "many.csv", "text", *(f"{'好' if index % 3 else '差'}{index}\x20" for index in range(NUM)))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("torn", [b"", b'"half a li'])
async def test_an_interrupted_run_goes_on_where_it_was(many: Path, tmp_path: Path, suffix: str, torn: bytes) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    expected = await predict(parse(many, whole, *LABELS), Server().transport)
    with pytest.raises(EvaluationError, match="no server answers"):
        await predict(parse(many, out, *LABELS), Server(fail_after=5).transport)
    with out.open("ab") as file:
        file.write(torn)
    second = Server()
    report = await predict(parse(many, out, *LABELS), second.transport)
    assert out.read_bytes() == whole.read_bytes()
    assert sum(len(body["inputs"]) for _, body in second.bodies) < NUM
    assert (report["rows"], report["labels"]) == (NUM, expected["labels"])
    assert not (tmp_path / f"out{suffix}.progress").exists()


async def interrupted(many: Path, out: Path) -> None:
    with pytest.raises(EvaluationError):
        await predict(parse(many, out, *LABELS), Server(fail_after=5).transport)


async def test_another_run_does_not_go_on_with_the_file(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    await interrupted(many, out)
    with pytest.raises(
        DatasetError, match="was begun with another input, model or flags; start again with --overwrite"
    ):
        await predict(parse(many, out, "--labels", "坏,好"), Server().transport)
    report = await predict(parse(many, out, "--labels", "坏,好", "--overwrite"), Server().transport)
    assert report["rows"] == NUM


async def test_a_file_that_is_there_is_not_replaced(texts: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "out.csv", "mine")
    with pytest.raises(DatasetError, match=r"out\.csv: exists; write it again with --overwrite"):
        await predict(parse(texts, out, *LABELS), Server().transport)
    assert out.read_text() == "mine"
    await predict(parse(texts, out, *LABELS, "--overwrite"), Server().transport)
    assert len(read_csv(out)) == 5


async def test_a_damaged_progress_file_is_named(texts: Path, tmp_path: Path) -> None:
    write(tmp_path / "out.csv.progress", "{")
    with pytest.raises(DatasetError, match=r"out\.csv\.progress: cannot be read; start again with --overwrite"):
        await predict(parse(texts, tmp_path / "out.csv", *LABELS), Server().transport)


async def test_limit_labels_the_first_rows(many: Path, tmp_path: Path) -> None:
    report = await predict(parse(many, tmp_path / "out.csv", *LABELS, "--limit", "20"), Server().transport)
    assert (report["rows"], len(read_csv(tmp_path / "out.csv"))) == (20, 20)


async def test_lines_that_are_no_json_keep_their_place(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", '{"text": "很好"}', "{", '{"text": "太慢"}')
    report = await predict(parse(source, tmp_path / "out.jsonl", *LABELS), Server().transport)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows] == ["好", None, "差"]
    assert report["first_errors"] == [{"line": 2, "reason": "is not JSON"}]


@pytest.mark.parametrize("out", ["out.txt", "out", "nowhere/out.csv"])
def test_an_output_of_another_format_is_refused(texts: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(SystemExit):
        parse(texts, tmp_path / out)
