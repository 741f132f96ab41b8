"""The roofline: bare matrix products of every linear map of every layer, with one row per token."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from service.tools import roofline
from service.tools.roofline import Limit, Product, Question, Sizes, limits, make_layers, ways_of

SIZES = Sizes(num_layers=3, hidden_size=8, ffn_size=16)
CPU = torch.device("cpu")
MAPS = {(24, 8): 3, (8, 8): 3, (16, 8): 3, (8, 16): 3}


def linear(weight: Tensor) -> Product:
    return lambda hidden: hidden @ weight.t()


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


def test_every_map_of_every_layer_is_multiplied_with_every_token() -> None:
    calls: Counter[tuple[int, tuple[int, ...]]] = Counter()

    def counted(weight: Tensor) -> Product:
        def product(hidden: Tensor) -> Tensor:
            calls[len(hidden), tuple(weight.shape)] += 1
            return hidden @ weight.t()

        return product

    found = limits(Question(SIZES, (5, 40), "float32"), {"counted": counted})
    passes = 1 + roofline.MIN_PASSES
    assert calls == {(tokens, shape): passes * layers for tokens in (5, 40) for shape, layers in MAPS.items()}
    assert [one.way for one in found] == ["counted", "counted"]
    assert all(one.seconds > 0 for one in found)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_every_way_of_every_precision_is_measured(precision: str) -> None:
    for name, way in ways_of(CPU, precision).items():
        (found,) = limits(Question(SIZES, (32,), precision), {name: way})
        assert found.way == name
        assert found.seconds > 0


def test_the_fastest_way_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5, 0.2, 0.3, 0.4])
    monkeypatch.setattr(roofline, "_timed", lambda run: next(seconds))
    found = limits(Question(SIZES, (8, 16), "float32"), {"first": linear, "second": linear})
    assert found == [Limit(0.3, "second"), Limit(0.2, "first")]


def test_layers_have_separate_weights_within_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[Tensor] = []

    def kept(weight: Tensor) -> Product:
        weights.append(weight)
        return lambda hidden: hidden

    assert len(make_layers(SIZES, torch.float32, CPU, kept)) == 3
    assert len({weight.data_ptr() for weight in weights}) == 12
    monkeypatch.setattr(roofline, "MAX_WEIGHT_BYTES", 1)
    assert len(make_layers(SIZES, torch.float32, CPU, kept)) == 2


def test_the_time_of_some_layers_is_scaled_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "MAX_WEIGHT_BYTES", 1)
    monkeypatch.setattr(roofline, "_timed", lambda run: 0.2)
    assert limits(Question(SIZES, (8,), "float32"), {"linear": linear})[0].seconds == pytest.approx(0.3)
