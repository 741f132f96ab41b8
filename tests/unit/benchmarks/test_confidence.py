"""Confidence of the default models: what the second half says of what the first half chose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import RESULTS, ROOT
from benchmarks.confidence import Scored, judge, main, table
from service.tools.confidence import scale
from service.tools.data.converters import Example

LABELS = ("甲", "乙")


def scored(scores: np.ndarray, answers: np.ndarray, *, is_calibrated: bool = False) -> Scored:
    examples = [Example("classify", ("文",), LABELS, int(answer)) for answer in answers]
    return Scored(examples, scores, ("mini",), "choice", is_calibrated)


def halves(num: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 0.99 of which nine in ten are right, and of 0.6 of which half are."""
    surest = np.tile([0.99, 0.01], (num // 2, 1))
    others = np.tile([0.6, 0.4], (num // 2, 1))
    return np.concatenate([surest, others]), np.concatenate([np.arange(num // 2) % 10 == 0, np.arange(num // 2) % 2])


def test_a_set_is_judged_by_what_the_first_half_chose() -> None:
    scores, answers = halves()
    first, second = scored(scores, answers), scored(scores, answers)
    temperature = judge("drawn", first, second, scored(scores, answers, is_calibrated=True))["temperature"]
    found = judge("drawn", first, second, scored(scale(scores, answers, temperature), answers, is_calibrated=True))
    assert found["accuracy"] == 0.7
    assert found["ece"]["after"] < found["ece"]["before"] == pytest.approx(0.095)
    assert found["accuracy_at_coverage"] == {"1": 0.7, "0.8": 0.7, "0.6": 0.7, "0.4": 0.9, "0.2": 0.9}
    [wanted] = [one for one in found["min_score"] if one["wanted"] == 0.9]
    assert wanted["judged"] == {"coverage": 0.5, "accuracy": 0.9}
    assert found["margin"][-1]["ambiguous"] == 0.5
    assert found["margin"][-1]["accuracy_of_ambiguous"] == 0.5
    assert found["margin"][-1]["right_label_is_chosen"] == 1.0
    assert found["margin"][-1]["accuracy_of_others"] == 0.9


def test_a_server_that_does_not_calibrate_is_an_error() -> None:
    half = scored(*halves())
    with pytest.raises(RuntimeError, match="did not apply"):
        judge("drawn", half, half, half)


def test_the_documented_table_is_that_of_the_result() -> None:
    sets = json.loads((RESULTS / "confidence.json").read_text(encoding="utf-8"))["sets"]
    assert table(sets) in (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.system
def test_a_short_run(tmp_path: Path) -> None:
    """Reviews in the layout of FewCLUE: two good ones, two bad ones, and so on."""
    folder = tmp_path / "fewclue" / "eprstmt"
    folder.mkdir(parents=True)
    reviews = [("Positive", "很好，下次还来"), ("Negative", "太差了，再也不来")]
    drawn = [(index, *reviews[index // 2 % 2]) for index in range(48)]
    lines = [
        json.dumps({"id": index, "label": label, "sentence": f"{text}{index}"}, ensure_ascii=False)
        for index, label, text in drawn
    ]
    (folder / "dev_few_all.json").write_text("\n".join(lines), encoding="utf-8")
    file = tmp_path / "confidence.json"
    assert main(["--data", str(tmp_path), "--sets", "eprstmt", "--json", str(file)]) == 0
    [found] = json.loads(file.read_text())["sets"]
    assert found["examples"] == {"fitted": 24, "judged": 24}
    assert found["temperature"] > 0
