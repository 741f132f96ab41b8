"""The HTTP benchmarks: a tiny model over HTTP, in turns with its engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.http import fronts, rates
from benchmarks.http.load import LABELS, NUM_TEXTS, make_texts
from service.checkpoints.checkpoint import describe
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.labels import LabelList
from service.tasks.text_model import TextModel
from tests.checkpoints import make_checkpoint


@pytest.mark.parametrize("row_tokens", [32, 128])
def test_every_text_is_a_distinct_row_of_equal_length(tmp_path: Path, row_tokens: int) -> None:
    model = TextModel.load(describe(make_checkpoint(tmp_path), "m"))
    texts = make_texts(model, row_tokens)
    assert len(set(texts)) == len(texts) == NUM_TEXTS
    rows = CLASSIFY.encode(model, ClassifyQuery(tuple(map(Text, texts[:100])), LabelList.of(LABELS)))
    assert {row.num_tokens for row in rows} == {row_tokens}


async def test_the_owner_of_the_queue_answers_every_row_of_the_fronts(tmp_path: Path) -> None:
    model = TextModel.load(describe(make_checkpoint(tmp_path), "m"))
    query = ClassifyQuery(tuple(map(Text, make_texts(model)[:40])), LabelList.of(LABELS))
    assert 0 < await fronts.owner_cpu_s(CLASSIFY.encode(model, query), clients=8) < 1


def test_turns_of_fronts_show_their_spread() -> None:
    found = fronts.summarize([{"feeds_fronts": value} for value in (9.0, 12.0, 7.0)])
    assert found == {"medians": {"feeds_fronts": 9.0}, "least_and_largest": {"feeds_fronts": [7.0, 12.0]}}


@pytest.mark.slow
@pytest.mark.system
def test_rows_over_http_and_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda num: None)  # it would hold for the tests that follow
    file = tmp_path / "rates.json"
    short = ("--rounds", "1", "--seconds", "0.5", "--inputs", "4", "--clients", "2", "--row-tokens", "32")
    assert rates.main(["--device", "cpu", "--shape", "tiny", *short, "--json", str(file)]) == 0
    [load] = json.loads(file.read_text())["loads"]
    assert load["http_rows_per_s"] > 0
    assert load["engine_rows_per_s"] > 0
    assert load["http_over_engine"] == pytest.approx(load["http_rows_per_s"] / load["engine_rows_per_s"], abs=0.01)
