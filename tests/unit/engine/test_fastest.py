"""The choice of a runtime and a quantization by measurement."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.checkpoints.shape import Shape
from service.domain import Quantization, Runtime, WantedQuantization, WantedRuntime
from service.engine import engine
from service.engine.arithmetic import Arithmetic, candidates
from service.engine.engine import Engine
from service.engine.fastest import choose, fastest
from service.engine.linear import Int8Codes, Plain
from service.engine.self_test import CPU
from service.errors import SettingError
from tests.checkpoints import make_checkpoint


class Device:
    """Runs of known length on a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0

    def taking(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run

    def slowed(self, seconds: float, factor: float, until: float) -> Callable[[], None]:
        """As `taking`, after a time in which something else slows the device down."""

        def run() -> None:
            self.now += seconds * (factor if self.now < until else 1)

        return run


def failing() -> None:
    raise RuntimeError("no kernel image is available")


def of(runtime: Runtime, quantization: Quantization = "none") -> Arithmetic:
    return Arithmetic(runtime, "float32", quantization, Plain)


TORCH, ONNX = of("torch"), of("onnxruntime")
TORCH_INT8, ONNX_INT8 = of("torch", "int8"), of("onnxruntime", "int8")


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return describe(make_checkpoint(tmp_path_factory.mktemp("model"), num_layers=1), "test").shape


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({TORCH: 1.0, TORCH_INT8: 0.8}, TORCH_INT8),
        ({TORCH: 1.0, TORCH_INT8: 0.9}, TORCH),
        ({TORCH: 1.0, TORCH_INT8: 2.0}, TORCH),
        ({TORCH: 1.0, TORCH_INT8: 0.5, of("torch", "fp8"): 0.4}, of("torch", "fp8")),
        ({TORCH: 1.0, ONNX: 0.94}, ONNX),
        ({TORCH: 1.0, ONNX: 0.96}, TORCH),
        ({TORCH: 1.0, ONNX: 0.6, TORCH_INT8: 0.8, ONNX_INT8: 0.4}, ONNX_INT8),
        ({TORCH: 1.0, ONNX: 0.6, TORCH_INT8: 0.8, ONNX_INT8: 0.55}, ONNX),
    ],
)
def test_the_fastest_is_chosen_unless_it_gains_too_little(seconds: dict[Arithmetic, float], chosen: Arithmetic) -> None:
    device = Device()
    found = choose({each: device.taking(time) for each, time in seconds.items()}, clock=lambda: device.now)
    assert replace(found, times=()) == chosen
    assert dict(found.times) == pytest.approx({each.short_name: time for each, time in seconds.items()})


def test_a_slow_moment_of_the_machine_changes_nothing() -> None:
    device = Device()
    runs = {TORCH: device.taking(0.003), ONNX: device.slowed(0.002, factor=2, until=0.1)}
    assert choose(runs, clock=lambda: device.now).runtime == "onnxruntime"


@pytest.mark.parametrize(("onnx", "chosen"), [(0.6, "onnxruntime"), (0.8, "torch")])
def test_cached_weights_are_left_for_a_larger_gain_only(onnx: float, chosen: Runtime) -> None:
    device = Device()
    runs = {TORCH: device.taking(1.0), ONNX: device.taking(onnx)}
    assert choose(runs, cached=[TORCH], clock=lambda: device.now).runtime == chosen
    assert choose(runs, cached=[TORCH, ONNX], clock=lambda: device.now).runtime == "onnxruntime"


def test_the_weights_that_are_cached_are_those_that_were_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def pick(found: list[Arithmetic], shape: Shape, device: torch.device, cached: list[Arithmetic]) -> Arithmetic:
        seen.append([each.short_name for each in cached])
        return next(each for each in found if each.short_name == "onnxruntime int8")

    monkeypatch.setattr(engine, "fastest", pick)
    checkpoint = describe(make_checkpoint(tmp_path / "model", num_layers=1), "test")
    for _ in range(2):
        Engine.load(
            checkpoint, precision="float32", runtime="auto", quantization="auto", weight_cache=tmp_path / "cache"
        )
    assert seen == [[], ["onnxruntime int8"]]


