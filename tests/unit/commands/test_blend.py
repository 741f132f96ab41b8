"""`python -m service blend`: from labelled texts to a file of constants, with a fake server that knows the answers."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.commands.blend import add_arguments, fit, run
from service.errors import DatasetError
from service.tasks.blend import Blend
from service.tools.evaluation import EvaluationError

LABELS = ("体育", "财经")
DIMENSIONS = 2


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": f"{LABELS[index % 3 % 2]}新闻{index}", "label": LABELS[index % 3 % 2]} for index in range(40)]
    return write(tmp_path / "news.jsonl", rows)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"text": f"甲{index}", "text_pair": f"{'甲' if index % 3 else '乙'}{index}"} for index in range(40)]
    return write(tmp_path / "pairs.jsonl", [row | {"label": int(row["text"] == row["text_pair"])} for row in rows])


def answer(request: httpx.Request) -> httpx.Response:
    """The embedding model knows everything, the choice model is sure of the first label."""
    body = json.loads(request.content)
    inputs: list[Any] = body["inputs"]
    results: list[dict[str, Any]]
    if request.url.path == "/v1/embed":
        assert body["model"] == "e5-small"
        results = [{"embedding": [0.0, 1.0] if "财经" in text or "乙" in text else [1.0, 0.0]} for text in inputs]
    elif request.url.path == "/v1/similarity":
        assert body["method"] == "choice"
        results = [{"score": 0.4} for _ in inputs]
    else:
        first, second = body["labels"]
        scores = [{"label": second, "score": 0.2}, {"label": first, "score": 0.8}]
        results = [{"label": first, "scores": scores} for _ in inputs]
    model = "e5-small" if body.get("method") == "embedding" else "mini"
    return httpx.Response(200, json={"model": model, "results": results})


def arguments(*words: str | Path) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(map(str, words)))


@pytest.fixture
def constants(tmp_path: Path) -> Path:
    """Constants with which the choice model decides alone."""
    alone = {"bias": 0, "cosine": 0}
    logistic = {"bias": 0, "cosine": 0, "choice": 1, "alone": alone}
    content = {"version": 1, "model": "e5-small", "templates": ["{}", "这是{}"], "temperature": 2, "prior_weight": 0}
    content |= {"choice_weight": 2, "choice_power": 1, "multi_label": logistic, "similarity": logistic}
    return write(tmp_path / "start.json", [content | {"background": [0.0] * DIMENSIONS}])


async def test_the_constants_are_fitted_and_written(texts: Path, pairs: Path, constants: Path, tmp_path: Path) -> None:
    out = tmp_path / "blend.json"
    args = arguments(texts, pairs, "--out", out, "--start", constants)
    report = await fit(args, httpx.MockTransport(answer))
    assert (report["choice_model"], report["embedding_model"]) == ("mini", "e5-small")
    news, same = report["sets"]
    assert (news["task"], news["examples"], same["task"], same["examples"]) == ("classify", 20, "similarity", 20)
    assert news["choice"] == news["before"]
    assert news["before"]["accuracy"] < 0.8
    assert news["after"]["accuracy"] == news["embedding"]["accuracy"] == 1.0
    assert news["after"]["interval_95"][1] == 1.0
    assert (same["before"]["accuracy"], same["after"]["accuracy"]) == (0.35, 1.0)
    written = Blend.read(out)
    assert written.choice_power > 1
    assert written.fit_to(("e5-small",), DIMENSIONS) is written
    assert "background" not in report["constants"]
    assert json.loads(json.dumps(report)) == report


async def test_pairs_alone_change_nothing_else(pairs: Path, constants: Path, tmp_path: Path) -> None:
    out = tmp_path / "blend.json"
    await fit(arguments(pairs, "--out", out, "--start", constants), httpx.MockTransport(answer))
    before, after = Blend.read(constants), Blend.read(out)
    assert after.similarity != before.similarity
    assert (after.temperature, after.multi_label) == (before.temperature, before.multi_label)


async def test_another_embedding_model_is_named_in_the_file(texts: Path, constants: Path, tmp_path: Path) -> None:
    def other(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if body.get("model") == "bge":
            request = httpx.Request("POST", request.url, json=body | {"model": "e5-small"})
        reply = answer(request)
        return httpx.Response(200, content=reply.content.replace(b'"e5-small"', b'"bge"'))

    out = tmp_path / "blend.json"
    await fit(arguments(texts, "--out", out, "--start", constants), httpx.MockTransport(other))
    assert Blend.read(out).model == "bge"
    assert Blend.read(out).similarity is None


async def test_a_server_without_an_embedding_model_is_an_error(texts: Path, tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content).get("method") == "embedding":
            return httpx.Response(422, json={"detail": "method: no served model can do this", "errors": []})
        return answer(request)

    with pytest.raises(EvaluationError, match=r"/v1/classify answers 422: method: no served model"):
        await fit(arguments(texts, "--out", tmp_path / "out.json"), httpx.MockTransport(refuse))


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("few.jsonl", [{"text": "甲", "label": "乙"}, {"text": "甲", "label": "丙"}], "has 2 examples; at least 8"),
        ("one.jsonl", [{"text": "甲", "label": "乙"}] * 9, "every label is '乙'; at least two classes are needed"),
        ("no.jsonl", [{"text": "甲"}], "no column of the label was found"),
        ("pair.jsonl", [{"text": "甲", "text_pair": "乙", "label": "x"}] * 9, "every label is 'x'"),
        ("none.jsonl", [], "is empty"),
        ("lines.doc", [{"text": "甲", "label": "乙"}] * 9, "wanted a file named .csv"),
        ("many.jsonl", [{"text": "甲", "label": ["乙", "丙"]}] * 9, "this is multi-label"),
    ],
)
def test_data_that_cannot_be_fitted_to_is_refused(
    tmp_path: Path, name: str, records: list[dict[str, Any]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / name, records)
    assert run([str(file), "--out", str(tmp_path / "out.json")]) == 2
    assert message in capsys.readouterr().err


async def test_sets_that_are_not_blended_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "fewclue" / "cluewsc"
    folder.mkdir(parents=True)
    target = {"span1_index": 0, "span2_text": "他", "span2_index": 4}
    rows = [
        {"text": f"小{name}看见他", "label": "true", "target": target | {"span1_text": f"小{name}"}}
        for name in "甲乙丙丁戊己庚辛"
    ]
    write(folder / "dev_few_all.json", rows)
    with pytest.raises(DatasetError, match="cluewsc: each text has its own labels"):
        await fit(arguments("cluewsc", "--data", tmp_path, "--out", tmp_path / "out.json"))
    with pytest.raises(DatasetError, match="no such file; for a data set of `evaluate`, --data DIR is missing"):
        await fit(arguments("cluewsc", "--out", tmp_path / "out.json"))
