"""`python -m service finetune` end to end, on generated data and checkpoints: train, resume, distribute, serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from service.checkpoints.checkpoint import describe, resolve
from service.checkpoints.spec import parse_spec
from service.domain import Encoding, Labels
from service.engine.engine import Engine
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.text_model import TextModel
from tests.checkpoints import make_checkpoint

pytestmark = pytest.mark.system

PAIRS = [("天气很好", "天气不好", 0), ("我是学生", "我在学校", 1), ("今天去看书", "现在去看书", 1), ("火山", "水路", 0)]
RECIPE = """
seed = 1
max_length = 48
dropout = 0.0
evaluate_every = {steps}
dev = ["afqmc/dev"]
[optimizer]
learning_rate = 1e-3
warmup_steps = 0
tokens_per_batch = 200
batches_per_step = 2
bf16 = false
[[stages]]
steps = {steps}
[stages.mixture]
"afqmc/train" = 1
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "afqmc"
    folder.mkdir(parents=True)
    for split, pairs in (("train", PAIRS * 4), ("dev", [(b, a, label) for a, b, label in PAIRS])):
        lines = "".join(f"{a}\t{b}\t{label}\n" for a, b, label in pairs)
        (folder / f"{split}.txt").write_text(lines, encoding="utf-8")
    return folder.parent


def finetune(*flags: str | Path, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "service", "finetune", *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, check=check, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_fine_tuned_head_for_pairs_answers_similarity(tmp_path: Path, data: Path) -> None:
    start, output = make_checkpoint(tmp_path / "start", kind="encoder"), tmp_path / "out"
    flags = ("--task", "afqmc", "--form", "head", "--epochs", "2", "--batch-size", "8", "--precision", "float32")
    done = finetune("--model", start, "--data", data, "--output", output, *flags)
    assert {"output", "dev", "intervals_95", "per_class"} <= set(json.loads(done.stdout))

    checkpoint = describe(output, "mine")
    assert (checkpoint.kind, checkpoint.labels, checkpoint.tasks) == (
        "sequence-classification",
        ("不相似", "相似"),
        ("similarity",),
    )
    model, query = TextModel.load(checkpoint), SimilarityQuery((("天气很好", "天气不好"),))
    assert SIMILARITY.can(model, query)
    rows: list[Encoding] = SIMILARITY.encode(model, query)
    assert rows[0].readout == Labels()
    [result] = SIMILARITY.decode(model, query, rows, Engine.load(checkpoint, precision="float32").run(rows))
    assert 0.0 <= result.score <= 1.0


@pytest.mark.slow
def test_an_interrupted_run_resumes_at_its_checkpoint(tmp_path: Path, data: Path) -> None:
    start = make_checkpoint(tmp_path / "start")
    recipe = tmp_path / "recipe.toml"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    flags = ("--model", start, "--data", data, "--recipe", recipe)

    recipe.write_text(
        RECIPE.format(steps=4).replace("evaluate_every = 4", "blend = 0.5\nevaluate_every = 2"), encoding="utf-8"
    )
    finetune(*flags, "--output", whole)
    finetune(*flags, "--output", halves)
    # An interruption after step 2 leaves the checkpoint of step 2 and no later one.
    checkpoints = halves / "checkpoints"
    (checkpoints / "checkpoint-4").rename(tmp_path / "lost")
    (halves / "model.safetensors").unlink()
    finetune(*flags, "--output", halves)

    first, second = load_file(whole / "model.safetensors"), load_file(halves / "model.safetensors")
    assert all(np.allclose(first[name], second[name], atol=1e-3) for name in first)
    steps = json.loads((checkpoints / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert steps["global_step"] == 4


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(tmp_path: Path, data: Path) -> None:
    start = make_checkpoint(tmp_path / "start")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(steps=3), encoding="utf-8")
    flags = ("--model", start, "--data", data, "--recipe", recipe)
    finetune(*flags, "--output", tmp_path / "one")
    finetune(*flags, "--output", tmp_path / "two", processes=2)
    one, two, before = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "start"))
    assert all(np.allclose(one[name], two[name], atol=1e-3) for name in one)
    changed = [name for name in one if name in before and not np.allclose(one[name], before[name].half(), atol=1e-3)]
    assert changed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("afqmc",), "wanted FILE or TASK, --model SOURCE and --output DIR"),
        (("none", "--model", "{start}"), "none: is neither a file nor a data set"),
        (("none.csv", "--model", "{start}"), "none.csv: no such file"),
        (("c3", "--model", "{start}"), "no such data file"),
        (("afqmc", "--model", "{start}", "--max-length", "1024"), "--max-length 1024: start reads at most"),
        (("afqmc", "--model", "{start}", "--learning-rate", "-1"), "wanted a number above 0 and at most 1, or find"),
        (("afqmc", "--model", "{start}", "--batch-size", "0"), "wanted a whole number above zero"),
        (("afqmc", "--model", "{start}", "--devices", "3"), "is no multiple of --devices 3"),
        (
            ("afqmc", "--model", "{start}", "--form", "head", "--template", "{{label}}"),
            "word the options of --form choice",
        ),
        (("afqmc", "--model", "{start}", "--metric", "spearman"), "of this data there are accuracy, macro-f1, loss"),
    ],
)
@pytest.mark.slow
def test_an_invalid_run_prints_one_line_and_exits_with_2(
    tmp_path: Path, data: Path, flags: tuple[str, ...], message: str
) -> None:
    start = make_checkpoint(tmp_path / "start")
    words = [flag.format(start=start) for flag in flags]
    done = finetune("--data", data, "--output", tmp_path / "out", *words, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_output_is_a_model_that_can_be_served(tmp_path: Path, data: Path) -> None:
    start, output = make_checkpoint(tmp_path / "start"), tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(steps=1), encoding="utf-8")
    finetune("--model", start, "--data", data, "--recipe", recipe, "--output", output)
    checkpoint = resolve(parse_spec(f"mine={output}"))
    assert checkpoint.shape.activation == describe(start, "start").shape.activation
    assert TextModel.load(checkpoint).can_choose
    Engine.load(checkpoint).warm_up()