def test_one_that_fails_is_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    assert choose({TORCH: device.taking(1.0), ONNX: failing}, clock=lambda: device.now).runtime == "torch"
    [record] = [record for record in caplog.records if record.getMessage() == "arithmetic failed"]
    assert record.__dict__["arithmetic"] == "onnxruntime float32"


def test_a_runtime_that_cannot_be_loaded_is_not_chosen(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.engine.onnx_encoder", None)
    assert fastest(candidates(shape, CPU, "float32", "auto", "none"), shape, CPU).runtime == "torch"


def test_a_cpu_is_measured_without_fp8_and_the_choice_is_logged(shape: Shape, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen = fastest(candidates(shape, CPU, "float32", "auto", "auto"), shape, CPU)
    [record] = [record for record in caplog.records if record.getMessage() == "arithmetic measured"]
    assert record.__dict__["chosen"] == chosen.short_name
    assert {name for name in record.__dict__ if name.endswith("_ms")} == {
        "torch_float32_ms",
        "onnxruntime_float32_ms",
        "torch_int8_ms",
        "onnxruntime_int8_ms",
    }


def test_what_the_settings_name_is_not_measured(shape: Shape, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen = fastest(candidates(shape, CPU, "float32", "onnxruntime", "int8"), shape, CPU)
    assert (chosen.runtime, chosen.quantization, chosen.linear_class) == ("onnxruntime", "int8", Int8Codes)
    assert not caplog.records


@pytest.mark.parametrize(
    ("device", "precision", "runtime", "quantization"),
    [
        ("cuda", "float32", "onnxruntime", "none"),
        ("cpu", "bfloat16", "onnxruntime", "none"),
        ("cpu", "float32", "onnxruntime", "fp8"),
        ("cuda", "float32", "onnxruntime", "auto"),
        ("cpu", "bfloat16", "onnxruntime", "auto"),
        ("cpu", "float32", "auto", "fp8"),
    ],
)
def test_settings_that_the_device_does_not_support_are_errors(
    shape: Shape, device: str, precision: str, runtime: WantedRuntime, quantization: WantedQuantization
) -> None:
    with pytest.raises(SettingError, match=r"onnxruntime|fp8"):
        candidates(shape, torch.device(device), precision, runtime, quantization)


@pytest.mark.parametrize(
    ("device", "precision", "num_layers", "quantization", "are_there"),
    [
        ("cpu", "float32", 24, "none", True),
        ("cpu", "bfloat16", 24, "none", False),
        ("cuda", "float32", 24, "none", False),
        ("cpu", "float32", 100, "none", False),
        ("cpu", "float32", 100, "int8", True),
    ],
)
def test_onnx_runtime_is_a_candidate_on_a_cpu_in_float32_up_to_a_size(
    device: str, precision: str, num_layers: int, quantization: Quantization, are_there: bool
) -> None:
    """With 1,024 channels a layer has 50 MB of float32."""
    shape = Shape(num_layers, 1024, 16, 4096, 21128, 512, 2, 1e-12, "gelu")
    found = candidates(shape, torch.device(device), precision, "auto", quantization)
    assert [each.runtime for each in found] == (["torch", "onnxruntime"] if are_there else ["torch"])


@pytest.mark.parametrize("chosen", [("torch", "int8"), ("torch", "none"), ("onnxruntime", "int8")])
def test_an_engine_of_auto_computes_as_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: tuple[Runtime, Quantization]
) -> None:
    def pick(found: list[Arithmetic], *of: object) -> Arithmetic:
        return next(each for each in found if (each.runtime, each.quantization) == chosen)

    monkeypatch.setattr(engine, "fastest", pick)
    checkpoint = describe(make_checkpoint(tmp_path, num_layers=1), "test")
    loaded = Engine.load(checkpoint, precision="float32", runtime="auto", quantization="auto")
    assert (loaded.arithmetic.runtime, loaded.arithmetic.quantization) == chosen
    assert loaded.precision == ("int8" if chosen[1] == "int8" else "float32")
