"""The choice of a quantization by measurement."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.checkpoints.checkpoint import describe
from service.domain import Quantization
from service.engine import engine
from service.engine.engine import Engine
from service.engine.fastest import choose, fastest_quantization
from service.engine.self_test import CPU
from tests.checkpoints import make_checkpoint


class Device:
    """Runs of known length on a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0

    def taking(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


def failing() -> None:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(("int8", "chosen"), [(0.5, "int8"), (0.9, "none"), (2.0, "none")])
def test_a_quantization_that_gains_a_fifth_is_chosen(int8: float, chosen: Quantization) -> None:
    device = Device()
    assert choose({"none": device.taking(1.0), "int8": device.taking(int8)}, lambda: device.now) == chosen


def test_the_fastest_of_several_is_chosen() -> None:
    device = Device()
    runs = {"none": device.taking(1.0), "int8": device.taking(0.5), "fp8": device.taking(0.4)}
    assert choose(runs, lambda: device.now) == "fp8"  # type: ignore[arg-type]  # the keys are literals


def test_a_quantization_that_fails_is_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    assert choose({"none": device.taking(1.0), "int8": failing}, lambda: device.now) == "none"
    assert "quantization failed" in [record.getMessage() for record in caplog.records]


def test_a_cpu_is_measured_without_fp8_and_the_choice_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = describe(make_checkpoint(tmp_path, num_layers=1), "test").shape
    with caplog.at_level(logging.INFO):
        chosen = fastest_quantization(shape, CPU, "float32")
    [record] = [record for record in caplog.records if record.getMessage() == "quantization measured"]
    assert record.__dict__["chosen"] == chosen
    assert {name for name in record.__dict__ if name.endswith("_ms")} == {"none_ms", "int8_ms"}


@pytest.mark.parametrize(("chosen", "precision"), [("int8", "int8"), ("none", "float32")])
def test_an_engine_of_auto_computes_as_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: Quantization, precision: str
) -> None:
    monkeypatch.setattr(engine, "fastest_quantization", lambda *of: chosen)
    checkpoint = describe(make_checkpoint(tmp_path, num_layers=1), "test")
    assert Engine.load(checkpoint, precision="float32", quantization="auto").precision == precision
