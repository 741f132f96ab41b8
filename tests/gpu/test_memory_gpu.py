"""Memory and the canary on a GPU: a batch that finds no room is told so, and the engine goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.engine.engine import Engine
from service.errors import OutOfMemory
from service.replicas.canary import Canary
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import mean_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@contextmanager
def no_more_memory() -> Iterator[None]:
    """What torch holds by now is all that it may have."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_finds_no_memory_is_told_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), device="cuda")
    engine.warm_up()
    canary = Canary({"test": engine}, 60.0)
    rows = mean_rows([512] * 256)
    with no_more_memory(), pytest.raises(OutOfMemory):
        engine.run(rows)
    assert canary.wrong_model() is None
    assert all(np.isfinite(output.scores).all() for output in engine.run(rows))


def test_what_there_is_and_what_is_taken(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), device="cuda")
    memory = engine.device_memory()
    assert memory is not None
    assert 0 < memory.allocated < memory.total
