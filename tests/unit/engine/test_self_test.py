"""The self-test: a kernel that computes wrong numbers, raises or is not finite is left out, and the engine is right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.checkpoints.checkpoint import describe
from service.domain import Encoding, KernelKind
from service.engine import arithmetic, attention, linear, ops
from service.engine.attention import BACKENDS, AttentionConfig, Backend
from service.engine.cuda_graphs import Graphs
from service.engine.device import Call
from service.engine.encoder import encode
from service.engine.engine import Engine
from service.engine.linear import Linear, OneDnn, Plain, choose
from service.engine.ops import Fused
from service.engine.self_test import distance, numbers
from service.errors import SettingError
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import choice_row, mean_rows

CPU = torch.device("cpu")
ROWS: list[Encoding] = [*mean_rows((1, 5, 5, 17)), choice_row((2, 3), 9)]

Fault = Callable[[Tensor], Tensor]


def one_wrong_column(out: Tensor) -> Tensor:
    wrong = out.clone()
    wrong[:, -1] *= 2
    return wrong


def one_wrong_row(out: Tensor) -> Tensor:
    wrong = out.clone()
    wrong[0] = wrong[-1]
    return wrong


def not_a_number(out: Tensor) -> Tensor:
    wrong = out.clone()
    wrong[0, 0] = torch.nan
    return wrong


def failing(out: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available\nand a long story")


FAULTS: tuple[Fault, ...] = (one_wrong_column, one_wrong_row, not_a_number, failing)
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("self-test"), num_layers=1)


@pytest.fixture
def wanted(path: Path) -> list[np.ndarray]:
    return answers(load(path))


def load(path: Path, **options: Any) -> Engine:
    return Engine.load(describe(path, "test"), **{"precision": "float32", **options})


def answers(engine: Engine) -> list[np.ndarray]:
    return [output.scores for output in engine.run(ROWS)]


def are_close(found: list[np.ndarray], wanted: list[np.ndarray], limit: float) -> bool:
    return all(np.abs(one - other).max() < limit for one, other in zip(found, wanted, strict=True))


def left_out(engine: Engine) -> list[tuple[KernelKind, str]]:
    return [(check.kind, check.name) for check in engine.checks if not check.is_sound]


def break_attention(monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault) -> None:
    sound = BACKENDS[name]

    def prepare(*args: Any) -> Callable[[Tensor], Tensor]:
        attend = sound.prepare(*args)
        return lambda qkv: fault(attend(qkv))

    monkeypatch.setitem(BACKENDS, name, Backend(prepare, sound.runs_on))


def break_linear(monkeypatch: pytest.MonkeyPatch, linear_class: type[Linear], fault: Fault) -> None:
    """Every map of the class is wrong, also where GELU or a residual follow."""
    for name in ("__call__", "gelu", "add_norm"):
        sound = getattr(linear_class, name)

        def call(*args: Any, sound: Callable[..., Any] = sound) -> Any:
            out = sound(*args)
            return (fault(out[0]), out[1]) if isinstance(out, tuple) else fault(out)

        monkeypatch.setattr(linear_class, name, call)


def test_a_sound_engine_leaves_nothing_out(path: Path) -> None:
    engine = load(path)
    assert [(check.kind, check.name) for check in engine.checks] == [
        ("linear", "OneDnn float32"),
        ("attention", "sdpa"),
    ]
    assert left_out(engine) == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_rounding_is_well_below_the_limit(path: Path, precision: str, quantization: str) -> None:
    engine = load(path, precision=precision, quantization=quantization)
    limits = {"float32": 1e-3, "bfloat16": 0.03, "int8": 0.1}
    for check in engine.checks:
        limit = limits[engine.precision if check.kind == "linear" else precision]
        assert check.distance is not None
        assert check.distance < limit / 2.5


@each_fault
def test_broken_sdpa_is_replaced_by_plain_attention(
    path: Path, wanted: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    break_attention(monkeypatch, "sdpa", fault)
    engine = load(path)
    assert (engine.backend, left_out(engine)) == ("plain", [("attention", "sdpa")])
    assert are_close(answers(engine), wanted, 1e-5)


@each_fault
def test_broken_float_maps_are_replaced_by_torchs_own(
    path: Path, wanted: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    break_linear(monkeypatch, OneDnn, fault)
    engine = load(path)
    assert left_out(engine) == [("linear", "OneDnn float32")]
    assert isinstance(engine.weights.layers[0].qkv, Plain)
    assert are_close(answers(engine), wanted, 1e-5)


@each_fault
def test_broken_int8_is_replaced_by_maps_without_quantization(
    path: Path, wanted: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    chosen = choose(torch.device("cpu"), torch.float32, "int8")
    break_linear(monkeypatch, chosen, fault)
    engine = load(path, quantization="int8")
    assert left_out(engine) == [("linear", f"{chosen.__name__} float32")]
    assert engine.precision == "float32"
    assert are_close(answers(engine), wanted, 1e-5)


def test_broken_bfloat16_is_replaced_by_float32(
    path: Path, wanted: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_bfloat16(out: Tensor) -> Tensor:
        return one_wrong_column(out) if out.dtype == torch.bfloat16 else out

    for linear_class in (OneDnn, Plain):
        break_linear(monkeypatch, linear_class, of_bfloat16)
    engine = load(path, precision="bfloat16")
    assert engine.precision == "float32"
    assert ("linear", "Plain bfloat16") in left_out(engine)
    assert are_close(answers(engine), wanted, 1e-5)


def test_a_device_on_which_nothing_is_right_does_not_serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for linear_class in (OneDnn, Plain):
        break_linear(monkeypatch, linear_class, one_wrong_row)
    with pytest.raises(SettingError, match="cpu computes wrong numbers, also in Plain float32"):
        load(path)


def test_wrong_plain_attention_does_not_serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sdpa", "plain"):
        break_attention(monkeypatch, name, one_wrong_row)
    with pytest.raises(SettingError, match="cpu computes attention wrongly, also in plain"):
        load(path)


def test_a_backend_that_is_named_and_wrong_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_attention(monkeypatch, "flex", one_wrong_row)
    with pytest.raises(SettingError, match="cpu computes attention wrongly, also in flex"):
        load(path, backend="flex")


def test_a_wrong_backend_is_not_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU: all backends that run on it are candidates."""
    break_attention(monkeypatch, "flex", one_wrong_row)
    monkeypatch.setattr(attention, "_candidates", lambda config, fitting: ["sdpa", "flex"])
    chosen = attention.choose("auto", AttentionConfig(CPU, torch.float32, 2, 8))
    assert chosen.name == "sdpa"
    assert [check.name for check in chosen.checks if not check.is_sound] == ["flex"]


