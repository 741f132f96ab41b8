"""Runs of `finetune` on one's own file, as users start them: served, killed, resumed, refused, on two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from service.checkpoints.checkpoint import describe
from service.domain import Output
from service.engine.engine import Engine
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.text_model import TextModel
from service.tools.training import resuming
from tests.checkpoints import make_checkpoint

pytestmark = [pytest.mark.system, pytest.mark.slow]

NUM_KILLS = 20
INTERVAL = 4
FLAGS = ("--lr", "1e-3", "--batch-size", "8", "--precision", "float32", "--patience", "0")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Forty reviews, three good ones for each bad one."""
    rows = [("天气很好" if index % 4 else "天气不好", "好评" if index % 4 else "差评", index) for index in range(40)]
    text = "评论,情感\n" + "".join(f"{text}第{index}天,{label}\n" for text, label, index in rows)
    (tmp_path / "reviews.csv").write_text(text, encoding="utf-8")
    return tmp_path / "reviews.csv"


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "start", num_layers=1, hidden_size=16, num_heads=2)


def command(*flags: str | Path) -> list[str]:
    return [sys.executable, "-m", "service", "finetune", *map(str, flags)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def finetune(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*flags), env=environment(), capture_output=True, text=True, timeout=600)


def serve(folder: Path, text: str) -> tuple[str, list[str]]:
    """The label of a text and all labels, by the engine and the task of the service."""
    checkpoint = describe(folder, "mine")
    model, query = TextModel.load(checkpoint), ClassifyQuery((Text(text),))
    query = CLASSIFY.bind(model, query)
    rows = CLASSIFY.encode(model, query)
    outputs: list[Output] = Engine.load(checkpoint, precision="float32").run(rows)
    [result] = CLASSIFY.decode(model, query, rows, outputs)
    return result.label, sorted(score.label for score in result.scores)


def test_a_head_is_served_and_read_by_a_pipeline_of_transformers(tmp_path: Path, reviews: Path, start: Path) -> None:
    output = tmp_path / "out"
    done = finetune(reviews, "--model", start, "--form", "head", "--output", output, "--max-steps", "40", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dev"]["accuracy"] > 0.5
    label, labels = serve(output, "天气不好")
    assert labels == ["好评", "差评"]
    from transformers import pipeline

    assert pipeline("text-classification", str(output))("天气不好", truncation=True)[0]["label"] == label
    assert {file.stat().st_mode & 0o777 for file in output.rglob("*") if file.is_file()} == {0o644}
    assert "准确率 / accuracy" in (output / "README.md").read_text(encoding="utf-8")


def test_a_choice_model_answers_without_labels(tmp_path: Path, reviews: Path, start: Path) -> None:
    output = tmp_path / "out"
    flags = ("--form", "choice", "--template", "这是一条{label}", "--question", "天气好不好", "--max-steps", "8")
    done = finetune(reviews, "--model", start, "--output", output, *flags, *FLAGS)
    assert done.returncode == 0, done.stderr
    own = describe(output, "mine").choice
    assert own is not None
    assert (own.options, own.question) == (("这是一条差评", "这是一条好评"), "天气好不好")
    assert serve(output, "天气不好")[1] == ["好评", "差评"]


def test_another_run_is_refused_and_a_finished_one_is_not_repeated(tmp_path: Path, reviews: Path, start: Path) -> None:
    flags = (reviews, "--model", start, "--form", "head", "--output", tmp_path / "out", "--max-steps", "8", *FLAGS)
    first = finetune(*flags)
    again = finetune(*flags)
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert "this run is finished" in again.stderr
    other = finetune(*flags, "--seed", "3")
    assert other.returncode == 2
    assert "holds another run: seed is 0 there, 3 now" in other.stderr
    assert finetune(*flags, "--seed", "3", "--overwrite").returncode == 0


def test_a_run_that_is_killed_loses_at_most_one_interval(tmp_path: Path, reviews: Path, start: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "killed"
    flags = (reviews, "--model", start, "--form", "head", "--max-steps", "200", "--evaluate-every", str(INTERVAL))
    assert finetune(*flags, "--output", whole, *FLAGS).returncode == 0
    draw, kills, reached = random.Random(1), 0, 0
    while kills < NUM_KILLS:
        process = subprocess.Popen(
            command(*flags, "--output", output, *FLAGS),
            env=environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stderr is not None
        # The start takes most of the time: a moment is drawn after the first evaluation.
        for line in process.stderr:
            if line.startswith(b"step "):
                break
        try:
            process.wait(draw.uniform(0, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        record = json.loads((output / "run.json").read_text(encoding="utf-8"))
        if record["result"] is not None:
            break
        whole_ones = [path for path in resuming.checkpoints_of(output / "checkpoints") if resuming.can_resume(path)]
        resumable = resuming.step_of(whole_ones[0]) if whole_ones else 0
        assert record["history"][-1]["step"] - resumable <= INTERVAL
        assert resumable >= reached
        reached = resumable
    last = finetune(*flags, "--output", output, *FLAGS)
    assert last.returncode == 0, last.stderr
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, output))
    assert all(np.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_several_processes_train_the_same_weights_as_one(tmp_path: Path, reviews: Path, start: Path) -> None:
    flags = (reviews, "--model", start, "--form", "choice", "--dropout", "0", "--max-steps", "6", *FLAGS)
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    assert finetune(*flags, "--output", one).returncode == 0
    done = finetune(*flags, "--output", two, "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dev"] == json.loads((one / "run.json").read_text(encoding="utf-8"))["result"]["dev"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "service"]
    words = [*torchrun, "finetune", *map(str, flags), "--micro-batch", "2", "--output", str(three)]
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=600)
    first = load_file(one / "model.safetensors")
    for other in (two, three):
        second = load_file(other / "model.safetensors")
        assert all(np.allclose(first[name], second[name], atol=1e-3) for name in first)
