"""The comparison with the hardware's limit: the query to the roofline, and the ratios."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.tools.bench import report
from tests.unit.tools.bench.serving import MODELS

SIZES = {"num_layers": 2, "hidden_size": 8, "ffn_size": 16}
BATCHES = {"batches": 10.0, "seconds": 2.0, "mean_rows": 2.0, "mean_tokens": 50.0, "mean_compute_s": 0.1}


def made_report(*batches: dict[str, float] | None) -> dict[str, Any]:
    points = [{"load": f"concurrency {index}", "batches": one} for index, one in enumerate(batches)]
    return {"models": MODELS, "answered_by": ["fake"], "points": points}


def test_every_point_is_compared_at_its_batch_size_and_at_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = []

    def answer(question: Any) -> list[dict[str, Any]]:
        questions.append(question)
        return [{"seconds": tokens / 1000, "way": "linear"} for tokens in question["token_counts"]]

    monkeypatch.setattr(report, "measure_limits", answer)
    run = made_report(BATCHES, None)
    report.add_limits(run, None)
    (question,) = questions
    assert question == {
        "sizes": SIZES,
        "precision": "float32",
        "device": "cpu",
        "threads": 1,
        "token_counts": [50, 1024],
    }
    found = run["points"][0]["limit"]
    assert (found["served_tokens_per_s"], found["gemm_tokens_per_s"]) == (250.0, 1000.0)
    assert found["served_over_limit"] == found["served_over_limit_at_large_batch"] == 0.25
    assert found["computing_over_limit"] == 0.5
    assert run["points"][1]["limit"] is None
    assert run["limit"]["quickest_way_by_tokens"] == {"50": "linear", "1024": "linear"}
    assert json.loads(json.dumps(run)) == run


def test_the_roofline_runs_in_a_separate_process() -> None:
    question = {"sizes": SIZES, "precision": "float32", "device": "cpu", "threads": 1}
    found = report.measure_limits({**question, "token_counts": [3, 5]})
    assert len(found) == 2
    assert all(one["seconds"] > 0 for one in found)


def test_the_error_of_a_failed_measurement_has_its_reason() -> None:
    question = {"sizes": SIZES, "precision": "float64", "device": "cpu", "threads": 1}
    with pytest.raises(ValueError, match=r"the limit could not be measured: .*float64"):
        report.measure_limits({**question, "token_counts": [3]})


def test_a_run_with_several_models_needs_a_chosen_one() -> None:
    run = made_report(BATCHES) | {"answered_by": ["a", "b"]}
    with pytest.raises(ValueError, match="choose one with --model"):
        report.add_limits(run, None)


@pytest.mark.parametrize("models", [{}, {"models": [], "replicas": []}, {**MODELS, "replicas": []}])
def test_a_server_without_the_shape_of_the_model_is_an_error(models: Any) -> None:
    with pytest.raises(ValueError, match="does not give the shape"):
        report.limit_question(models, "fake")