def test_what_is_left_out_is_logged_with_the_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_attention(monkeypatch, "sdpa", failing)
    with caplog.at_level(logging.WARNING):
        load(path)
    [warning] = caplog.records
    assert (warning.getMessage(), warning.__dict__["kind"], warning.__dict__["kernel"]) == (
        "kernel left out",
        "attention",
        "sdpa",
    )
    assert warning.__dict__["reason"] == "RuntimeError: no kernel image is available"


# compiled functions, with the CPU as a stand-in for a GPU


def times_three(values: Tensor) -> Tensor:
    return values * 3


def third(values: Tensor) -> Tensor:
    return values / 3


class Compiled(Plain):
    """Calls two functions that would be compiled on a GPU, and that cancel each other."""

    __slots__ = ()
    compiled = (Fused(times_three), Fused(third))

    def __call__(self, hidden: Tensor) -> Tensor:
        first, second = self.compiled
        return second(first(super().__call__(hidden)))


@pytest.fixture
def compiled_pieces(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of functions whose compiled form is wrong."""
    wrong: set[str] = set()

    def compile_wrongly(function: Callable[[Tensor], Tensor], **_: Any) -> Callable[[Tensor], Tensor]:
        return lambda values: function(values) * (2 if function.__name__ in wrong else 1)

    monkeypatch.setattr(ops, "compiled", compile_wrongly)
    monkeypatch.setattr(ops, "is_compiled_for", lambda tensor: True)
    monkeypatch.setattr("service.engine.torch_private.mark_static", lambda tensor, dimension: None)
    monkeypatch.setattr(Compiled, "compiled", (Fused(times_three), Fused(third)))
    monkeypatch.setattr(linear, "choose", lambda *_: Compiled)
    monkeypatch.setattr(arithmetic, "can_compile", lambda device: True)
    return wrong


@pytest.mark.parametrize("wrong", [{"times_three"}, {"third"}])
def test_a_wrong_compiled_function_runs_as_it_is_written(
    path: Path, compiled_pieces: set[str], wrong: set[str]
) -> None:
    compiled_pieces |= wrong
    chosen = arithmetic.check(arithmetic.of_torch(CPU, "float32", "none"), describe(path, "test").shape, CPU)
    assert chosen.linear_class is Compiled
    assert {check.name for check in chosen.checks if not check.is_sound} == wrong
    assert {function.name for function in Compiled.compiled if function.is_left_out} == wrong


def test_sound_compiled_functions_stay(path: Path, compiled_pieces: set[str]) -> None:
    chosen = arithmetic.check(arithmetic.of_torch(CPU, "float32", "none"), describe(path, "test").shape, CPU)
    assert [check.name for check in chosen.checks] == ["Compiled float32"]
    assert not any(function.is_left_out for function in Compiled.compiled)


# CUDA graphs, with a recorder that replays on the CPU


def graphs_of(engine: Engine, fault: Fault, *buckets: int, faulty: int) -> Graphs:
    def record(call: Call) -> Call:
        num_tokens = len(call())
        if num_tokens != faulty:
            return call
        if fault is failing:
            fault(call())
        return lambda: fault(call())

    return Graphs(partial(encode, engine.weights, engine.shape), record, CPU, torch.float32, (), buckets)


@each_fault
def test_a_broken_graph_is_left_out_and_the_others_serve(
    path: Path, wanted: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    engine = load(path)
    monkeypatch.setattr(engine, "_graphs", graphs_of(engine, fault, 32, 64, 96, faulty=64))
    with torch.inference_mode():
        engine.warm_up()
    assert left_out(engine) == [("graph", "dense 64")]
    assert [check.name for check in engine.checks if check.kind == "graph"] == ["dense 32", "dense 64", "dense 96"]
    assert are_close(answers(engine), wanted, 1e-5)


# distances


def test_the_distance_is_that_of_the_worst_row_or_column() -> None:
    known = numbers(200, 100)
    assert distance(known, known) == 0
    assert distance(one_wrong_column(known), known) > 0.5
    assert distance(one_wrong_row(known), known) > 0.5
    assert distance(not_a_number(known), known) == float("inf")
    assert distance(known[:, 1:], known) == float("inf")
