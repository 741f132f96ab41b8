"""The canary: its interval, what counts as a wrong answer, and the comparison between replicas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.replicas.canary import Canary, ReferenceAnswers, WrongAnswer, distance, is_wrong
from tests.fakes import SILENT_BREAK, FakeClock, row
from tests.unit.replicas.engines import CountingEngine


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def test_wrong_model_names_the_model_whose_answer_changed() -> None:
    engines = {"m": CountingEngine(), "n": CountingEngine()}
    canary = Canary(engines, 60.0)
    assert {name: answer.tolist() for name, answer in canary.answers.items()} == {"m": [7], "n": [7]}
    assert canary.wrong_model() is None
    engines["n"].run([row(SILENT_BREAK)])
    assert canary.wrong_model() == "n"


def test_an_engine_that_raises_counts_as_wrong(caplog: pytest.LogCaptureFixture) -> None:
    engine = CountingEngine()
    canary = Canary({"m": engine}, 60.0)
    engine.is_broken = True
    assert canary.wrong_model() == "m"
    assert "canary failed" in caplog.text


def test_a_check_restarts_the_interval() -> None:
    clock = FakeClock()
    canary = Canary({"m": CountingEngine()}, 60.0, clock)
    assert canary.wait_s() == 60
    clock.now += 50
    assert canary.wait_s() == 10
    clock.now += 20
    assert canary.wait_s() == 0
    canary.wrong_model()
    assert canary.wait_s() == 60


def test_an_interval_of_zero_disables_the_canary() -> None:
    assert Canary({"m": CountingEngine()}, 0.0).wait_s() is None


@pytest.mark.parametrize(
    ("found", "known", "expected"),
    [
        (array(3, 4), array(3, 4), 0),
        (array(3, 4.5), array(3, 4), 0.1),
        (array(0, 0), array(3, 4), 1),
        (array(math.nan, 4), array(3, 4), math.inf),
        (array(math.inf, 4), array(3, 4), math.inf),
        (array(3, 4, 0), array(3, 4), math.inf),
        (array(0, 0), array(0, 0), 0),
        (array(0, 1), array(0, 0), 1),
    ],
)
def test_distance_is_relative_to_the_known_answer(found: np.ndarray, known: np.ndarray, expected: float) -> None:
    assert distance(found, known) == expected


@pytest.mark.parametrize(("precision", "expected"), [("float32", True), ("bfloat16", False), ("int8", False)])
def test_lower_precisions_have_a_larger_tolerance(precision: str, expected: bool) -> None:
    assert is_wrong(array(100, 101), array(100, 100), precision) == expected


def test_a_replica_must_match_the_first_one_of_its_precision() -> None:
    known = ReferenceAnswers()
    known.compare("cpu", {"m": "float32", "n": "float32"}, {"m": array(1), "n": array(2)})
    known.compare("cuda:0", {"m": "bfloat16"}, {"m": array(5)})
    known.compare("cpu", {"m": "float32"}, {"m": array(1)})
    with pytest.raises(WrongAnswer, match="cuda:1: m in bfloat16 answers differently than on cuda:0"):
        known.compare("cuda:1", {"m": "bfloat16"}, {"m": array(1)})
    known.forget()
    known.compare("cuda:1", {"m": "bfloat16"}, {"m": array(1)})
