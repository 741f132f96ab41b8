"""How a child gets its engine, without the weights."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from service.engine.engine import Engine
from service.replicas.runner import load_engine
from tests.fakes import checkpoint

KEPT = "TORCHINDUCTOR_CACHE_DIR"


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [("cuda:1", None, "cache/compiled"), ("cuda:1", "mine", "mine"), ("cpu", None, None)],
)
def test_what_is_compiled_for_a_gpu_is_kept_beside_the_weights(
    monkeypatch: pytest.MonkeyPatch, device: str, before: str | None, after: str | None
) -> None:
    load = create_autospec(Engine.load)
    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setenv(KEPT, before or "")
    if before is None:
        monkeypatch.delenv(KEPT)
    load_engine(
        checkpoint(Path()),
        device=device,
        precision="auto",
        quantization="int8",
        progress=lambda done, total: None,
        weight_cache=Path("cache"),
    )
    assert os.environ.get(KEPT) == after
    assert load.call_args.kwargs["quantization"] == "int8"
