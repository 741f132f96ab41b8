"""What `serve` starts ahead of the imports of the server: worker processes, and the reading of weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.checkpoints.checkpoint import describe
from service.commands import launching
from service.engine.engine import Engine
from service.replicas.runner import ENGINE_MODULE
from service.settings import Models, Replicas, Settings
from tests.checkpoints import make_checkpoint


class Launching:
    """In place of `launch`: the system allows so many processes."""

    def __init__(self, allowed: int) -> None:
        self.calls: list[tuple[int, str]] = []
        self._allowed = allowed

    def __call__(self, threads: int, imports: str) -> Any:
        if len(self.calls) == self._allowed:
            raise BlockingIOError
        self.calls.append((threads, imports))
        return len(self.calls)


@pytest.mark.parametrize("allowed", [3, 2, 0])
def test_a_worker_is_launched_for_each_replica_while_the_system_allows_it(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Launching(allowed)
    monkeypatch.setattr(launching, "launch", launch)
    settings = Settings(replicas=Replicas(devices=("cpu", "cpu", "cpu"), threads=2))
    assert len(launching.launch_workers(settings)) == allowed
    assert launch.calls == [(2, ENGINE_MODULE)] * allowed


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read ahead."""
    files: list[Path] = []
    monkeypatch.setattr(launching, "read_ahead", files.extend)
    return files


def test_the_weights_of_all_local_models_are_read(tmp_path: Path, read: list[Path]) -> None:
    first, second = (make_checkpoint(tmp_path / name, num_layers=1) for name in ("a", "b"))
    specs = (str(first), "x=IDEA-CCNL/none-such", str(tmp_path / "c"), str(second))
    launching.read_weights(Settings(models=Models(specs=specs, cache_dir=str(tmp_path)))).join()
    assert read == [first / "model.safetensors", second / "model.safetensors"]


def test_converted_weights_are_read_in_place_of_their_sources(tmp_path: Path, read: list[Path]) -> None:
    path, cache = make_checkpoint(tmp_path / "a", num_layers=1), tmp_path / "cache"
    Engine.load(describe(path, "a"), precision="float32", quantization="int8", weight_cache=cache)
    for quantization in ("int8", "auto", "none"):
        replicas = Replicas(devices=("cpu",), runtime="torch", precision="float32", quantization=quantization)
        models = Models(specs=(str(path),), weight_cache_dir=str(cache))
        launching.read_weights(Settings(models=models, replicas=replicas)).join()
    assert read == [*cache.glob("*.safetensors")] * 2 + [path / "model.safetensors"]


def test_settings_that_are_wrong_are_left_to_the_server(read: list[Path]) -> None:
    launching.read_weights(Settings(models=Models(specs=("a=mini", "a=mini")))).join()
    assert not read


def test_the_server_is_not_imported_before_the_workers_are_launched() -> None:
    code = "import sys, service.commands.serve; print({'fastapi', 'uvicorn', 'torch', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
