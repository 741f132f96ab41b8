"""The real server on broken models: it ends with 2 and one line that says what is wrong, or it serves all the same."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file

from tests.checkpoints import make_checkpoint, write_weights
from tests.system.test_serve import ANSWER_S, START_S, Running, serving, until

pytestmark = pytest.mark.system

SAFE, BIN = "model.safetensors", "pytorch_model.bin"
BIAS = "bert.encoder.layer.0.output.dense.bias"


def cut_off(model: Path) -> None:
    os.truncate(model / SAFE, 100_000)


def without_a_tensor(model: Path) -> None:
    tensors = load_file(model / SAFE)
    del tensors[BIAS]
    write_weights(model, tensors, "safetensors")


class Hostile:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def malicious(model: Path) -> None:
    (model / SAFE).unlink()
    (model / BIN).write_bytes(pickle.dumps({"a": Hostile(model / "made")}))


def absurd(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"hidden_size": 10**12}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")


BROKEN: dict[Callable[[Path], None], tuple[str, ...]] = {
    cut_off: (SAFE, "it has 100000 bytes; wanted", "by its header"),
    without_a_tensor: (f"tensor {BIAS.removeprefix('bert.')} is missing from {SAFE}; wanted shape [64]",),
    malicious: (BIN, "refused", "running a pickle is not safe"),
    absurd: ("config.json: hidden_size is '1000000000000'; wanted a whole number from 1 to 65536",),
}


def test_a_broken_model_ends_the_start_with_one_line(tmp_path: Path) -> None:
    """All at once: most of the time is that of importing torch."""
    models = {spoil: make_checkpoint(tmp_path / spoil.__name__, num_layers=1) for spoil in BROKEN}
    starts = {}
    for spoil, model in models.items():
        spoil(model)
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--threads", "1", "--model", str(model)]
        starts[spoil] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for spoil, start in starts.items():
        _, errors = start.communicate(timeout=START_S)
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert (start.returncode, "Traceback" in errors) == (2, False), errors
        assert str(models[spoil]) in line
        assert [words for words in BROKEN[spoil] if words not in line] == []
    assert not (models[malicious] / "made").exists()


def lost(server: Running) -> list[str]:
    records = [json.loads(line) for line in server.lines if line.startswith("{")]
    return [record["detail"] for record in records if record["message"] == "replica could not start again"]


def test_a_model_that_breaks_while_it_is_served_is_read_again_once_it_is_mended(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", num_layers=1)
    whole = (model / SAFE).read_bytes()
    with serving("--model", str(model), "--log-format", "json") as server:
        (model / SAFE).write_bytes(whole[:-1])
        answer = httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=ANSWER_S)
        assert answer.status_code == 200, "what is served was copied"
        (child,) = server.children()
        child.kill()
        until(lambda: bool(lost(server)))
        (reason,) = set(lost(server))
        assert f"{SAFE}: not a safetensors file (it has {len(whole) - 1} bytes; wanted {len(whole)}, by its" in reason
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        (model / SAFE).write_bytes(whole)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
        again = httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=ANSWER_S)
        assert again.json() == answer.json()
