"""The runner of a worker process: how it loads its engine, tested without weights."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from service.engine.engine import Engine
from service.replicas.runner import load_engine
from tests.fakes import checkpoint

COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [("cuda:1", None, "cache/compiled"), ("cuda:1", "mine", "mine"), ("cpu", None, None)],
)
def test_the_compile_cache_of_a_gpu_is_in_the_weight_cache_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, device: str, before: str | None, after: str | None
) -> None:
    load = create_autospec(Engine.load)
    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setenv(COMPILE_CACHE, before or "")
    if before is None:
        monkeypatch.delenv(COMPILE_CACHE)
    load_engine(
        checkpoint(Path()),
        device=device,
        precision="auto",
        runtime="auto",
        quantization="int8",
        progress=lambda done, total: None,
        weight_cache=Path("cache"),
    )
    assert os.environ.get(COMPILE_CACHE) == after
    assert load.call_args.kwargs["quantization"] == "int8"
    assert load.call_args.kwargs["runtime"] == "auto"
