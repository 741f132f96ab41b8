"""Memory and the canary on a GPU: a batch out of memory is an error, and the engine recovers."""

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
def memory_limit() -> Iterator[None]:
    """Limits torch to the memory that it has reserved so far."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_without_memory_raises_out_of_memory_and_the_engine_recovers(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), device="cuda")
    engine.warm_up()
    canary = Canary({"test": engine}, 60.0)
    rows = mean_rows([512] * 256)
    with memory_limit(), pytest.raises(OutOfMemory):
        engine.run(rows)
    assert canary.wrong_model() is None
    assert all(np.isfinite(output.scores).all() for output in engine.run(rows))


def test_device_memory_reports_allocated_and_total(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), device="cuda")
    memory = engine.device_memory()
    assert memory is not None
    assert 0 < memory.allocated < memory.total
